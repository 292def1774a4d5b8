"""How good the demo's second judge is (docs/measurements/demo.md): on labelled pairs, beside "the shorter is better".

    python -m tests.benchmarks.demo.validity ENCODER --pairs LABELLED.jsonl

`make models` makes both: .charter/models/all-minilm-l6-v2 and .charter/demo/labelled_pairs.jsonl.
"""

import argparse
import importlib.util
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from charter.data.pairs.labelled import LabelledPair, read_labelled_pairs
from rich.console import Console

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "relevance_judge.py"
# Answers of which the shorter has at least this share of the longer one's characters are of similar length.
SIMILAR = 0.8
DRAWS = 4000


def leads(encoder: Path, pairs: Sequence[LabelledPair]) -> list[float]:
    """By how much the better answer of each pair is closer to the request, in cosines."""
    module = importlib.util.spec_from_file_location("relevance_judge", EXAMPLE)
    assert module is not None
    assert module.loader is not None
    relevance_judge = importlib.util.module_from_spec(module)
    module.loader.exec_module(relevance_judge)
    model = relevance_judge.Encoder(encoder)
    asked, a, b = (
        model.embed(texts)
        for texts in (
            [pair.prompt[-1].content for pair in pairs],
            [pair.answer_a for pair in pairs],
            [pair.answer_b for pair in pairs],
        )
    )
    found = (asked * (a - b)).sum(dim=1).tolist()
    return [lead if pair.label > 0.5 else -lead for lead, pair in zip(found, pairs, strict=True)]


def with_interval(right: Sequence[bool], groups: Sequence[str]) -> str:
    """The share, with its 95 % bootstrap interval by prompt."""
    by_prompt = defaultdict(list)
    for one, group in zip(right, groups, strict=True):
        by_prompt[group].append(one)
    prompts, draw = list(by_prompt.values()), random.Random(0)
    drawn = sorted(
        fmean(one for prompt in draw.choices(prompts, k=len(prompts)) for one in prompt) for _ in range(DRAWS)
    )
    return f"{fmean(right):.2f} ({drawn[DRAWS // 40]:.2f} to {drawn[-DRAWS // 40]:.2f})"


def main() -> None:
    """Print a line for each dimension, and for each source of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--pairs", type=Path, required=True)
    arguments = parser.parse_args()
    pairs = list(read_labelled_pairs(arguments.pairs))
    found = leads(arguments.encoder, pairs)
    say = Console(width=140, highlight=False).print
    for dimension in sorted({pair.dimension for pair in pairs}):
        chosen = [(lead, pair) for lead, pair in zip(found, pairs, strict=True) if pair.dimension == dimension]
        right, groups = [lead > 0 for lead, _ in chosen], [pair.group for _, pair in chosen]
        lengths = [sorted((len(pair.answer_a), len(pair.answer_b))) for _, pair in chosen]
        alike = [place for place, (shorter, longer) in enumerate(lengths) if shorter >= SIMILAR * longer]
        shorter = [(len(pair.answer_a) < len(pair.answer_b)) == (pair.label > 0.5) for _, pair in chosen]
        say(
            f"{dimension}: {len(chosen)} pairs of {len(set(groups))} prompts, right on {with_interval(right, groups)}; "
            f"of similar length {fmean(right[place] for place in alike):.2f} of {len(alike)}; "
            f'"the shorter is better" {fmean(shorter):.2f}'
        )
        for source in dict.fromkeys(pair.source for _, pair in chosen):
            of_source = [lead > 0 for lead, pair in chosen if pair.source == source]
            say(f"  {source}: {fmean(of_source):.2f} of {len(of_source)}")


if __name__ == "__main__":
    main()
