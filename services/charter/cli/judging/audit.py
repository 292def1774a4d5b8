"""`charter audit`: goes from a run to each of its labels, as the comparison store keeps them; nothing is recomputed."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Any

import typer

from charter.cli.calls import channel_to
from charter.cli.finding import run_id_of
from charter.cli.judging.audit_learned import labels_taken, learned_run, print_sources, sources_json
from charter.cli.judging.audit_summary import summary_of
from charter.cli.judging.audit_tables import print_comparison, print_comparisons, print_summary
from charter.cli.output import JsonOption, emit_json, fail
from charter.cli.preferences.preferences import AddressOption
from charter.rpc.channel import BATCH
from charter.rpc.stalled import unless_stalled
from charter.runs.folder import RunFolder, RunFolderError
from charter.storage.comparisons import Row, comparison_to_row
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2

_ID_LENGTH = 64

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or the name of the newest such run.")]


def audit(
    run: RunArgument,
    comparison: Annotated[
        str, typer.Option(help="Everything about one label: its id, or as much of it as no other label has.")
    ] = "",
    summary: Annotated[
        bool, typer.Option("--summary", help="Labels by principle, and where principles disagree.")
    ] = False,
    principle: Annotated[str, typer.Option(help="Only labels made by this principle.")] = "",
    dimension: Annotated[str, typer.Option(help="Only prompts of this dimension.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most labels to list, oldest first.")] = 20,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show which principle each label of a run came from, with probabilities, reasoning and model.

    Without an option the labels are listed. Everything is read from the comparison store as it was written when the
    label was made.
    """
    if comparison and summary:
        fail("give --comparison or --summary, not both")
    try:
        learned = None if address else learned_run(run)
        # A run that learns from labels of the store, and from rewards, may be given by its name.
        run_id = run_id_of(run, address) if learned is None else ""
        if learned is None and not address and run_id != run:
            learned = learned_run(run_id)
    except RunFolderError as error:
        fail(error)
    if learned is not None:
        _audit_learned(learned, comparison, summary, principle, dimension, limit, as_json)
        return
    chosen = preference_pb2.ComparisonFilter(run_id=run_id, principle_id=principle, dimension=dimension)
    if comparison:
        one = _one(chosen, comparison, address)
        if as_json:
            emit_json(_json(one))
        else:
            print_comparison(one)
        return
    labels = _stream(chosen, address) if principle or dimension else labels_of(run_id, address)
    if summary:
        result = summary_of(labels)
        if as_json:
            emit_json({"run": run_id} | result)
        else:
            print_summary(run_id, result)
        return
    listed = list(islice(labels, limit))
    if as_json:
        emit_json([_json(one) for one in listed])
    else:
        print_comparisons(listed, more=next(iter(labels), None) is not None)


def _audit_learned(
    run: RunFolder, comparison: str, summary: bool, principle: str, dimension: str, limit: int, as_json: bool
) -> None:
    """Of a run without labels of its own: what it learned from, and the labels that it took from the store."""
    labels = [one for one in labels_taken(run) if _fits(one, principle, dimension)]
    if comparison:
        one = _only(labels, run.name, comparison)
        if as_json:
            emit_json(_json(one))
        else:
            print_comparison(one)
        return
    if as_json:
        found = summary_of(labels) if summary else {"labels": [_json(one) for one in labels[:limit]]}
        emit_json({"run": run.name, "sources": sources_json(run)} | found)
        return
    print_sources(run)
    if labels and summary:
        print_summary(run.name, summary_of(labels))
    elif labels:
        print_comparisons(labels[:limit], more=len(labels) > limit)


def _fits(one: types_pb2.Comparison, principle: str, dimension: str) -> bool:
    """As the store's filter."""
    asked = not principle or any(judgement.principle_id == principle for judgement in one.judgements)
    return asked and dimension in ("", one.dimension)


def labels_of(run_id: str, address: str) -> Iterator[types_pb2.Comparison]:
    """The labels of a run, by its id; ends the command when there are none."""
    if (labels := _any(run_id, address)) is None:
        fail(f"run {run_id} has no labels yet: its pairs are judged before the preference model is fitted")
    return labels


def _any(run_id: str, address: str) -> Iterator[types_pb2.Comparison] | None:
    """The labels of a run; None when it has none."""
    labels = _stream(preference_pb2.ComparisonFilter(run_id=run_id), address)
    first = next(labels, None)
    return None if first is None else _chained(first, labels)


def _chained(first: types_pb2.Comparison, rest: Iterable[types_pb2.Comparison]) -> Iterator[types_pb2.Comparison]:
    yield first
    yield from rest


def _one(chosen: preference_pb2.ComparisonFilter, comparison_id: str, address: str) -> types_pb2.Comparison:
    """The label whose id begins so; ends the command unless there is exactly one."""
    if len(comparison_id) == _ID_LENGTH:
        chosen.id = comparison_id
    return _only(_stream(chosen, address), chosen.run_id, comparison_id)


def _only(labels: Iterable[types_pb2.Comparison], run_id: str, comparison_id: str) -> types_pb2.Comparison:
    found = list(islice((one for one in labels if one.id.startswith(comparison_id)), 2))
    if not found:
        fail(f"run {run_id} has no comparison {comparison_id}; `charter audit {run_id}` lists them")
    if len(found) > 1:
        fail(f"more than one comparison begins with {comparison_id}: give more of the id")
    return found[0]


def _stream(chosen: preference_pb2.ComparisonFilter, address: str) -> Iterator[types_pb2.Comparison]:
    with channel_to("preference", address) as channel:
        request = preference_pb2.StreamComparisonsRequest(filter=chosen)
        stub = preference_pb2_grpc.PreferenceServiceStub(channel)
        for page in unless_stalled(stub.StreamComparisons(request), BATCH):
            yield from page.comparisons


def _json(comparison: types_pb2.Comparison) -> dict[str, Any]:
    """The layout of an exported comparison."""
    row: Row = comparison_to_row(comparison)
    time = row["create_time"]
    return row | {"create_time": None if time is None else time.isoformat()}
