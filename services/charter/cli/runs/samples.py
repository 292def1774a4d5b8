"""`charter samples`: from a run's rewards to the answers that got them, and from an answer to the labels behind it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from charter.atomic_files import write_text
from charter.cli.judging.audit import labels_of
from charter.cli.judging.audit_tables import PREVIEW, SHORT_ID, print_text
from charter.cli.output import JsonOption, console, emit_json, fail, print_table, printable, shortened
from charter.cli.preferences.preferences import AddressOption
from charter.cli.runs.report import RunArgument, folder_of
from charter.outcomes import side
from charter.rpc.messages import chat_messages
from charter.runs.folder import RunFolderError, read_run_folder
from charter.runs.samples import FILE, PAGE, Sample, read_samples
from charter.storage.comparisons import LABELLED, enum_name, messages_from
from charter.v1 import types_pb2

if TYPE_CHECKING:
    from charter.inference.preference_model import PreferenceModel


@dataclass(frozen=True, slots=True)
class Push:
    """A label and how much it pushed the score of an answer (``charter.evaluation.influence``)."""

    comparison: types_pb2.Comparison
    push: float


def samples(
    run: RunArgument,
    file: Annotated[
        Path | None, typer.Argument(help=f"With --html: file to write, instead of {PAGE} in the run's folder.")
    ] = None,
    step: Annotated[int | None, typer.Option(min=1, help="Only answers of this step.")] = None,
    highest: Annotated[
        bool, typer.Option("--highest", help="The highest scores first: is the preference model being exploited?")
    ] = False,
    sample: Annotated[
        str, typer.Option(help="One answer in full, by its id, and the labels that pushed its score most.")
    ] = "",
    html: Annotated[
        bool, typer.Option("--html", help="Write a page of all answers, or a step's, with coloured tokens.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Most answers, or with --sample labels each way, to list.")] = 10,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show the answers that a run scored lowest, and the labels that taught it to.

    Those of all steps, or of one. Each step keeps a few answers at either end of its scores, and some drawn by lot.
    With --sample the run's labels are ranked by how much they pushed that answer's score down and up; `charter audit
    RUN --comparison ID` then says which principle each came from. With --html everything that was kept is written to
    one page, to look through.
    """
    if file is not None and not html:
        fail(f"{file} is given without --html, which writes a page to it")
    folder = folder_of(run)
    try:
        kept = read_samples(folder)
    except FileNotFoundError:
        fail(f"{folder / FILE} is not there: there was no step of RL yet, or the run has none")
    except (OSError, ValueError) as error:
        fail(error)
    if sample:
        one = next((one for one in kept if one.id == sample), None)
        if one is None:
            fail(f"run {run} keeps no answer {sample}; `charter samples {run}` lists them")
        _show_one(folder, one, limit, address, as_json)
        return
    chosen = [one for one in kept if step is None or one.step == step]
    if not chosen:
        fail(f"run {run} has no answers of step {step}; its steps are {kept[0].step} to {kept[-1].step}")
    if html:
        _write_page(folder, chosen, file or folder / PAGE, as_json)
        return
    scored = [(one.score, one) for one in chosen if one.score is not None]
    chosen = [one for _, one in sorted(scored, key=lambda pair: pair[0], reverse=highest)[:limit]]
    if as_json:
        emit_json([asdict(one) for one in chosen])
    else:
        _print_list(run, chosen)


def _write_page(folder: Path, chosen: Sequence[Sample], file: Path, as_json: bool) -> None:
    # Here, not at the top: every other command starts without the report's libraries.
    from charter.evaluation.report.samples_page import render_samples_page

    try:
        contents = read_run_folder(folder)
        together = contents.spec.ppo.samples_per_prompt if contents.spec else 0
        write_text(file, render_samples_page(chosen, contents.name, together))
    except (RunFolderError, OSError) as error:
        fail(error)
    if as_json:
        emit_json({"page": str(file), "answers": len(chosen)})
    else:
        console.print(str(file), markup=False, soft_wrap=True)


def _show_one(folder: Path, one: Sample, limit: int, address: str, as_json: bool) -> None:
    down, up = _pushes(folder, one, limit, address)
    if as_json:
        emit_json(
            asdict(one) | {"pushed_down": [_json(entry) for entry in down], "pushed_up": [_json(entry) for entry in up]}
        )
        return
    _print_one(one)
    if not one.preference_version and one.score is not None:
        console.print(
            "\nNo preference model scored it: the judge or a service of yours did, and no label is behind that."
        )
    for title, found in (("pushed its score down", down), ("pushed its score up", up)):
        if found:
            _print_pushes(title, found)


