"""Make what the road starts from: two base models, texts, conversations, prompts and run specs.

    python -m tests.benchmarks.road.prepare FOLDER --model MODEL --prompts PROMPTS --dialogues DIALOGUES

MODEL is a folder with a chat model, PROMPTS the demo's folder of prompts (`make models` makes both), DIALOGUES a file
of HH-RLHF (`harmless-base/test.jsonl.gz` of hub:Anthropic/hh-rlhf). The base models: MODEL with its chat template taken
away, and a small one of random weights with a tokenizer of its own.
"""

import argparse
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.conversations import conversations
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONSTITUTION = Path(__file__).with_name("constitution.yaml")
END = "<|endoftext|>"
# Harmful first turns: trained on, held out. The demo's prompts of the dimension `helpful` are used beside them.
TRAIN, HELD_OUT = 96, 64


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_prompts(folder: Path, chats: Sequence[Sequence[ChatMessage]], helpful: Path) -> None:
    """The first turns of the dialogues, which ask for harm, and the demo's requests that do not."""
    harmful = [{"prompt": chat[0].content, "dimension": "harmless"} for chat in chats[: TRAIN + HELD_OUT]]
    for name, part in (("train", harmful[:TRAIN]), ("held_out", harmful[TRAIN:])):
        rows = [json.loads(line) for line in (helpful / f"{name}.jsonl").read_text().splitlines()]
        write(folder / f"{name}.jsonl", part + [row for row in rows if row["dimension"] == "helpful"])


def without_template(model: Path, folder: Path) -> None:
    """A copy of a chat model that has lost its template and its end of turn."""
    shutil.copytree(
        model, folder, ignore=shutil.ignore_patterns("chat_template*", "*.safetensors", "generation_config*")
    )
    os.link(model / "model.safetensors", folder / "model.safetensors")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("chat_template", None)
    config["eos_token"] = END
    path.write_text(json.dumps(config))


def from_scratch(texts: Sequence[str], folder: Path) -> None:
    """A Llama of 4 million random weights, with a tokenizer of the texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=["<|pad|>", END], initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token="<|pad|>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def specs(model: Path) -> dict[str, dict[str, Any]]:
    """The runs of docs/road.md, by name."""
    common: dict[str, Any] = {
        "seed": 7,
        "prompts": {"train": ["train.jsonl"], "held_out": ["held_out.jsonl"]},
        "sampling": {"max_new_tokens": 64},
    }
    right = {
        "model": "test-model",
        "engine": "openai",
        "endpoint": "http://127.0.0.1:8099/v1",
        "method": "choice",
        "constitution": "constitution.yaml",
    }
    texts = {"data": [{"source": "texts.jsonl"}], "learning_rate": 1e-4, "batch_tokens": 2048}
    chats = {"data": [{"source": "chat.jsonl"}], "learning_rate": 1e-4, "batch_size": 16, "max_tokens": 320}
    learning = {"learning_rate": 1e-4, "batch_size": 8, "epochs": 2}
    revision = {"dimensions": ["harmless"], "rounds": 2, "prompts": 40, "gate_prompts": 32, "learning": learning}
    base = {"model": "base", "chat_template": "chatml", "eos_token": "<|im_end|>"}
    own = {"model": str(model), "method": "contrast", "constitution": "general.yaml"}
    rest = {
        "comparisons": {"pairs": 40},
        "preference_model": {"learning_rate": 5e-5},
        "evaluation": {"prompts": 48},
    }
    steps = {"steps": 3, "episodes_per_step": 16, "learning_rate": 3e-5, "missing_eos_penalty": 0}
    road = {"pretraining": texts, "supervised": chats, "revision": revision, **rest}
    tiny_road = {
        "pretraining": {**texts, "data": [{"source": "all_texts.jsonl"}], "learning_rate": 2e-3},
        "supervised": {**chats, "learning_rate": 1e-3, "epochs": 4},
        "revision": {**revision, "learning": {**learning, "learning_rate": 1e-3, "epochs": 4}},
    }
    return {
        # The judge is a small model; the gate is told to go on whatever it finds, to show what comes of it.
        "road": {
            **common,
            "name": "road",
            "policy": base,
            "judge": own,
            **road,
            "revision": {**revision, "on_no_gain": "continue"},
            "ppo": steps,
        },
        # The second stage alone, judged by one that is right.
        "right": {
            **common,
            "name": "right",
            "policy": base,
            "judge": right,
            "revision": revision,
            "evaluation": {"prompts": 79},
            "ppo": {"steps": 0, "algorithm": "online_dpo"},
        },
        "tiny": {
            **common,
            "name": "tiny",
            "policy": {"model": "tiny", "chat_template": "chatml"},
            "judge": right,
            **road,
            **tiny_road,
            "ppo": {**steps, "learning_rate": 1e-4},
        },
    }


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--dialogues", type=Path, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    chats = [one.messages for one in conversations(f"{arguments.dialogues}#chosen", BadRows("skip"))]
    write_prompts(folder, chats, arguments.prompts)
    learned = chats[TRAIN + HELD_OUT :]
    texts = ["\n\n".join(turn.content for turn in chat) for chat in learned]
    write(folder / "texts.jsonl", ({"text": text} for text in texts[:60]))
    write(folder / "all_texts.jsonl", ({"text": text} for text in texts))
    write(folder / "chat.jsonl", ({"messages": [asdict(turn) for turn in chat]} for chat in learned[200:280]))
    without_template(arguments.model, folder / "base")
    from_scratch(texts, folder / "tiny")
    shutil.copy(CONSTITUTION, folder)
    shutil.copy("examples/constitutions/general.yaml", folder)
    for name, spec in specs(arguments.model.resolve()).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    Console().print(f"{folder}: {len(learned)} dialogues, {TRAIN} and {HELD_OUT} harmful prompts")


if __name__ == "__main__":
    main()
