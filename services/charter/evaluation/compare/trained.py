"""Whether a judge, or what it judges by, trained one of the models that it is asked about."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from charter.data.bad_rows import BadRows
from charter.data.prompts import prompts
from charter.data.sources import Source
from charter.listed import listed
from charter.runs.artifacts import stored_files
from charter.runs.folder import is_run_folder
from charter.spec.facts import AI, taught_by_judge
from charter.spec.load import spec_from_json
from charter.spec.paths import same_model
from charter.v1 import evaluation_pb2

# Folders of a run with policies that no judge has taught yet.
_BEFORE_JUDGE = ("pretraining", "supervised")


def training_of(model: evaluation_pb2.EvaluatedModel) -> list[dict[str, str]]:
    """Of each judge that is known to have trained a model ``judge``, its model, and ``constitution_digest``.

    The run that made it is asked: the one that is named, or the one in whose folder the model lies. Raises ``OSError``
    and ``ValueError`` for files of the run that cannot be read.
    """
    folder = Path(model.run) if model.run else _run_around(model.model)
    if folder is None or not (folder / "spec.json").is_file():
        return []
    if not model.run and Path(model.model).resolve() in [(folder / name).resolve() for name in _BEFORE_JUDGE]:
        return []
    spec = spec_from_json((folder / "spec.json").read_text(encoding="utf-8"))
    found = list(_labellers(folder))
    if taught_by_judge(spec):
        file = folder / "run.json"
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        found.append((spec.judge.model, str(record.get("constitution_digest", ""))))
    return [{"judge": judge, "constitution_digest": digest} for judge, digest in dict.fromkeys(found)]


def trained_prompts(model: evaluation_pb2.EvaluatedModel) -> set[str]:
    """Keys of the prompts that a run trained a model on, as far as their files are still here."""
    folder = Path(model.run) if model.run else _run_around(model.model)
    if folder is None or not (folder / "spec.json").is_file():
        return set()
    spec = spec_from_json((folder / "spec.json").read_text(encoding="utf-8"))
    here = [found for source in spec.prompts.train if (found := Source.parse(source).here()) is not None]
    return {prompt.key for source in here for prompt in prompts(str(source), BadRows("skip"))}


def remarks(judge: str, served: Mapping[str, Any], trained: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """What must be said wherever figures of a judge stand: sentences, none where it trained none of the models.

    Args:
        judge: its name.
        served: of it, ``model`` and ``constitution_digest``.
        trained: by name of the model, what ``training_of`` found.
    """
    model, digest = str(served.get("model", "")), str(served.get("constitution_digest", ""))

    def is_judge(one: Mapping[str, str]) -> bool:
        return bool(model) and same_model(model, one["judge"])

    def is_text(one: Mapping[str, str]) -> bool:
        return bool(digest) and digest == one["constitution_digest"]

    same_judge = [name for name, found in trained.items() if any(map(is_judge, found))]
    same_text = [name for name, found in trained.items() if any(map(is_text, found))]
    both = [name for name, found in trained.items() if any(is_judge(one) and is_text(one) for one in found)]
    kinds = (
        (both, "is the judge that trained {}, by the same principles"),
        ([name for name in same_judge if name not in both], "is the judge that trained {}, by other principles"),
        ([name for name in same_text if name not in both], "judges by the principles that trained {}"),
    )
    return [
        f"Measured by what it was trained on: {judge} {text.format(listed(names))}." for names, text in kinds if names
    ]


def _labellers(run: Path) -> Iterator[tuple[str, str]]:
    """Judges whose stored labels a run learned from, each with the digest of its constitution."""
    for file in stored_files(run):
        columns = pq.read_table(file, columns=["source", "labeller", "constitution_digest"])
        for row in columns.group_by(columns.column_names).aggregate([]).to_pylist():
            if row["source"] == AI:
                yield row["labeller"], row["constitution_digest"]


def _run_around(model: str) -> Path | None:
    folder = Path(model)
    return next((one for one in folder.parents if is_run_folder(one)), None) if model and folder.is_dir() else None
