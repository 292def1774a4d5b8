"""Answers per second of the preference service against a plain transformers loop over the same texts, in one run.

    python -m tests.benchmarks.preference_scoring --model FOLDER [--workload single|pairs|groups] [--rounds 2]

Workloads, in the order in which a caller has them:
- ``single``: one answer to each question of one turn (log-normal, median 90 words, sigma 0.7).
- ``pairs``: two answers to each conversation of one to four turns of the user (each log-normal, median 25
  words), as a labelled comparison has them; all answers, those of the conversation too, have a median of 60 words.
- ``groups``: eight answers to each such conversation, as GRPO, RLOO and the choice of the best of n have them.

The loop is what one writes first: batches of 16 as they come, padded to the longest by the tokenizer, the backbone in
float32, the head at the last token. ``--alone`` is the same loop with one text at a time, which pads nothing. Rounds go
around all in turn, so that what else the machine does falls on all alike; processor time does not count the others at
all. Scores must agree within 1e-4.
"""

import argparse
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from charter.inference.preference_model import PreferenceModel
from charter.preference import metrics
from charter.preference.server import PreferenceConfig, build
from charter.rpc.channel import BATCH, connect
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tests.support.harness import running

ROOT = Path(__file__).resolve().parents[2]
_TOLERANCE = 1e-4
# Answers to each conversation.
_WORKLOADS = {"single": 1, "pairs": 2, "groups": 8}


@dataclass(frozen=True)
class Text:
    """A conversation, which ends with a question, and an answer to it."""

    turns: tuple[str, ...]
    answer: str

    @property
    def messages(self) -> list[dict[str, str]]:
        """User and assistant in turn."""
        return [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(self.turns)]


class PlainLoop:
    """Transformers alone, on a folder that ``PreferenceModel.save`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.backbone = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.head = load_file(folder / "head.safetensors")

    def rendered(self, texts: Sequence[Text]) -> list[str]:
        """By the chat template."""
        return [
            self.tokenizer.apply_chat_template(one.messages, tokenize=False, add_generation_prompt=True)
            + one.answer
            + self.tokenizer.eos_token
            for one in texts
        ]

    def token_ids(self, texts: Sequence[Text]) -> list[list[int]]:
        """Of each text, without padding."""
        ids: list[list[int]] = self.tokenizer(self.rendered(texts), add_special_tokens=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def scores(self, texts: Sequence[Text], batch: int) -> list[float]:
        """In batches as they come."""
        found: list[float] = []
        for start in range(0, len(texts), batch):
            rows = self.rendered(texts[start : start + batch])
            inputs = self.tokenizer(
                rows, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
            )
            hidden = self.backbone(**inputs).last_hidden_state
            last = hidden[torch.arange(len(rows)), inputs["attention_mask"].sum(dim=1) - 1]
            scores = last @ self.head["head.weight"][0] + self.head["head.bias"][0] - self.head["offset"]
            found += scores.tolist()
        return found


def texts(workload: str, count: int, seed: int) -> list[Text]:
    """Shipped questions first, then words of shipped answers in the lengths of the workload."""
    lines = (ROOT / "examples" / "labelled" / "helpful_answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    draw = random.Random(seed)

    def words(median: float) -> str:
        count = min(1000, max(5, round(draw.lognormvariate(math.log(median), 0.7))))
        pool: list[str] = []
        while len(pool) < count:
            pool += draw.choice(rows)["answer"].split()
        return " ".join(pool[:count])

    answers = _WORKLOADS[workload]
    made: list[Text] = []
    for index in range(count // answers):
        turns = [rows[index % len(rows)]["prompt"]]
        if workload != "single":
            for _ in range(draw.randrange(4)):
                turns += [words(60), words(25)]
        made += [Text(tuple(turns), words(90 if workload == "single" else 60)) for _ in range(answers)]
    return made


def padded(lengths: Sequence[int], batch: int) -> int:
    """Tokens that a loop over batches computes, padding included."""
    batches = [lengths[start : start + batch] for start in range(0, len(lengths), batch)]
    return sum(len(one) * max(one) for one in batches)


def served(stub: preference_pb2_grpc.PreferenceServiceStub, asked: Sequence[Text]) -> list[float]:
    """One request to the service."""
    items = [
        preference_pb2.ScoreItem(
            id=str(index),
            prompt=[
                types_pb2.Message(role=types_pb2.Role.Value(f"ROLE_{turn['role'].upper()}"), content=turn["content"])
                for turn in one.messages
            ],
            answer=one.answer,
        )
        for index, one in enumerate(asked)
    ]
    request = preference_pb2.PreferenceServiceScoreRequest(items=items)
    found = {one.item_id: one.score for one in stub.Score(request, timeout=BATCH)}
    return [found[item.id] for item in items]


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workload", choices=list(_WORKLOADS), default="single")
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="also the loop with one text at a time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    asked = texts(options.workload, options.texts, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        PreferenceModel.from_causal_lm(options.model, options.seed).save(Path(folder) / "model")
        loop = PlainLoop(Path(folder) / "model")
        config = PreferenceConfig(
            {"default": str(Path(folder) / "model")}, f"sqlite:///{folder}/charter.db", Path(folder) / "staging"
        )
        with running(build(config)) as addresses, connect(addresses.main) as channel:
            stub = preference_pb2_grpc.PreferenceServiceStub(channel)
            ways: dict[str, Callable[[], list[float]]] = {
                "service": lambda: served(stub, asked),
                "loop of 16": lambda: loop.scores(asked, 16),
            }
            if options.alone:
                ways["loop of 1"] = lambda: loop.scores(asked, 1)
            timings: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            found: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                for name, score in ways.items():
                    wall, processor = time.monotonic(), time.process_time()
                    found[name] = score()
                    timings[name].append((time.monotonic() - wall, time.process_time() - processor))
    worst = max(abs(one - other) for name in ways for one, other in zip(found["service"], found[name], strict=True))
    if worst > _TOLERANCE:
        raise RuntimeError(f"scores differ by {worst:.2g}")
    unsorted = [len(ids) for ids in loop.token_ids(asked)]
    lengths = sorted(unsorted)
    answers = [len(loop.tokenizer(one.answer)["input_ids"]) for one in asked]
    computed = metrics.TOKENS.labels("default")._value.get() - metrics.SHARED.labels("default")._value.get()
    figures = {
        "workload": options.workload,
        "texts": len(asked),
        "tokens": {"shortest": lengths[0], "median": statistics.median(lengths), "longest": lengths[-1]},
        "median_tokens_of_an_answer": statistics.median(answers),
        "tokens_computed": {
            "service": round(computed / options.rounds),
            "loop of 16": padded(unsorted, 16),
            "loop of 1": padded(unsorted, 1),
        },
        "texts_per_second": {
            name: [round(len(asked) / wall, 2) for wall, _ in rounds] for name, rounds in timings.items()
        },
        "ratio_in_time": _ratios(timings, 0),
        "ratio_in_processor_time": _ratios(timings, 1),
        "largest_difference": worst,
    }
    print(json.dumps(figures))  # noqa: T201 - the result


def _ratios(timings: dict[str, list[tuple[float, float]]], which: int) -> dict[str, float]:
    """How many times as long as the service each loop takes, median over rounds."""
    service = timings["service"]
    return {
        name: round(statistics.median(its[which] / ours[which] for its, ours in zip(rounds, service, strict=True)), 2)
        for name, rounds in timings.items()
        if name != "service"
    }


if __name__ == "__main__":
    main()
