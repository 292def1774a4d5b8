"""Whether a judge, or what it judges by, trained one of the models that it is asked about."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charter.data.bad_rows import BadRows
from charter.data.prompts import prompts
from charter.data.sources import Source
from charter.runs.folder import is_run_folder
from charter.spec.facts import AI, label_sources
from charter.spec.load import spec_from_json
from charter.spec.paths import same_model
from charter.v1 import evaluation_pb2, run_pb2


def training_of(model: evaluation_pb2.EvaluatedModel) -> dict[str, str]:
    """``judge`` and ``constitution_digest`` that trained a model; nothing where no judge is known to have.

    The run that made it is asked: the one that is named, or the one in whose folder the model lies. Raises ``OSError``
    and ``ValueError`` for files of the run that cannot be read.
    """
    folder = Path(model.run) if model.run else _run_around(model.model)
    if folder is None or not (folder / "spec.json").is_file():
        return {}
    spec = spec_from_json((folder / "spec.json").read_text(encoding="utf-8"))
    if not _taught_by_judge(spec):
        return {}
    file = folder / "run.json"
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"judge": spec.judge.model, "constitution_digest": str(record.get("constitution_digest", ""))}


def trained_prompts(model: evaluation_pb2.EvaluatedModel) -> set[str]:
    """Keys of the prompts that a run trained a model on, as far as their files are still here."""
    folder = Path(model.run) if model.run else _run_around(model.model)
    if folder is None or not (folder / "spec.json").is_file():
        return set()
    spec = spec_from_json((folder / "spec.json").read_text(encoding="utf-8"))
    here = [found for source in spec.prompts.train if (found := Source.parse(source).here()) is not None]
    return {prompt.key for source in here for prompt in prompts(str(source), BadRows("skip"))}


def remarks(judge: str, served: Mapping[str, Any], trained: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What must be said wherever figures of a judge stand: sentences, none where it trained none of the models.

    Args:
        judge: its name.
        served: of it, ``model`` and ``constitution_digest``.
        trained: by name of the model, what ``training_of`` found.
    """
    model, digest = str(served.get("model", "")), str(served.get("constitution_digest", ""))
    known = {name: one for name, one in trained.items() if one}
    same_judge = [name for name, one in known.items() if model and same_model(model, one["judge"])]
    same_text = [name for name, one in known.items() if digest and digest == one["constitution_digest"]]
    both = [name for name in same_judge if name in same_text]
    kinds = (
        (both, "is the judge that trained {}, by the same principles"),
        ([name for name in same_judge if name not in both], "is the judge that trained {}, by other principles"),
        ([name for name in same_text if name not in both], "judges by the principles that trained {}"),
    )
    return [
        f"Measured by what it was trained on: {judge} {text.format(_joined(names))}." for names, text in kinds if names
    ]


def _taught_by_judge(spec: run_pb2.RunSpec) -> bool:
    """Whether a stored spec let the judge label, rate or revise, and not only compare at the end."""
    rates = spec.reward.judge_weight > 0 or spec.ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO
    labels = spec.reward.preference_weight > 0 and AI in label_sources(spec.feedback)
    return bool(spec.judge.model) and (rates or labels or spec.HasField("revision"))


def _run_around(model: str) -> Path | None:
    folder = Path(model)
    return next((one for one in folder.parents if is_run_folder(one)), None) if model and folder.is_dir() else None


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
