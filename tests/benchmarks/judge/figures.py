"""The tables of docs/measurements/judge.md from what `ask_figures` has found.

    python -m tests.benchmarks.judge.figures --pairs FOLDER [--output FIGURES.json] FINDINGS.jsonl ...

Every pair is measured with a calibration that was fitted on the half of the prompts to which its own does not belong.
"""

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charter.data.pairs.labelled import LabelledPair, read_labelled_pairs
from charter.evaluation.judge.calibration import position_bias_rate
from charter.evaluation.judge.fitting import fit
from charter.evaluation.judge.judged import JudgedPair, as_served, halves, probability
from charter.evaluation.judge.measurement import figures
from charter.judge.calibration import CalibrationSet
from charter.judge.judging import Task, Way, judgement_of
from charter.judge.methods import METHODS
from charter.judge.methods.mix import PARTS, combined
from charter.judge.pairs import Finding, Pair
from charter.judge.principles import draw
from charter.spec.constitution import Constitution, load_constitution
from charter.v1 import judge_pb2
from rich.console import Console

from tests.benchmarks.judge.ask_figures import CONSTITUTION, ENSEMBLE, MIRRORED, pair_id

CONSOLE = Console(width=200)
# A row of fewer prompts says nothing.
LEAST_PROMPTS = 10
# Stage, pair and principle.
Found = Mapping[tuple[str, str, str], Finding]


@dataclass(frozen=True)
class Row:
    """One row of the table: a method and what it was asked."""

    name: str
    method: str
    stage: str
    principles: int = 1


ROWS = (
    Row("choice", "choice", "choice"),
    Row("choice, ensemble of 3", "choice", "choice", ENSEMBLE),
    Row("choice, 4 few-shots", "choice", "choice, few-shots"),
    Row("choice, reasoned", "choice+reasoning", "choice, reasoned"),
    Row("verdict", "verdict", "verdict"),
    Row("contrast", "contrast", "contrast"),
    Row("contrast, ensemble of 3", "contrast", "contrast", ENSEMBLE),
    Row("mix", "mix", ""),
)


def read(paths: Sequence[Path]) -> dict[tuple[str, str, str], Finding]:
    """The findings of all files, each plain or compressed by gzip."""
    found = {}
    contents = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in paths)
    for line in (json.loads(line) for content in contents for line in content.splitlines()):
        finding = Finding(evidence=tuple(line["evidence"]), failure=line["failure"])
        found[line["stage"], line["pair"], line["principle"]] = finding
    return found


def finding_of(found: Found, row: Row, pair: str, principle: str) -> Finding | None:
    """What was found for the row; None when it was not asked yet. The mix is made of its parts."""
    if row.method != "mix":
        return found.get((row.stage, pair, principle))
    parts = {name: found.get((name, pair, principle)) for name in PARTS}
    known = {name: finding for name, finding in parts.items() if finding is not None}
    return combined(known) if len(known) == len(PARTS) else None


def judged_pairs(found: Found, row: Row, pairs: Sequence[LabelledPair], constitution: Constitution) -> list[JudgedPair]:
    """The pairs that were asked about by all principles of the row, as the judge labels them without a calibration."""
    method = METHODS[row.method]
    way = Way(method, CalibrationSet(method.default))
    judged = []
    for pair in pairs:
        principles = draw(constitution.of_dimension(pair.dimension), row.principles, 0, pair.group)
        findings = [finding_of(found, row, pair_id(pair), principle.id) for principle in principles]
        known = [finding for finding in findings if finding is not None]
        if len(known) == row.principles:
            task = Task(Pair(pair.prompt, pair.answer_a, pair.answer_b), principles)
            judged.append(JudgedPair(pair, judgement_of(task, known, way)))
    return judged


def cross_fitted(judged: Sequence[JudgedPair]) -> list[JudgedPair]:
    """Each usable pair with the probability by the calibration of the other half of the prompts."""
    one, other = ([pair for pair in half if pair.usable] for half in halves(judged))
    return [
        with_probability(pair, probability(pair.judgement, calibration))
        for part, calibration in ((one, fit(other)), (other, fit(one)))
        for pair in part
    ]


def with_probability(judged: JudgedPair, probability_a: float) -> JudgedPair:
    """The pair as if it had been labelled so."""
    judgement = judge_pb2.Judgement()
    judgement.CopyFrom(judged.judgement)
    judgement.probability_a = probability_a
    return JudgedPair(judged.pair, judgement)


