"""What the sides read: the same conversations, tokenised once, in the same order."""

from argparse import ArgumentParser, Namespace

from charter.data.conversations import conversations
from charter.inference.chat_template import ChatTokenizer
from charter.worker.clients.failed import Failed
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.training.batches import TrainingSequence

RATE = 1e-5
# What the sides are told.
NAMES = ("model", "conversations", "steps", "batch", "max_tokens", "precision", "packing")


def arguments(description: str) -> ArgumentParser:
    """What both sides and the comparison read."""
    parser = ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--conversations", required=True, help="file of conversations")
    parser.add_argument("--steps", type=int, default=6, help="measured steps; one more comes first")
    parser.add_argument("--batch", type=int, default=16, help="conversations of a step")
    parser.add_argument("--max-tokens", type=int, default=1024, help="longer conversations are left out")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--packing", type=int, default=1, help="0: TRL pads, batches of similar lengths")
    return parser


def sequences(options: Namespace) -> list[TrainingSequence]:
    """Of as many conversations as the steps take. Exits where the file holds fewer."""
    reader = ConversationReader(ChatTokenizer.load(options.model), options.max_tokens)
    found: list[TrainingSequence] = []
    needed = options.batch * (options.steps + 1)
    for one in conversations(options.conversations):
        read = reader.read(one.messages)
        found += [] if isinstance(read, Failed) else read
        if len(found) >= needed:
            return found[:needed]
    raise SystemExit(f"{options.conversations} gives {len(found)} sequences, and {needed} are needed: lower --steps")
