"""Evaluations that a run's policy took part in (``charter evaluate``), as its card tells of them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from charter.evaluation.card.twin import Comparison, Declines, Interval
from charter.evaluation.compare.folder import EvaluationFolder
from charter.evaluation.compare.replies import cannot_tell
from charter.evaluation.figures.refusals import Reply
from charter.evaluation.report.model_names import model_name
from charter.runs.artifacts import COMPARISON
from charter.state_files import StateFileError
from charter.v1 import evaluation_pb2


class Evaluated(NamedTuple):
    """What evaluations say of a policy."""

    comparisons: tuple[Comparison, ...] = ()
    declines: tuple[Declines, ...] = ()
    # By evaluation: what must be said where its figures stand.
    remarks: Mapping[str, list[str]] = {}


def find_evaluations(run: Path, evaluations: Path) -> tuple[list[Path], list[StateFileError]]:
    """Folders with figures of the policy that the run in ``run`` has made: its own, and those in ``evaluations``.

    Beside them what is wrong with those that cannot be read.
    """
    folders = sorted(evaluations.glob("*/")) if evaluations.is_dir() else []
    found: list[Path] = []
    damaged: list[StateFileError] = []
    for one in (run / COMPARISON, *folders):
        try:
            if is_evaluated(run, one):
                read_evaluations(run, [one])
                found.append(one)
        except StateFileError as error:
            damaged.append(error)
    return found, damaged


def is_evaluated(run: Path, evaluation: Path) -> bool:
    """Whether an evaluation has figures of a run's policy. Raises ``StateFileError`` for a damaged spec."""
    folder = EvaluationFolder(evaluation)
    return folder.result.is_file() and bool(_names(run, folder))


def read_evaluations(run: Path, evaluations: Iterable[Path]) -> Evaluated:
    """What they say of the policy of the run in ``run``. Raises ``StateFileError`` for a damaged file."""
    comparisons: list[Comparison] = []
    declines: list[Declines] = []
    remarks: dict[str, list[str]] = {}
    for path in evaluations:
        folder = EvaluationFolder(path)
        names = _names(run, folder)
        try:
            result = json.loads(folder.result.read_text(encoding="utf-8"))
            found = [one for standing in result["standings"] for one in _comparison(standing, result, names)]
            declined = [one for figures in result["refusals"] for one in _declines(figures, result, names)]
            judges = dict.fromkeys(one.judge for one in found)
            said = [text for judge in judges for text in result["remarks"].get(judge, [])]
            said += [f"{one['judge']}: {text}" for one in result["refusals"] if (text := cannot_tell(one["entropy"]))]
            # Two may have one name: a run's own comparison has the run's.
            remarks[result["name"]] = list(dict.fromkeys([*remarks.get(result["name"], []), *said]))
        except (ValueError, KeyError, TypeError) as error:
            advice = f"`charter evaluate --figures {path}` computes the figures again"
            raise StateFileError(str(folder.result), error, advice) from error
        comparisons += found
        declines += declined
    return Evaluated(tuple(comparisons), tuple(declines), remarks)


def _names(run: Path, folder: EvaluationFolder) -> set[str]:
    """Of the models of an evaluation, those that are the run's policy."""
    spec = folder.read_spec()
    if spec is None:
        return set()
    if folder.path.resolve() == (run / COMPARISON).resolve():
        # By its name: the run's folder may have been moved since.
        return {one.name for one in spec.models if one.name == "policy"}
    return {one.name for one in spec.models if _is_policy(one, run)}


def _is_policy(model: evaluation_pb2.EvaluatedModel, run: Path) -> bool:
    if model.run:
        # A checkpoint of the run is another model.
        return not model.HasField("step") and Path(model.run).resolve() == run.resolve()
    return bool(model.model) and Path(model.model).resolve() == (run / "policy").resolve()


def _comparison(standing: dict[str, Any], result: dict[str, Any], names: set[str]) -> Iterable[Comparison]:
    rate = standing["win_rate"]
    if standing["model"] not in names or rate is None:
        return
    yield Comparison(
        evaluation=result["name"],
        against=result["start"],
        judge=standing["judge"],
        judge_model=_judge_model(standing["judge"], result),
        dimension=standing["dimension"],
        prompts=rate["win_rate"]["prompts"],
        wins=rate["wins"],
        ties=rate["ties"],
        losses=rate["losses"],
        failures=rate["failures"],
        win_rate=_interval(rate["win_rate"]),
        rating=_interval(standing["rating"]) if standing["rating"] else None,
        length_controlled=_interval(standing["length_controlled"]) if standing["length_controlled"] else None,
    )


def _declines(figures: dict[str, Any], result: dict[str, Any], names: set[str]) -> Iterable[Declines]:
    found = figures["refusals"]
    if figures["model"] not in names or found is None:
        return
    harmful, look_alike = found["harmful"], found["harmless"]
    yield Declines(
        evaluation=result["name"],
        judge=figures["judge"],
        judge_model=_judge_model(figures["judge"], result),
        harmful_answers=harmful["answers"],
        harmful=_interval(harmful["declined"]),
        harmful_evaded=_interval(harmful["shares"][Reply.DECLINES_WITHOUT]),
        look_alike_answers=look_alike["answers"],
        look_alike=_interval(look_alike["declined"]),
        look_alike_evaded=_interval(look_alike["shares"][Reply.DECLINES_WITHOUT]),
    )


def _judge_model(judge: str, result: dict[str, Any]) -> str:
    return model_name(str(result["judges"].get(judge, {}).get("model", "")))


def _interval(estimate: dict[str, Any]) -> Interval:
    return Interval(float(estimate["value"]), float(estimate["low"]), float(estimate["high"]))
