"""`charter audit` of a run that learned from what was there: it has no labels of its own, and no service is asked."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
from rich.markup import escape
from rich.table import Table

from charter.cli.calls import channel_to
from charter.cli.output import console, print_table, printable
from charter.cli.services import home, trainer_alone
from charter.evaluation.report.label_sources import LABEL_SOURCES, labels_in_words
from charter.rpc.channel import QUICK
from charter.rpc.errors import ServiceError
from charter.runs.artifacts import stored_files
from charter.runs.folder import RunFolder, is_run_folder, read_run_folder
from charter.runs.results import PreferenceFit
from charter.spec.facts import needs_reinforcement
from charter.v1 import trainer_pb2, trainer_pb2_grpc, types_pb2

_FIT, _STORED = "preference model", "stored comparisons"


def learned_run(run: str) -> RunFolder | None:
    """A run on this machine that only learned from what is written, or from labels of the store; None for every other.

    The trainer is asked for a name only where it was started alone, as for such runs. Raises ``RunFolderError``.
    """
    folder = _folder(run)
    # Before its first results are written a run has its spec.
    if folder is None or not (folder / "spec.json").is_file():
        return None
    found = read_run_folder(folder)
    spec = found.spec
    if spec is None or (needs_reinforcement(spec) and not spec.comparisons.stored):
        return None
    return found


def labels_taken(run: RunFolder) -> Iterator[types_pb2.Comparison]:
    """The comparisons that its stages took from the store, as they were then."""
    # Here, not at the top: who asks for help waits for none of it.
    from charter.data.bad_rows import BadRows
    from charter.data.pairs.read import PairDefaults, comparisons

    for file in stored_files(run.path):
        for _, one in comparisons(file, PairDefaults(labeller=""), BadRows()):
            yield one


def sources_json(run: RunFolder) -> list[dict[str, Any]]:
    """What it learned from, a source each."""
    found = [
        {"stage": stage, "source": source} | asdict(one)
        for stage, result in run.learned.items()
        for source, one in result.sources.items()
    ]
    if (fit := run.preference_fit) is not None:
        counts = {"train": fit.train_pairs, "held_out": fit.held_out_pairs, "left_out": fit.left_out}
        found.append({"stage": _FIT, "source": _STORED, "labels": _labels(fit)} | counts)
    return found


def print_sources(run: RunFolder) -> None:
    """What it learned from, and whose labels that has."""
    written = run.spec is None or not needs_reinforcement(run.spec)
    what = "what is written. Nobody was asked for this." if written else "labels that were in the store."
    console.print(f"[bold]{escape(run.name)}[/] made no labels: it learned from {what}", soft_wrap=True)
    table = Table("stage", "source", "learned", "held out", "left out", "labels", box=None, pad_edge=False)
    for stage, result in run.learned.items():
        for source, one in result.sources.items():
            counts = (str(one.train), str(one.held_out), one.left_out.kinds_in_words() or "nothing")
            table.add_row(stage, escape(printable(source)), *counts, labels_in_words([one]))
    if (fit := run.preference_fit) is not None:
        left_out = ", ".join(f"{count} {kind.lower()}" for kind, count in fit.left_out.items()) or "nothing"
        said = ", ".join(f"{count} of {LABEL_SOURCES[source]}" for source, count in sorted(_labels(fit).items()))
        table.add_row(_FIT, _STORED, str(fit.train_pairs), str(fit.held_out_pairs), left_out, said)
    if table.row_count:
        print_table(table)
    else:
        console.print("No stage of it is done yet.")


def _labels(fit: PreferenceFit) -> dict[str, int]:
    """How many of the labels of a fit are of which source."""
    counts: Counter[str] = Counter()
    for one in fit.mix:
        counts[one.source] += one.train_pairs + one.held_out_pairs
    return dict(counts)


def _folder(run: str) -> Path | None:
    for folder in (Path(run), home() / "runs" / run):
        if is_run_folder(folder):
            return folder
    if not trainer_alone():
        return None
    try:
        with channel_to("trainer") as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            folder = Path(stub.GetRun(trainer_pb2.GetRunRequest(run_id=run), timeout=QUICK).run.artifacts)
    except ServiceError as error:
        if error.code is grpc.StatusCode.NOT_FOUND:
            return None
        raise
    return folder if is_run_folder(folder) else None
