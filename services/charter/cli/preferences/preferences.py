"""``charter preferences``: counts, exports and imports comparisons through the preference service."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli.bad_rows import OnBadRow, OnBadRowOption, bad_rows_of, tell
from charter.cli.calls import channel_to
from charter.cli.finding import run_id_of
from charter.cli.output import JsonOption, console, emit_json, errors, fail, print_table
from charter.cli.preferences.importing import check_sources, read_source, requests
from charter.data.errors import DataError
from charter.data.pairs.read import PairDefaults
from charter.data.sources import Source as DataSource
from charter.rpc.channel import BATCH, QUICK
from charter.rpc.errors import ServiceError
from charter.rpc.stalled import unless_stalled
from charter.storage.comparison_files import write_comparisons, write_rows
from charter.storage.comparison_layouts import PAIR_COLUMNS, pair_row
from charter.storage.comparisons import Row, enum_number
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2


class Source(StrEnum):
    """Where labels come from."""

    AI = "ai"
    HUMAN = "human"
    IMPORTED = "imported"


class Split(StrEnum):
    """Part of the data."""

    TRAIN = "train"
    HELD_OUT = "held-out"


class Layout(StrEnum):
    """Layout of an exported file."""

    CHARTER = "charter"
    CHOSEN_REJECTED = "chosen-rejected"


AddressOption = Annotated[
    str, typer.Option(help="The preference service, host:port. Default: that of `charter up`, port 50053.")
]
RunOption = Annotated[str, typer.Option("--run", help="Only comparisons of this run (its id or name).")]
SourceOption = Annotated[Source | None, typer.Option(help="Only labels from here.")]
SplitOption = Annotated[Split | None, typer.Option(help="Only this part of the data.")]
PrincipleOption = Annotated[str, typer.Option(help="Only comparisons judged by this principle.")]
DimensionOption = Annotated[str, typer.Option(help="Only prompts of this dimension.")]
LabelledOption = Annotated[bool, typer.Option("--labelled-only", help="Leave out INVALID and UNAVAILABLE.")]


def stats(
    address: AddressOption = "",
    run: RunOption = "",
    source: SourceOption = None,
    split: SplitOption = None,
    principle: PrincipleOption = "",
    dimension: DimensionOption = "",
    labelled_only: LabelledOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count the stored comparisons by outcome, source, dimension, principle and split."""
    chosen = chosen_comparisons(run_id_of(run, address), source, split, principle, dimension, labelled_only)
    try:
        with channel_to("preference", address) as channel:
            request = preference_pb2.GetStatsRequest(filter=chosen)
            found = preference_pb2_grpc.PreferenceServiceStub(channel).GetStats(request, timeout=QUICK)
    except ServiceError as error:
        fail(error)
    if as_json:
        emit_json(_stats_result(found))
    else:
        _print_stats(found)


