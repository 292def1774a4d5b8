"""Make the specs and prompts of the comparison of docs/measurements/evaluation.md: three ways to learn from one model.

    python -m tests.benchmarks.four_models.prepare FOLDER --model MODEL --prompts PROMPTS --dialogues DIALOGUES

MODEL is a folder with a chat model, PROMPTS the demo's folder of prompts (`make models` makes both), DIALOGUES a file
of HH-RLHF (`harmless-base/test.jsonl.gz` of hub:Anthropic/hh-rlhf). Half of the demo's prompts are trained on, the
others and the harmful requests of the dialogues are held out.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from charter.data.bad_rows import BadRows
from charter.data.conversations import conversations
from rich.console import Console

CONSTITUTION = Path(__file__).with_name("constitution.yaml")
RIGHT = CONSTITUTION.parent.parent / "road" / "constitution.yaml"
HARMFUL = 100


def write_prompts(folder: Path, prompts: Path, dialogues: Path) -> None:
    """Every second of the demo's prompts is trained on; the others and the dialogues' first turns are held out."""
    rows = [json.loads(line) for part in ("train", "held_out") for line in (prompts / f"{part}.jsonl").open()]
    first = [one.messages[0].content for one in conversations(f"{dialogues}#chosen", BadRows("skip"))]
    harmful = [{"prompt": text, "dimension": "harmless"} for text in dict.fromkeys(first)][:HARMFUL]
    for name, part in (("train", rows[::2]), ("held_out", rows[1::2] + harmful)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))


def specs(model: str, steps: int) -> dict[str, dict[str, Any]]:
    """The runs, by name, and what compares them."""
    judge = {"model": model, "method": "contrast", "constitution": "general.yaml"}
    reinforced: dict[str, Any] = {
        "seed": 7,
        "policy": {"model": model},
        "judge": judge,
        "prompts": {"train": ["train.jsonl"], "held_out": ["held_out.jsonl"]},
        "sampling": {"max_new_tokens": 48},
        "preference_model": {"learning_rate": 5e-5},
        "evaluation": {"prompts": 32},
        "checkpoints": {"every_steps": 4, "keep": 1},
    }
    learning = {"steps": steps, "episodes_per_step": 16, "learning_rate": 3e-5, "missing_eos_penalty": 0}
    critic = {"critic_learning_rate": 5e-5, "critic_warmup_steps": 2}
    other = {"model": model, "constitution": "other.yaml"}
    right = {"model": "test-model", "engine": "openai", "endpoint": "http://127.0.0.1:8099/v1"}
    return {
        "ppo": {**reinforced, "name": "ppo", "comparisons": {"pairs": 96}, "ppo": {**learning, **critic}},
        "grpo": {
            **reinforced,
            "name": "grpo",
            "comparisons": {"pairs": 48},
            "ppo": {**learning, "algorithm": "grpo"},
        },
        # The labels that the two runs before have stored.
        "dpo": {
            "name": "dpo",
            "seed": 7,
            "policy": {"model": model},
            "dpo": {"stored": {"source": "ai"}, "batch_size": 8, "learning_rate": 1e-5},
        },
        "comparison": {
            "name": "four-models",
            "seed": 7,
            "models": [
                {"name": "start", "model": model},
                *({"name": name, "run": name} for name in ("ppo", "grpo", "dpo")),
            ],
            "prompts": [{"source": "held_out.jsonl"}],
            "judges": [
                {"name": "contrast", **other, "method": "contrast"},
                {"name": "letters", **other, "method": "choice"},
                {"name": "rules", **right, "constitution": "right.yaml", "method": "choice"},
            ],
            "sampling": {"max_new_tokens": 48},
            "pairs": "start",
        },
    }


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--dialogues", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=7, help="of PPO and of GRPO")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    write_prompts(folder, arguments.prompts, arguments.dialogues)
    shutil.copy("examples/constitutions/general.yaml", folder)
    shutil.copy(CONSTITUTION, folder / "other.yaml")
    shutil.copy(RIGHT, folder / "right.yaml")
    for name, spec in specs(str(arguments.model.resolve()), arguments.steps).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    Console().print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


if __name__ == "__main__":
    main()