def _pushes(folder: Path, one: Sample, limit: int, address: str) -> tuple[list[Push], list[Push]]:
    """The labels that pushed the score down most, and up most; the strongest first."""
    if not one.preference_version:
        return [], []
    # Here, not at the top: every other command starts without torch.
    import torch

    from charter.evaluation.influence import features, pushes

    # First, because it fails sooner than a model is loaded.
    labels = [label for label in labels_of(_run_id(folder), address) if label.outcome in LABELLED]
    model = _model(folder, one.preference_version)
    answer = (chat_messages(messages_from(one.prompt, "prompt")), one.answer)
    texts = [(chat_messages(label.prompt), side.text) for label in labels for side in (label.answer_a, label.answer_b)]
    read = features(model, [answer, *texts])
    found = pushes(read[0], read[1::2], read[2::2], torch.tensor([label.probability_a for label in labels]))
    ranked = sorted(
        (Push(label, push) for label, push in zip(labels, found.tolist(), strict=True)), key=lambda p: p.push
    )
    return (
        [entry for entry in ranked[:limit] if entry.push < 0],
        [entry for entry in reversed(ranked[-limit:]) if entry.push > 0],
    )


def _model(folder: Path, version: int) -> "PreferenceModel":
    """The preference model that scored the answer."""
    from charter.inference.preference_model import PreferenceModel

    path = folder / ("preference_model" if version == 1 else f"preference_model-{version - 1}")
    if not path.is_dir():
        fail(f"{path} is gone: a run keeps its first preference model and the two newest")
    return PreferenceModel.load(path).eval()


def _run_id(folder: Path) -> str:
    try:
        info = read_run_folder(folder).info
    except RunFolderError as error:
        fail(error)
    return info.id if info else folder.name


def _json(entry: Push) -> dict[str, Any]:
    label = entry.comparison
    return {
        "comparison": label.id,
        "push": entry.push,
        "outcome": enum_name("outcome", label.outcome).lower(),
        "probability_a": label.probability_a,
        "principles": [one.principle_id for one in label.judgements],
    }


def _print_list(run: str, chosen: Sequence[Sample]) -> None:
    table = Table("answer", "score", "tokens", "ended", "prompt", "what it says", box=None, pad_edge=False)
    for one in chosen:
        table.add_row(
            one.id,
            _score(one, 3),
            str(one.tokens),
            "yes" if one.ended else "no",
            escape(shortened(one.prompt[-1]["content"], PREVIEW // 2)),
            escape(shortened(one.answer, PREVIEW // 2)),
        )
    print_table(table)
    console.print(
        f"`charter samples {escape(run)} --sample ID` shows one in full, and the labels that pushed its score."
    )


def _print_one(one: Sample) -> None:
    facts = Table(box=None, show_header=False, pad_edge=False)
    ended = "ended" if one.ended else "cut off without EOS"
    for name, value in (
        ("answer", f"{one.id}, of step {one.step}"),
        ("score", _score(one, 4)),
        ("length", f"{one.tokens} tokens, {ended}"),
        ("written by", f"the policy's weight version {one.weight_version}"),
        (
            "scored by",
            f"preference model version {one.preference_version}" if one.preference_version else "no preference model",
        ),
        ("dimension", one.dimension or "none"),
        ("trace", one.trace_id or "none: traces were off"),
    ):
        facts.add_row(f"[bold]{name}[/]", escape(printable(value)))
    print_table(facts)
    for turn in one.prompt:
        print_text(f"prompt, {turn['role']}", turn["content"])
    print_text("answer", one.answer)


def _score(one: Sample, digits: int) -> str:
    return f"none, {one.failure}" if one.score is None else f"{one.score:+.{digits}f}"


def _print_pushes(title: str, found: Sequence[Push]) -> None:
    table = Table("comparison", "push", "P(A)", "principles", "preferred", title=f"Labels that {title}", box=None)
    for entry in found:
        label = entry.comparison
        preferred = {1: label.answer_a.text, 0: "neither", -1: label.answer_b.text}[side(label.probability_a)]
        table.add_row(
            label.id[:SHORT_ID],
            f"{entry.push:+.3g}",
            f"{label.probability_a:.3f}",
            escape(printable(", ".join(one.principle_id for one in label.judgements))),
            escape(shortened(preferred, PREVIEW)),
        )
    console.print()
    print_table(table)
