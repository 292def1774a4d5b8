"""What both sides of the comparison read."""

import json
import random
from argparse import ArgumentParser, Namespace
from pathlib import Path

from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt

# What the sides are told.
NAMES = ("model", "prompts", "steps", "episodes", "tokens", "precision", "shared_trunk")


def arguments(description: str) -> ArgumentParser:
    """What both sides and the comparison read."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL of prompts")
    parser.add_argument("--steps", type=int, default=4, help="measured steps; one more comes first")
    parser.add_argument("--episodes", type=int, default=16, help="of a step, in two minibatches")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of an answer")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shared-trunk", type=int, default=0, help="1: Charter's critic is a head of its policy")
    return parser


def prompts(options: Namespace) -> list[Prompt]:
    """The prompts of all steps, of mixed lengths, the same for both sides."""
    lines = options.prompts.read_text(encoding="utf-8").splitlines()
    needed = options.episodes * (options.steps + 1)
    if len(lines) < needed:
        raise SystemExit(f"{options.prompts} holds {len(lines)} prompts, and {needed} are needed: lower --steps")
    chosen = random.Random(0).sample(lines, needed)
    return [Prompt((ChatMessage("user", json.loads(line)["prompt"]),)) for line in chosen]


def prompt_ids(options: Namespace) -> list[list[int]]:
    """Their token ids, by the model's chat template."""
    tokenizer = ChatTokenizer.load(options.model)
    return [tokenizer.prompt_ids(prompt) for prompt in prompts(options)]
