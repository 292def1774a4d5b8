"""The report of a run: one HTML file that needs nothing beside it."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from charter.atomic_files import write_text
from charter.evaluation.figures.win_rate import WinRate, win_rate
from charter.evaluation.report import plots
from charter.evaluation.report.drawing import Plot
from charter.evaluation.report.label_sources import LABEL_SOURCES
from charter.evaluation.report.learned import learned_sections
from charter.evaluation.report.pages import fill
from charter.evaluation.report.verdict import judge_warnings, verdict
from charter.outcomes import side
from charter.runs import samples
from charter.runs.artifacts import COMPARISON
from charter.runs.folder import RunFolder, read_run_folder
from charter.runs.results import Calibration, Evaluation, EvaluationRow
from charter.spec.facts import algorithm_title, needs_reinforcement, used_parts
from charter.spec.load import spec_to_yaml
from charter.v1 import judge_pb2, run_pb2

# Longer answers are collapsed to this many characters.
_PREVIEW = 480
_BOOTSTRAP_SAMPLES = 2000

_OUTCOMES = {
    "invalid": "the judge did not answer with one of the options, or the pair does not fit its context",
    "empty": "an answer without text",
    "refused": "the model's chat template, or its endpoint, refuses the text",
    "unclear": "the model gave none of the options, or a number that is not finite",
    "unavailable": "the judge could not be reached",
    "missing": "the service gave no result",
    "tie": "neither answer is preferred",
    "identical": "both answers are the same text: there is nothing to prefer",
    "too long": "it does not fit the context of the model that reads it",
    "no answer": "a conversation in which the assistant says nothing",
    "fitted": "the judge's calibration was fitted on the prompt: it would be measured too well",
    "evaluated": "the prompt is one that the aligned policy is evaluated on",
}


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Judgements of one part of the held-out prompts; ``found`` is None when all of them failed."""

    name: str
    prompts: int
    found: WinRate | None


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """Seconds of one phase, and its share of the longest."""

    name: str
    seconds: float
    of_longest: float
    of_all: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that is in no figure."""

    where: str
    what: str
    count: int
    why: str


def write_report(run_folder: Path, output: Path | None = None) -> Path:
    """Write the report of a run, whole or in part, to ``report.html`` in its folder, or to ``output``.

    Returns the file's path. Raises ``RunFolderError`` when the folder is no run folder or a file in it is malformed,
    ``OSError`` when the report cannot be written.
    """
    html = render_report(read_run_folder(run_folder))
    target = output if output is not None else run_folder / "report.html"
    write_text(target, html)
    return target


def render_report(run: RunFolder) -> str:
    """The report as HTML."""
    evaluation = run.evaluation
    values = {
        "run": run,
        "aligned": _aligned(run),
        "algorithm": _algorithm(run),
        "verdict": verdict(evaluation, run.judge_check, run.preference_fit, fake=run.fake),
        "progress": _progress(run),
        "seconds": _total_seconds(run),
        "ppo_plots": plots.ppo_plots(run.ppo_steps),
        "learned": learned_sections(run),
        "fit_plots": _fit_plots(run),
        "fit_parts": _fit_parts(run),
        "label_sources": LABEL_SOURCES,
        "judge_plot": _judge_plot(run),
        "judge_warnings": judge_warnings(run.judge_check),
        "steps": run.ppo_steps,
        "samples": (run.path / samples.FILE).is_file(),
        "samples_page": samples.PAGE if (run.path / samples.PAGE).is_file() else None,
        "compared": (run.path / COMPARISON / "report.html").is_file(),
        "dimensions": _dimensions(evaluation, run.spec.seed if run.spec else 0) if evaluation else [],
        "principle_use": _principle_use(evaluation.rows) if evaluation else {},
        "phases": _phases(run),
        "left_out": _left_out(run),
        "spec_yaml": spec_to_yaml(used_parts(run.spec)) if run.spec else None,
        "judging_method": _judging_method(run),
    }
    return fill(
        "report.html",
        values,
        {"duration": duration, "readable": _readable, "preview": _preview, "preferred": _preferred},
        scripts=("report.js",),
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them: 0.4 s, 48 s, 5 min 2 s, 3 h 12 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _readable(name: str) -> str:
    """A name from code as words: OUTCOME_TIE -> tie, FITTING_PREFERENCE_MODEL -> fitting preference model."""
    for prefix in ("PHASE_", "OUTCOME_", "JUDGING_METHOD_"):
        name = name.removeprefix(prefix)
    return name.replace("_", " ").lower()


def _algorithm(run: RunFolder) -> str:
    """What the phase of RL is called."""
    return algorithm_title(run.spec.ppo) if run.spec else "RL"


def _phase(name: str, run: RunFolder) -> str:
    """A phase as words: FITTING_PREFERENCE_MODEL -> fitting preference model; RL by its algorithm."""
    words = _readable(name)
    return _algorithm(run) if words == "ppo" else words


def _preview(text: str) -> str | None:
    """The beginning of a long text, cut between words; None for a short one."""
    if len(text) <= _PREVIEW * 1.25:
        return None
    return text[:_PREVIEW].rsplit(maxsplit=1)[0].rstrip() + " …"


def _preferred(probability_after: float | None) -> str:
    """Which policy's answer a judgement prefers."""
    if probability_after is None:
        return "failed"
    return {1: "after", 0: "tie", -1: "before"}[side(probability_after)]


