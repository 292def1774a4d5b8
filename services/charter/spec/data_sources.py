"""The data that a spec names: prompts, labelled pairs, texts and conversations, in files or data sets of the hub."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from charter.data.sources import Source
from charter.v1 import run_pb2


def data_sources(spec: run_pb2.RunSpec, base: Path = Path()) -> Iterator[tuple[str, Source]]:
    """Each source with its field; files are relative to ``base``."""
    for name in ("train", "held_out"):
        for index, value in enumerate(getattr(spec.prompts, name)):
            yield f"prompts.{name}[{index}]", Source.parse(value, base)
    if spec.judge.labelled_pairs:
        yield "judge.labelled_pairs", Source.parse(spec.judge.labelled_pairs, base)
    for field, one in _of_stages(spec):
        yield field, Source.parse(one.source, base)


def change_data_sources(spec: run_pb2.RunSpec, change: Callable[[str, Source], Source], base: Path = Path()) -> None:
    """Put what ``change`` makes of each field and source in its place."""
    changed = {field: str(change(field, source)) for field, source in data_sources(spec, base)}
    for name in ("train", "held_out"):
        values = getattr(spec.prompts, name)
        # Assigned, even nothing would make a section of a spec that has none.
        if values:
            values[:] = [changed[f"prompts.{name}[{index}]"] for index in range(len(values))]
    if spec.judge.labelled_pairs:
        spec.judge.labelled_pairs = changed["judge.labelled_pairs"]
    for field, one in _of_stages(spec):
        one.source = changed[field]


def _of_stages(spec: run_pb2.RunSpec) -> Iterator[tuple[str, run_pb2.DataSource | run_pb2.ComparedPrompts]]:
    """Of the stages before RL and of the last one; those that the spec leaves out are empty."""
    lists: dict[str, Iterable[run_pb2.DataSource | run_pb2.ComparedPrompts]] = {
        "pretraining.data": spec.pretraining.data,
        "pretraining.replay": spec.pretraining.replay,
        "supervised.data": spec.supervised.data,
        "revision.helpful": spec.revision.helpful,
        "dpo.data": spec.dpo.data,
        "kto.data": spec.kto.data,
        "evaluation.compare.prompts": spec.evaluation.compare.prompts,
    }
    for name, sources in lists.items():
        for index, one in enumerate(sources):
            yield f"{name}[{index}].source", one


def change_data_files(spec: run_pb2.RunSpec, change: Callable[[str], str]) -> None:
    """Put what ``change`` makes of the name of each file in its place; columns stay, and so do sets of the hub."""

    def moved(_: str, source: Source) -> Source:
        return source if source.of_hub else replace(source, place=change(source.place))

    change_data_sources(spec, moved)