def mirrored_accuracy(found: Found, row: Row, judged: Sequence[JudgedPair]) -> float | None:
    """How often the opposite question prefers the better answer: below a half when the judge reads the question."""
    leads = []
    for one in judged:
        (principle, *others) = one.judgement.principles
        evidence = list(principle.evidence)
        if row.stage == "choice":
            mirror = found.get(("choice", pair_id(one.pair), f"{principle.principle_id}{MIRRORED}"))
            evidence = [0.0, sum(mirror.evidence)] if mirror is not None and mirror.evidence else []
        if evidence and not others:
            leads.append(with_probability(one, 0.5 if evidence[1] == 0 else float(evidence[1] > 0)))
    opposite = row.method in ("verdict", "contrast") or row.stage == "choice"
    return figures(leads, as_served)["accuracy"] if leads and opposite else None


def bias_rate(judged: Sequence[JudgedPair]) -> float:
    """The share of judgements in which the same position won in both orders, before any calibration."""
    evidence = [one.evidence for item in judged for one in item.judgement.principles if one.evidence]
    firsts, seconds = zip(*((float(first > 0), float(second > 0)) for first, second in evidence), strict=True)
    return position_bias_rate(firsts, seconds)


def measured(found: Found, row: Row, judged: Sequence[JudgedPair]) -> dict[str, Any]:
    """Everything about a row, as JSON."""
    calibrated = cross_fitted(judged)
    by_source = defaultdict(list)
    for one in calibrated:
        by_source[one.pair.source].append(one)
    return {
        "as_served": figures(judged, as_served),
        "calibrated": figures(calibrated, as_served),
        "mirrored_accuracy": mirrored_accuracy(found, row, judged),
        "position_bias_rate": bias_rate(judged) if row.method == "choice" else None,
        "failures": sum(not one.usable for one in judged),
        "by_source": {name: figures(part, as_served)["accuracy"] for name, part in sorted(by_source.items())},
    }


def table(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Markdown, a line for each row."""
    yield (
        "| method | pairs | right | calibrated | of similar length | mirrored | same position wins | Brier score, "
        "before and after | ECE, before and after | by chance |"
    )
    yield "| --- " * 10 + "|"
    for name, found in results.items():
        before, after = found["as_served"], found["calibrated"]
        similar = after["similar_length_accuracy"]
        cells = (
            name,
            f"{before['pairs']} of {before['prompts']} prompts",
            f"{before['accuracy']:.2f} ({before['accuracy_low']:.2f} to {before['accuracy_high']:.2f})",
            f"{after['accuracy']:.2f} ({after['accuracy_low']:.2f} to {after['accuracy_high']:.2f})",
            "" if similar is None else f"{similar:.2f} of {after['similar_length_pairs']}",
            *("" if found[key] is None else f"{found[key]:.2f}" for key in ("mirrored_accuracy", "position_bias_rate")),
            f"{before['brier']:.3f}, {after['brier']:.3f}",
            f"{before['expected_calibration_error']:.3f}, {after['expected_calibration_error']:.3f}",
            f"{after['calibration_error_by_chance']:.3f}",
        )
        yield f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a table for each kind of pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("findings", type=Path, nargs="+")
    parser.add_argument("--pairs", type=Path, required=True, help="folder that make_pairs has written")
    parser.add_argument("--output", type=Path, help="write all figures here, as JSON")
    options = parser.parse_args()
    found, constitution = read(options.findings), load_constitution(CONSTITUTION)
    everything = {}
    for path in sorted(options.pairs.glob("*.jsonl")):
        pairs = read_labelled_pairs(path)
        asked = {row.name: judged_pairs(found, row, pairs, constitution) for row in ROWS}
        enough = [row for row in ROWS if len({one.pair.group for one in asked[row.name]}) >= LEAST_PROMPTS]
        results = {row.name: measured(found, row, asked[row.name]) for row in enough}
        everything[path.stem] = results
        largest = max((one["as_served"] for one in results.values()), key=lambda one: int(one["pairs"]))
        shorter, similar = largest["shorter_is_better_accuracy"], largest["similar_length_shorter_accuracy"]
        CONSOLE.print(f"{path.stem}: the shorter is better {shorter:.2f}, of similar length {similar:.2f}")
        CONSOLE.print("\n".join(table(results)), soft_wrap=True, markup=False, highlight=False)
    if options.output is not None:
        options.output.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
