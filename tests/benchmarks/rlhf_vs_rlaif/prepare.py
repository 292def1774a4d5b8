"""Make the specs, pairs and prompts of docs/rlhf-vs-rlaif.md: labels of people and of a judge, on the same pairs.

    python -m tests.benchmarks.rlhf_vs_rlaif.prepare FOLDER --model MODEL --prompts PROMPTS \\
        --helpful FILE --harmless FILE

MODEL is a folder with a chat model, PROMPTS the demo's folder of prompts (`make models` makes both). People's labels:

- helpful: `data/testset-v1.json` of github.com/WeOpenML/PandaLM (Wang et al. 2023, arXiv 2306.05087), answers of small
  models to requests that people wrote; three people compared each pair. The soft label is their vote.
- harmless: `harmless-base/test.jsonl.gz` of hub:Anthropic/hh-rlhf (Bai et al. 2022, arXiv 2204.05862).

A quarter of the prompts is held out: on those, and on the demo's helpful ones, the arms are compared.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.pairs.pair import Pair, placed
from charter.data.pairs.read import pairs
from charter.hashing import stable_fraction
from charter.held_out import is_held_out, prompt_key
from rich.console import Console

GENERAL = Path("examples/constitutions/general.yaml")
OTHER = Path(__file__).parents[1] / "four_models" / "constitution.yaml"
# Characters: longer ones cost the CPU more than they tell.
LONGEST_PROMPT, LONGEST_ANSWER = 200, 400
HELD_OUT = 0.25
# That of examples/relevance_judge.py.
RELEVANCE = "127.0.0.1:50055"
# Prompts of each dimension that judge the arms.
MEASURED = 20


def helpful_pairs(file: Path) -> Iterator[Pair]:
    """People's votes on answers to their requests."""
    for row in json.loads(file.read_text(encoding="utf-8")):
        texts = [row["instruction"], row["input"], row["response1"], row["response2"]]
        # A few answers are no texts.
        if not all(isinstance(text, str) for text in texts) or not all(text.strip() for text in texts[2:]):
            continue
        # 1 and 2 are the better one, 0 a tie.
        votes = [{0: 0.5, 1: 1.0, 2: 0.0}[row[f"annotator{number}"]] for number in (1, 2, 3)]
        prompt = [ChatMessage("user", "\n\n".join(filter(None, texts[:2])))]
        yield placed(prompt, texts[2], texts[3], sum(votes) / 3, dimension="helpful")


def harmless_pairs(file: Path) -> Iterator[Pair]:
    """People's choices between answers to what a red team wrote."""
    for pair in pairs(str(file), BadRows("skip")):
        if len(pair.prompt) == 1:
            yield Pair(pair.prompt, pair.answer_a, pair.answer_b, pair.label, "harmless")


def short(pair: Pair) -> bool:
    """Whether its texts are short, and differ."""
    answers = {pair.answer_a, pair.answer_b}
    prompt = sum(len(turn.content) for turn in pair.prompt)
    return len(answers) == 2 and prompt <= LONGEST_PROMPT and max(map(len, answers)) <= LONGEST_ANSWER


def write_inputs(folder: Path, prompts: Path, helpful: Path, harmless: Path) -> dict[str, int]:
    """``pairs.jsonl``, ``train.jsonl``, and the held-out prompts of each dimension. How many rows each has."""
    found = [*filter(short, helpful_pairs(helpful)), *filter(short, harmless_pairs(harmless))]
    held = {"helpful": list[str](), "harmless": list[str]()}
    train: dict[str, str] = {}
    kept: list[dict[str, Any]] = []
    for pair in found:
        text = pair.prompt[0].content
        if is_held_out(prompt_key(pair.prompt), HELD_OUT):
            held[pair.dimension].append(text)
            continue
        train[text] = pair.dimension
        kept.append(
            {"prompt": text, "answer_a": pair.answer_a, "answer_b": pair.answer_b}
            | {"label": pair.label, "dimension": pair.dimension}
        )
    demo = [json.loads(line) for part in ("train", "held_out") for line in (prompts / f"{part}.jsonl").open()]
    held["helpful"] += [row["prompt"] for row in demo if row["dimension"] == "helpful" and row["prompt"] not in train]
    rows: dict[str, list[dict[str, Any]]] = {
        "pairs": kept,
        "train": [{"prompt": text, "dimension": dimension} for text, dimension in train.items()],
    }
    for dimension, texts in held.items():
        drawn = sorted(dict.fromkeys(texts), key=lambda text: stable_fraction("measured", text))
        rows[dimension] = [{"prompt": text, "dimension": dimension} for text in drawn[:MEASURED]]
    for name, part in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return {name: len(part) for name, part in rows.items()}


def specs(model: str, pairs_taken: int, steps: int) -> dict[str, dict[str, Any]]:
    """The run that the arms share, and the study."""
    judge = {"model": model, "method": "contrast", "constitution": "general.yaml"}
    return {
        "run": {
            "name": "base",
            "policy": {"model": model},
            "judge": judge,
            "prompts": {"train": ["train.jsonl"], "held_out": ["helpful.jsonl", "harmless.jsonl"]},
            "sampling": {"max_new_tokens": 32},
            "preference_model": {"lora_rank": 16, "learning_rate": 5e-4},
            "ppo": {
                # Without a critic: it has little to learn from in so few steps.
                "algorithm": "grpo",
                "steps": steps,
                "episodes_per_step": 16,
                "learning_rate": 1e-4,
                # The same budget for all arms.
                "kl_target": 4.0,
                "kl_coefficient": 0.02,
                "missing_eos_penalty": 0,
            },
            "evaluation": {"prompts": 8},
            "checkpoints": {"every_steps": steps // 2},
        },
        "compare": {
            "name": "rlhf-vs-rlaif",
            "seed": 7,
            "run": "run.yaml",
            "seeds": [1, 2, 3],
            "pairs": {"sources": ["pairs.jsonl"], "count": pairs_taken},
            "judges": [{"name": "judge", **judge}],
            "arms": [
                {"name": "rlhf", "labels": "imported"},
                {"name": "rlaif", "labels": "judge"},
                {"name": "mixed", "labels_by_dimension": {"helpful": "imported", "harmless": "judge"}},
            ],
            "evaluation": {
                "prompts": [{"source": "helpful.jsonl"}, {"source": "harmless.jsonl"}],
                "judges": [
                    # Another model, method and principle; it knows nothing of harm.
                    {"name": "relevance", "address": RELEVANCE},
                    # The same model by other principles.
                    {"name": "other", "model": model, "constitution": "other.yaml", "method": "contrast"},
                ],
                "every_steps": steps // 2,
            },
        },
    }


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--helpful", type=Path, required=True)
    parser.add_argument("--harmless", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--steps", type=int, default=8, help="of GRPO")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True)
    counts = write_inputs(folder, arguments.prompts, arguments.helpful, arguments.harmless)
    shutil.copy(GENERAL, folder / "general.yaml")
    shutil.copy(OTHER, folder / "other.yaml")
    for name, spec in specs(str(arguments.model.resolve()), arguments.pairs, arguments.steps).items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    Console().print(f"{folder}: {', '.join(f'{count} in {name}.jsonl' for name, count in counts.items())}")


if __name__ == "__main__":
    main()
