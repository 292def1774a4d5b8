"""Comparisons per second of the judge service against one request at a time, in one run.

    python -m tests.benchmarks.judge.throughput --model FOLDER [--method choice] [--ensemble 8] [--pairs 8] [--turns 0]
        [--reason]

The service gets all pairs in one request: it judges in both orders, batches, and computes what texts share once. The
baseline has an engine of the same kind and settings, without sharing, asks it one text at a time, and in one order only
(method choice; contrast has no orders). Rounds go around both in turn, so that what else the machine does falls on both
alike. What both find for the first pair is compared: it must agree. With --reason the judge writes a rationale before
it chooses, greedily and up to 256 tokens, in each order; there rounding may change a word, and nothing is compared.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from charter.chat import ChatMessage
from charter.inference.local.engine import TransformersEngine
from charter.judge.methods import choice, contrast
from charter.judge.pairs import Pair, Question
from charter.judge.principles import draw
from charter.judge.server import JudgeConfig, build
from charter.rpc.channel import BATCH, connect
from charter.rpc.messages import proto_messages
from charter.spec.constitution import Constitution, Principle, load_constitution
from charter.v1 import judge_pb2, judge_pb2_grpc
from rich.console import Console

from tests.support.harness import running

ROOT = Path(__file__).resolve().parents[3]
CONSOLE = Console(width=120)
METHODS = {"choice": judge_pb2.JUDGING_METHOD_CHOICE, "contrast": judge_pb2.JUDGING_METHOD_CONTRAST}


def pairs(count: int, earlier_turns: int = 0) -> list[Pair]:
    """Shipped answers, each against the answer to the next question, after other questions and answers."""
    lines = (ROOT / "examples" / "labelled" / "helpful_answers.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    turns = [
        turn
        for row in rows[len(rows) - earlier_turns :]
        for turn in (ChatMessage("user", row["prompt"]), ChatMessage("assistant", row["answer"]))
    ]
    return [
        Pair((*turns, ChatMessage("user", row["prompt"])), row["answer"], other["answer"])
        for row, other in pairwise(rows[: count + 1])
    ]


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and seconds of processor time of this process: other load does not touch the latter."""

    wall: float
    processor: float

    def __sub__(self, start: "Took") -> "Took":
        return Took(self.wall - start.wall, self.processor - start.processor)


def now() -> Took:
    return Took(time.monotonic(), time.process_time())


async def one_at_a_time(
    engine: TransformersEngine, method: str, asked: list[tuple[Pair, tuple[Principle, ...]]], reason: bool
) -> None:
    """Each text in a call of its own, the next when the last is answered."""
    for pair, principles in asked:
        for principle in principles:
            question = Question(pair, principle)
            if reason:
                prompt = choice.reasoning_prompt(question, swapped=False)
                async for rationale in engine.generate([prompt], choice.RATIONALE):
                    await engine.choice_logprobs([choice.decision(prompt, rationale)], choice.LETTERS)
            elif method == "choice":
                await engine.choice_logprobs([choice.prompt(question, swapped=False)], choice.LETTERS)
            else:
                for item in contrast.items(question):
                    await engine.answer_loglikelihoods([item])


def request(asked: list[Pair], method: str, ensemble: int, seed: int, reason: bool) -> judge_pb2.CompareRequest:
    items = [
        judge_pb2.ComparisonItem(
            id=str(index), prompt=proto_messages(pair.prompt), answer_a=pair.answer_a, answer_b=pair.answer_b
        )
        for index, pair in enumerate(asked)
    ]
    options = judge_pb2.JudgingOptions(
        method=METHODS[method], ensemble_size=ensemble, seed=seed, chain_of_thought=reason
    )
    return judge_pb2.CompareRequest(items=items, options=options)


def judged(stub: judge_pb2_grpc.JudgeServiceStub, wanted: judge_pb2.CompareRequest) -> list[judge_pb2.Judgement]:
    found = {one.item_id: one.judgement for one in stub.Compare(wanted, timeout=BATCH)}
    return [found[item.id] for item in wanted.items]


async def check(
    engine: TransformersEngine, method: str, asked: list[tuple[Pair, tuple[Principle, ...]]], found: judge_pb2.Judgement
) -> None:
    """Raise ``AssertionError`` unless the plain engine finds what the service found for the first pair."""
    pair, principles = asked[0]
    # The service shows the answers in a fixed order, and undoes it.
    exchanged = pair.answer_a > pair.answer_b
    find = choice.find if method == "choice" else contrast.find
    plain = await find(engine, [Question(pair.swapped() if exchanged else pair, one) for one in principles])
    for one, other in zip(found.principles, plain, strict=True):
        expected = tuple(-number for number in other.evidence) if exchanged else other.evidence
        if exchanged and method == "choice":
            expected = expected[::-1]
        worst = max(abs(a - b) for a, b in zip(one.evidence, expected, strict=True))
        assert worst < 1e-3, f"{one.principle_id}: service and baseline differ by {worst:.2g} nats"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--constitution", type=Path, default=ROOT / "examples" / "constitutions" / "general.yaml")
    parser.add_argument("--method", choices=list(METHODS), default="choice")
    parser.add_argument("--ensemble", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--turns", type=int, default=0, help="questions and answers before the last question")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--reason", action="store_true", help="method choice: a rationale first")
    options = parser.parse_args()
    constitution: Constitution = load_constitution(options.constitution)
    chosen = pairs(options.pairs, options.turns)
    engine = TransformersEngine(options.model, share_prefixes=False)
    await engine.start()
    room = build(JudgeConfig(options.model, options.constitution, method=options.method))
    timings: dict[str, list[Took]] = {"service": [], "one at a time": []}
    with running(room) as addresses, connect(addresses.main) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        for round_ in range(options.rounds):
            asked = [
                (pair, draw(constitution.principles, options.ensemble, round_, str(index)))
                for index, pair in enumerate(chosen)
            ]
            start = now()
            wanted = request(chosen, options.method, options.ensemble, round_, options.reason)
            found = await asyncio.to_thread(judged, stub, wanted)
            timings["service"].append(now() - start)
            start = now()
            await one_at_a_time(engine, options.method, asked, options.reason)
            timings["one at a time"].append(now() - start)
            if round_ == 0 and not options.reason:
                await check(engine, options.method, asked, found[0])
    await engine.stop()
    for name, rounds in timings.items():
        each = ", ".join(f"{len(chosen) / took.wall:.3f}" for took in rounds)
        CONSOLE.print(f"{name}: {each} comparisons/s")
    pairs_of_rounds = list(zip(timings["service"], timings["one at a time"], strict=True))
    wall = statistics.median(theirs.wall / ours.wall for ours, theirs in pairs_of_rounds)
    processor = statistics.median(theirs.processor / ours.processor for ours, theirs in pairs_of_rounds)
    orders = ", both orders against one" if options.method == "choice" else ""
    reasoned = ", reasoned" if options.reason else ""
    CONSOLE.print(
        f"[bold]ratio {wall:.2f} in time, {processor:.2f} in processor time[/]: {options.method}{reasoned}, "
        f"{options.ensemble} principles, {len(chosen)} pairs, {options.turns} earlier turns{orders}"
    )


if __name__ == "__main__":
    asyncio.run(main())
