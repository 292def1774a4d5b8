"""Answers per second of the preference service against a plain transformers loop over the same texts, in one run.

    python -m tests.benchmarks.preference_scoring --model FOLDER [--texts 96] [--rounds 2]

The texts have the lengths that answers have (log-normal, cut), in random order. The loop is what one writes first:
batches of 16 as they come, padded to the longest by the tokenizer, the backbone in float32, the head at the last token.
``--alone`` is the same loop with one text at a time, which pads nothing. Rounds go around all in turn, so that what
else the machine does falls on all alike; processor time does not count the others at all. Scores must agree within
1e-3.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from charter.inference.preference_model import PreferenceModel
from charter.preference.server import PreferenceConfig, build
from charter.rpc.channel import BATCH, connect
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tests.harness import running

ROOT = Path(__file__).resolve().parents[2]
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Text:
    """A question and an answer to it."""

    prompt: str
    answer: str


class PlainLoop:
    """Transformers alone, on a folder that ``PreferenceModel.save`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.backbone = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self.head = load_file(folder / "head.safetensors")

    @torch.inference_mode()
    def scores(self, texts: Sequence[Text], batch: int) -> list[float]:
        """In batches as they come."""
        found: list[float] = []
        for start in range(0, len(texts), batch):
            rows = [
                self.tokenizer.apply_chat_template(
                    [{"role": "user", "content": one.prompt}], tokenize=False, add_generation_prompt=True
                )
                + one.answer
                + self.tokenizer.eos_token
                for one in texts[start : start + batch]
            ]
            inputs = self.tokenizer(
                rows, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
            )
            hidden = self.backbone(**inputs).last_hidden_state
            last = hidden[torch.arange(len(rows)), inputs["attention_mask"].sum(dim=1) - 1]
            scores = last @ self.head["head.weight"][0] + self.head["head.bias"][0] - self.head["offset"]
            found += scores.tolist()
        return found


def texts(count: int, seed: int) -> list[Text]:
    """Shipped questions; answers of words of shipped answers, with log-normal lengths (median 90 words, sigma 0.7)."""
    lines = (ROOT / "examples" / "labelled" / "helpful_answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    draw = random.Random(seed)
    made = []
    for index in range(count):
        words = min(1000, max(10, round(draw.lognormvariate(4.5, 0.7))))
        pool: list[str] = []
        while len(pool) < words:
            pool += draw.choice(rows)["answer"].split()
        made.append(Text(rows[index % len(rows)]["prompt"], " ".join(pool[:words])))
    return made


def served(stub: preference_pb2_grpc.PreferenceServiceStub, asked: Sequence[Text]) -> list[float]:
    """One request to the service."""
    items = [
        preference_pb2.ScoreItem(
            id=str(index), prompt=[types_pb2.Message(role=types_pb2.ROLE_USER, content=one.prompt)], answer=one.answer
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
    parser.add_argument("--texts", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--alone", action="store_true", help="also the loop with one text at a time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    asked = texts(options.texts, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        PreferenceModel.from_causal_lm(options.model, options.seed).save(Path(folder) / "model")
        loop = PlainLoop(Path(folder) / "model")
        config = PreferenceConfig(
            str(Path(folder) / "model"), f"sqlite:///{folder}/charter.db", Path(folder) / "staging"
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
    lengths = [len(loop.tokenizer(one.prompt + one.answer)["input_ids"]) for one in asked]
    figures = {
        "texts": len(asked),
        "tokens": {"shortest": min(lengths), "median": statistics.median(lengths), "longest": max(lengths)},
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