def _aligned(run: RunFolder) -> bool:
    """Whether the run has RL and a judge, as far as is known."""
    return run.spec is None or needs_reinforcement(run.spec)


def _progress(run: RunFolder) -> str | None:
    """How far a run came that has no evaluation; None for one that has."""
    if run.evaluation is not None or not (_aligned(run) or run.missing):
        return None
    if not run.events:
        return "It reported no progress."
    last = run.events[-1]
    phase = _phase(run_pb2.Phase.Name(last.phase), run)
    return f"The last it reported was {phase}, {last.done} of {last.total}." + (f" {last.text}" if last.text else "")


def _total_seconds(run: RunFolder) -> float | None:
    """Sum of the phases, which leaves out the time between a failure and a resume."""
    return sum(run.info.phase_seconds.values()) if run.info and run.info.phase_seconds else None


def _fit_plots(run: RunFolder) -> list[Plot]:
    fit = run.preference_fit
    if fit is None:
        return []
    return [
        plots.label_distribution(fit.labels),
        plots.fit_losses(fit),
        plots.reliability("fit-reliability", "Preference model: calibration", fit.held_out),
        *(
            plots.reliability(f"fit-reliability-{index}", f"Calibration: {name}", part)
            for index, (name, part) in enumerate(_fit_parts(run))
        ),
    ]


def _fit_parts(run: RunFolder) -> list[tuple[str, Calibration]]:
    """The held-out figures by source, then by dimension, each only where there is more than one."""
    fit = run.preference_fit
    if fit is None:
        return []
    sources = [(f"labels of {LABEL_SOURCES[name]}", part) for name, part in fit.by_source.items()]
    dimensions = [(f"dimension {name}", part) for name, part in fit.by_dimension.items()]
    return [*(sources if len(sources) > 1 else []), *(dimensions if len(dimensions) > 1 else [])]


def _judge_plot(run: RunFolder) -> Plot | None:
    if run.judge_check is None:
        return None
    return plots.reliability("judge-reliability", "Judge: calibration", run.judge_check.calibration)


def _dimensions(evaluation: Evaluation, seed: int) -> list[Breakdown]:
    """The evaluation by dimension of the prompt, in order of appearance."""
    parts: dict[str, list[float | None]] = {}
    for row in evaluation.rows:
        parts.setdefault(row.dimension or "none given", []).append(row.probability_after)
    return [
        Breakdown(
            name,
            len(probabilities),
            win_rate(probabilities, samples=_BOOTSTRAP_SAMPLES, seed=seed) if set(probabilities) != {None} else None,
        )
        for name, probabilities in parts.items()
    ]


def _principle_use(rows: Iterable[EvaluationRow]) -> dict[str, tuple[int, int]]:
    """Of each principle: judgements it took part in, and how many of these preferred the aligned policy."""
    asked: Counter[str] = Counter()
    preferred: Counter[str] = Counter()
    for row in rows:
        if row.probability_after is not None:
            asked.update(row.principles)
            if side(row.probability_after) > 0:
                preferred.update(row.principles)
    return {principle: (asked[principle], preferred[principle]) for principle in asked}


def _phases(run: RunFolder) -> list[PhaseTime]:
    order = [_phase(name, run) for name in run_pb2.Phase.DESCRIPTOR.values_by_name]
    given = {_phase(name, run): took for name, took in (run.info.phase_seconds if run.info else {}).items()}
    times = dict(sorted(given.items(), key=lambda one: order.index(one[0]) if one[0] in order else len(order)))
    longest, total = max(times.values(), default=0), sum(times.values())
    if total <= 0:
        return []
    return [PhaseTime(name, took, took / longest, took / total) for name, took in times.items()]


def _left_out(run: RunFolder) -> list[LeftOut]:
    """Everything that was counted instead of used, zero counts left away."""
    stages = {stage: counted.kinds for stage, counted in run.info.left_out.items()} if run.info else {}

    def besides(counts: dict[str, int], stage: str) -> dict[str, int]:
        """Without what the stage has counted by kind."""
        failed = ("INVALID", "UNAVAILABLE") if stages.get(stage) else ()
        return {name: count for name, count in counts.items() if name not in failed}

    sources = list(stages.items())
    if run.preference_fit:
        sources.append(("comparisons", besides(run.preference_fit.left_out, "labelling")))
    if judge := run.judge_check:
        sources.append(
            ("checking the judge", besides(judge.failures, "checking the judge") | {"fitted": judge.left_out})
        )
    if run.evaluation and "evaluation" not in stages:
        sources.append(("evaluation", run.evaluation.failures))
    return [
        LeftOut(where, _readable(outcome), count, _OUTCOMES.get(_readable(outcome), ""))
        for where, counts in sources
        for outcome, count in counts.items()
        if count
    ]


def _judging_method(run: RunFolder) -> str:
    """How pairs were compared; empty when nothing in the folder says."""
    if run.judge_check is not None:
        return _readable(run.judge_check.method)
    if run.spec is None or not run.spec.judge.method:
        return ""
    return _readable(judge_pb2.JudgingMethod.Name(run.spec.judge.method))
