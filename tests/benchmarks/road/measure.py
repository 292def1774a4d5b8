"""What became of the policy on the road: revisions by round, and answers to held-out prompts by stage.

    python -m tests.benchmarks.road.measure RUN START HELD_OUT [--judge HOST:PORT]

RUN is a run's folder, START the model that it began with, HELD_OUT a JSONL of prompts with their dimensions. Whether an
answer declines is told by the rules of right_judge.py. With the address of a running judge service the judge compares
as well: revisions with the answers that they revise, and each stage's answers with those of START. Intervals are of
95 %, by bootstrap of prompts.
"""

import argparse
import asyncio
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from charter.chat import ChatMessage
from charter.evaluation.statistics import bootstrap_interval
from charter.inference.base_model import as_chat_model
from charter.inference.engine import GeneratedSample, Prompt, Sampling
from charter.inference.local.engine import TransformersEngine
from charter.judge.text_generation import write_each
from charter.outcomes import win
from charter.rpc.channel import BATCH, connect
from charter.rpc.messages import proto_messages
from charter.spec.chat_form import ChatForm
from charter.v1 import judge_pb2, judge_pb2_grpc
from rich.console import Console
from rich.table import Table

from tests.benchmarks.road.right_judge import declines

CONSOLE = Console(width=110)
STAGES = ("pretraining", "supervised", "revised", "policy")
DIMENSIONS = ("harmless", "helpful")
Asked = tuple[ChatMessage, ...]


def interval(values: Sequence[float]) -> str:
    """Mean with its interval, in percent."""
    low, high = bootstrap_interval(values, samples=10_000, seed=0, bounds=(0, 1))
    return f"{sum(values) / len(values):.0%} [{low:.0%}, {high:.0%}]"


def judged(judge: str, pairs: Sequence[tuple[Asked, str, str]], dimension: str) -> str:
    """How often the judge prefers the first answer of each pair; what it cannot judge is left out and counted."""
    items = [
        judge_pb2.ComparisonItem(
            id=str(place), prompt=proto_messages(prompt), answer_a=a, answer_b=b, dimension=dimension
        )
        for place, (prompt, a, b) in enumerate(pairs)
    ]
    request = judge_pb2.CompareRequest(items=items, options=judge_pb2.JudgingOptions(seed=1))
    with connect(judge) as channel:
        found = [one.judgement for one in judge_pb2_grpc.JudgeServiceStub(channel).Compare(request, timeout=BATCH)]
    certain = [one for one in found if one.HasField("probability_a")]
    failed = f", {len(found) - len(certain)} failed" if len(certain) < len(found) else ""
    return interval([win(one.probability_a) for one in certain]) + failed


def rounds(run: Path, judge: str) -> Table:
    """Revisions that were clean, by round, against the answers that the policy gave."""
    table = Table("round", "clean", "declines", *(f"{one}: judge prefers it" for one in DIMENSIONS if judge))
    by_round: dict[int, list[tuple[Asked, str, str]]] = defaultdict(list)
    rows = pq.read_table(run / "revision" / "rows.parquet").to_pylist()
    answers = {row["id"].rpartition("-")[0]: row["answer"] for row in rows if row["round"] == 1}
    for row in rows:
        if row["verdict"] == "clean":
            prompt = tuple(ChatMessage(turn["role"], turn["content"]) for turn in row["prompt"])
            by_round[row["round"]].append((prompt, row["revision"], answers[row["id"].rpartition("-")[0]]))
    firsts = [(prompt, answer, answer) for prompt, _, answer in by_round[1]]
    for number, pairs in [(0, firsts), *sorted(by_round.items())]:
        preferred = [judged(judge, pairs, one) if number else "" for one in DIMENSIONS if judge]
        said = interval([float(declines(text)) for _, text, _ in pairs])
        table.add_row(str(number), str(len(pairs)), said, *preferred)
    return table


async def answered(model: str, prompts: Sequence[Asked], tokens: int) -> list[str]:
    """The model's answers, sampled at temperature 1."""
    engine = TransformersEngine(model, device="cpu", dtype="float32")
    await engine.start()
    texts = await write_each(engine, [Prompt(one) for one in prompts], Sampling(max_new_tokens=tokens, seed=1))
    await engine.stop()
    assert all(isinstance(one, GeneratedSample) for one in texts)
    return [one.text for one in texts if isinstance(one, GeneratedSample)]


def stages(models: Mapping[str, str], held_out: Sequence[Mapping[str, str]], judge: str, tokens: int) -> Table:
    """Answers to the held-out prompts, by stage."""
    heads = (f"{one}: judge prefers it to the start's" for one in DIMENSIONS if judge)
    table = Table("stage", "declines what is harmful", "declines what is not", *heads)
    prompts: dict[str, list[Asked]] = {
        one: [(ChatMessage("user", row["prompt"]),) for row in held_out if row["dimension"] == one]
        for one in DIMENSIONS
    }
    before: dict[str, list[str]] = {}
    for name, model in models.items():
        texts = {one: asyncio.run(answered(model, prompts[one], tokens)) for one in DIMENSIONS}
        before = before or texts
        share = [interval([float(declines(text)) for text in texts[one]]) for one in DIMENSIONS]
        preferred = [
            judged(judge, list(zip(prompts[one], texts[one], before[one], strict=True)), one) if name != "start" else ""
            for one in DIMENSIONS
            if judge
        ]
        table.add_row(name, *share, *preferred)
    return table


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("start")
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--judge", default="")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--stages", nargs="*", default=STAGES, help="folders of the run")
    options = parser.parse_args()
    if (options.run / "revision" / "rows.parquet").exists():
        CONSOLE.print(rounds(options.run, options.judge))
    start = as_chat_model(options.start, ChatForm("chatml", "<|im_end|>"))
    models = {"start": start} | {one: str(options.run / one) for one in options.stages if (options.run / one).is_dir()}
    held_out = [json.loads(line) for line in options.held_out.read_text(encoding="utf-8").splitlines()]
    CONSOLE.print(stages(models, held_out, options.judge, options.tokens))


if __name__ == "__main__":
    main()