def export_file(
    file: Annotated[Path, typer.Argument(help="File to write: .jsonl, .jsonl.gz or .parquet.")],
    address: AddressOption = "",
    layout: Annotated[
        Layout, typer.Option(help="charter: everything, as import reads it back. chosen-rejected: for other trainers.")
    ] = Layout.CHARTER,
    run: RunOption = "",
    source: SourceOption = None,
    split: SplitOption = None,
    principle: PrincipleOption = "",
    dimension: DimensionOption = "",
    labelled_only: LabelledOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write the stored comparisons to a file.

    An existing file is replaced when the new one is complete. The chosen-rejected layout leaves out ties and
    comparisons without a label, and says how many.
    """
    chosen = chosen_comparisons(run_id_of(run, address), source, split, principle, dimension, labelled_only)
    try:
        with channel_to("preference", address) as channel:
            comparisons = stream_comparisons(preference_pb2_grpc.PreferenceServiceStub(channel), chosen, "exporting")
            if layout is Layout.CHARTER:
                written, left_out = write_comparisons(file, comparisons), 0
            else:
                pairs = _Pairs(comparisons)
                written = write_rows(file, pairs.rows(), PAIR_COLUMNS)
                left_out = pairs.left_out
    except (ServiceError, ValueError, OSError) as error:
        fail(error)
    if as_json:
        emit_json({"file": str(file), "layout": layout.value, "written": written, "left_out": left_out})
        return
    console.print(f"{written} comparisons written to {escape(str(file))}")
    if left_out:
        console.print(f"{left_out} ties and comparisons without a label were left out")


def import_files(
    sources: Annotated[
        list[str], typer.Argument(help="Files or hub data sets (hub:ORG/NAME[:CONFIG][:SPLIT]), in any layout.")
    ],
    address: AddressOption = "",
    labeller: Annotated[
        str,
        typer.Option(
            help="Labeller of rows that do not say. Default: the file's name, or the data set with its commit."
        ),
    ] = "",
    dimension: Annotated[str, typer.Option(help="Dimension of rows that do not say: helpful, harmless, …")] = "",
    held_out_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the prompts to hold out from fits, where rows do not say.")
    ] = 0.2,
    on_bad_row: OnBadRowOption = OnBadRow.STOP,
    as_json: JsonOption = False,
) -> None:
    """Add comparisons from files; everything is checked before anything is stored.

    Reads our own export and the layouts of docs/data.md: HH-RLHF, UltraFeedback, HelpSteer, PKU-SafeRLHF, SHP, Argilla,
    Label Studio, … What is stored already is counted as a duplicate.
    """
    try:
        # What is stored is what was checked, whatever comes to the hub meanwhile.
        pinned = [DataSource.parse(source).pinned() for source in sources]
    except DataError as error:
        fail(error)
    sources = [str(source) for source in pinned]
    names = {str(source): labeller or (source.place if source.of_hub else source.name) for source in pinned}
    defaults = {source: PairDefaults(name, dimension, held_out_fraction) for source, name in names.items()}
    bad = {source: bad_rows_of(source, on_bad_row) for source in sources}
    added = duplicates = 0
    try:
        with errors.status("checking…"):
            identical = check_sources(defaults, bad)
    except DataError as error:
        fail(f"nothing was imported\n{error}")
    except OSError as error:
        fail(error)
    try:
        with channel_to("preference", address) as channel:
            stub = preference_pb2_grpc.PreferenceServiceStub(channel)
            for source in sources:
                for request in requests(read_source(source, defaults[source])):
                    answer = stub.AddComparisons(request, timeout=BATCH)
                    added += answer.added
                    duplicates += answer.duplicates
    except (ServiceError, ValueError) as error:
        stored = f" {added} comparisons had been stored before; importing again skips them." if added else ""
        fail(f"{error!s}{stored}")
    for source in sources:
        tell(source, bad[source])
        if identical[source]:
            text = f"{source}: {identical[source]} have the same answer twice: they are ties, whatever their label says"
            errors.print(text, markup=False, soft_wrap=True)
    if as_json:
        counts: Counter[str] = Counter()
        for one in bad.values():
            counts.update(one.counts)
        result: dict[str, object] = {"files": sources, "added": added, "duplicates": duplicates}
        result |= {"identical_answers": sum(identical.values())} if any(identical.values()) else {}
        emit_json(result | ({"left_out": counts} if counts else {}))
        return
    console.print(f"{added} comparisons added, {duplicates} were stored already")


def chosen_comparisons(
    run: str, source: Source | None, split: Split | None, principle: str, dimension: str, labelled_only: bool
) -> preference_pb2.ComparisonFilter:
    """What the options of a command choose."""
    chosen = preference_pb2.ComparisonFilter(
        run_id=run, principle_id=principle, dimension=dimension, labelled_only=labelled_only
    )
    if source is not None:
        chosen.source = types_pb2.LabelSource.ValueType(enum_number("source", source.name))
    if split is not None:
        chosen.split = types_pb2.Split.ValueType(enum_number("split", split.name))
    return chosen


def stream_comparisons(
    stub: preference_pb2_grpc.PreferenceServiceStub, chosen: preference_pb2.ComparisonFilter, doing: str
) -> Iterator[types_pb2.Comparison]:
    """Comparisons as they come; shows how many came, and for what."""
    request = preference_pb2.StreamComparisonsRequest(filter=chosen)
    count = 0
    with errors.status(f"{doing}…") as status:
        for page in unless_stalled(stub.StreamComparisons(request), BATCH):
            yield from page.comparisons
            count += len(page.comparisons)
            status.update(f"{doing}… {count} comparisons")


@dataclass
class _Pairs:
    """Comparisons as chosen/rejected rows; counts what has none."""

    comparisons: Iterable[types_pb2.Comparison]
    left_out: int = 0

    def rows(self) -> Iterator[Row]:
        for comparison in self.comparisons:
            if row := pair_row(comparison):
                yield row
            else:
                self.left_out += 1


def _stats_result(found: preference_pb2.GetStatsResponse) -> dict[str, object]:
    result: dict[str, object] = {"total": found.total}
    for name in ("by_outcome", "by_source", "by_dimension", "by_principle", "by_split"):
        result[name] = {entry.value: entry.count for entry in getattr(found, name)}
    labelled = found.HasField("mean_probability_a")
    result["mean_probability_a"] = found.mean_probability_a if labelled else None
    result["std_probability_a"] = found.std_probability_a if labelled else None
    return result


def _print_stats(found: preference_pb2.GetStatsResponse) -> None:
    if not found.total:
        console.print("no comparisons")
        return
    table = Table("", "", "comparisons", "share")
    table.columns[2].justify = table.columns[3].justify = "right"
    for name in ("outcome", "source", "dimension", "principle", "split"):
        entries = getattr(found, f"by_{name}")
        for index, entry in enumerate(entries):
            label = name if index == 0 else ""
            share = f"{entry.count / found.total:.1%}"
            last = index == len(entries) - 1
            table.add_row(label, escape(entry.value) or "(none)", str(entry.count), share, end_section=last)
    print_table(table)
    console.print(f"{found.total} comparisons")
    if found.HasField("mean_probability_a"):
        console.print(f"P(A is better): mean {found.mean_probability_a:.3f}, std {found.std_probability_a:.3f}")
