"""Asks the judge about the labelled pairs of docs/measurements/judge.md by every method, into a file that is kept.

    python -m tests.benchmarks.judge.ask_figures --model FOLDER --pairs FOLDER --output FINDINGS.jsonl [--part 0/2]

Within a stage the prompts come in a fixed random order, so that what is there after a stop is a fair sample. Each line
is what one method found for one pair by one principle, without any text of the pair. Started again, it goes on where it
stopped. `figures` makes the tables from these lines.
"""

import argparse
import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO

from charter.data.pairs.labelled import LabelledPair, read_labelled_pairs
from charter.inference.engine import Engine
from charter.inference.local.engine import TransformersEngine
from charter.judge.methods import choice, contrast, verdict
from charter.judge.pairs import Finding, Pair, Question
from charter.judge.principles import draw
from charter.spec.constitution import Constitution, Example, Principle, load_constitution
from rich.console import Console

ROOT = Path(__file__).resolve().parents[3]
CONSTITUTION = ROOT / "examples" / "constitutions" / "general.yaml"
FEW_SHOTS = Path(__file__).with_name("few_shots.json")
CONSOLE = Console(width=120)
# Principles of an ensemble; the first of them is the one that a single label is made by.
ENSEMBLE = 3
MIRRORED = ", mirrored"
# Those of several prompts, if need be: the engine writes rationales for them side by side.
PAIRS_OF_A_CALL = 16


@dataclass(frozen=True)
class Stage:
    """One method, asked about all pairs."""

    name: str
    find: Callable[[Engine, Sequence[Question]], Awaitable[list[Finding]]]
    # Which of the principles drawn for a prompt.
    principles: slice
    few_shots: bool = False
    # The first is also asked the other way round. (Verdict and contrast do that by themselves.)
    mirrored: bool = False


FIRST, ALL = slice(0, 1), slice(0, ENSEMBLE)
STAGES = (
    Stage("contrast", contrast.find, ALL),
    Stage("choice", choice.find, ALL, mirrored=True),
    Stage("verdict", verdict.find, FIRST),
    Stage("choice, few-shots", choice.find, FIRST, few_shots=True),
    Stage("choice, reasoned", choice.find_by_reasoning, FIRST),
)


def pair_id(pair: LabelledPair) -> str:
    """A digest of what is compared."""
    return hashlib.sha256("\x00".join((pair.group, pair.answer_a, pair.answer_b)).encode()).hexdigest()[:16]


def in_random_order(pairs: Sequence[LabelledPair]) -> list[list[LabelledPair]]:
    """The pairs of each prompt; prompts by a hash that never changes."""
    groups: dict[str, list[LabelledPair]] = defaultdict(list)
    for pair in pairs:
        groups[pair.group].append(pair)
    return [groups[name] for name in sorted(groups, key=lambda name: hashlib.sha256(name.encode()).hexdigest())]


def finished(path: Path) -> set[tuple[str, str, str]]:
    """What the file holds: stage, pair and principle of each line. A line that a kill cut off is removed."""
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    path.write_bytes(whole)
    return {(line["stage"], line["pair"], line["principle"]) for line in map(json.loads, whole.splitlines())}


def bunches(groups: Sequence[list[LabelledPair]]) -> Iterator[list[LabelledPair]]:
    """Pairs of whole prompts for a call."""
    bunch: list[LabelledPair] = []
    for group in groups:
        bunch = [*bunch, *group]
        if len(bunch) >= PAIRS_OF_A_CALL:
            yield bunch
            bunch = []
    if bunch:
        yield bunch


async def ask(
    engine: Engine,
    stage: Stage,
    pairs: Sequence[LabelledPair],
    constitution: Constitution,
    done: set[tuple[str, str, str]],
    output: IO[str],
) -> int:
    """Ask what is not in ``done`` about these pairs, in one call; returns the number of answers."""
    wanted = [
        (pair, principle)
        for pair in pairs
        for principle in principles_of(constitution, stage, pair)
        if (stage.name, pair_id(pair), principle.id) not in done
    ]
    questions = [Question(Pair(pair.prompt, pair.answer_a, pair.answer_b), principle) for pair, principle in wanted]
    found = await stage.find(engine, questions) if questions else []
    lines = [
        {"stage": stage.name, "pair": pair_id(pair), "principle": principle.id, "seconds": round(time.time())}
        # A rationale about harmful text may repeat it.
        | {name: value for name, value in asdict(one).items() if not name.startswith("rationale")}
        for (pair, principle), one in zip(wanted, found, strict=True)
    ]
    output.write("".join(json.dumps(line) + "\n" for line in lines))
    output.flush()
    done.update((stage.name, pair_id(pair), principle.id) for pair, principle in wanted)
    return len(lines)


def mirrored(principle: Principle) -> Principle:
    """The same question to two answers, to be answered with the worse one: a judge that reads it changes sides."""
    question = f"{principle.compare} Choose the other response, the one that does worse by this question."
    return replace(principle, id=f"{principle.id}{MIRRORED}", compare=question)


def principles_of(constitution: Constitution, stage: Stage, pair: LabelledPair) -> list[Principle]:
    """Drawn by the prompt, so that the texts of its pairs have much in common."""
    drawn = draw(constitution.of_dimension(pair.dimension), ENSEMBLE, 0, pair.group)[stage.principles]
    if stage.mirrored:
        return [*drawn, mirrored(drawn[0])]
    if not stage.few_shots:
        return list(drawn)
    return [replace(principle, examples=few_shots(pair.dimension)) for principle in drawn]


@cache
def few_shots(dimension: str) -> tuple[Example, ...]:
    """What is shown before a pair of this dimension."""
    shown = json.loads(FEW_SHOTS.read_text(encoding="utf-8"))[dimension]
    return tuple(Example(**one) for one in shown)


async def main() -> None:
    """Ask every stage about every pair of this part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="folder that make_pairs has written")
    parser.add_argument("--output", type=Path, required=True, help="lines are added to this file")
    parser.add_argument("--part", default="0/1", help="I/N: only the prompts I, I + N, I + 2 N ...")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    pairs = [pair for path in sorted(options.pairs.glob("*.jsonl")) for pair in read_labelled_pairs(path)]
    groups = in_random_order(pairs)[part::parts]
    total = sum(map(len, groups))
    constitution = load_constitution(CONSTITUTION)
    engine = TransformersEngine(options.model, max_batch_tokens=24576)
    await engine.start()
    done = finished(options.output)
    with options.output.open("a", encoding="utf-8") as output:
        for stage in STAGES:
            start = time.monotonic()
            answers = 0
            seen = 0
            for bunch in bunches(groups):
                answers += await ask(engine, stage, bunch, constitution, done, output)
                seen += len(bunch)
                CONSOLE.print(
                    f"{stage.name}: {seen} of {total} pairs, {answers} answers in {time.monotonic() - start:.0f} s",
                    highlight=False,
                )
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(main())
