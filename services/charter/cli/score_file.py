"""`charter preferences score-file`: how often a preference model scores the right one of several answers highest."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli.bad_rows import OnBadRow, OnBadRowOption, bad_rows_of, tell
from charter.cli.calls import channel_to
from charter.cli.evaluation.cells import percent, would_tell
from charter.cli.output import JsonOption, console, emit_json, errors, fail, print_table
from charter.cli.preferences.preferences import AddressOption
from charter.cli.runs.report import folder_of
from charter.cli.services import endpoint, home
from charter.data.bad_rows import said
from charter.data.best_of_n import BestOfN, best_of_n
from charter.data.errors import DataError
from charter.data.sources import Source
from charter.rpc.channel import QUICK
from charter.rpc.errors import ServiceError
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from charter.evaluation.figures.best_of_n import BestOfNAccuracy, ScoredAnswers

# Draws of the intervals, and their seed.
_SAMPLES, _SEED = 2000, 0


def score_file(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="File or hub data set in the form of allenai/reward-bench-2.")
    ],
    model: Annotated[
        str,
        typer.Option(
            help="A preference_model folder, or a run (name, id or folder), to serve while this goes on. Default: what "
            "the running service has loaded."
        ),
    ] = "",
    address: AddressOption = "",
    served: Annotated[str, typer.Option(help="Which model of the running service, by its name there.")] = "",
    on_bad_row: OnBadRowOption = OnBadRow.STOP,
    as_json: JsonOption = False,
) -> None:
    """Measure a preference model: how often it scores the right one of several answers highest.

    Rows have prompt, chosen and rejected (a text, or a list of them), subset and id. Answers that share the highest
    score share the point. Scores are kept as they come: the same command goes on with the same file and weights.
    """
    # Here, not at the top: who asks for help waits for none of it.
    from charter.evaluation.figures.best_of_n import accuracy
    from charter.evaluation.statistics import NotIdentifiedError
    from charter.state_files import FolderBusyError
    from charter.worker.errors import RunError

    if model and (address or served):
        fail("--model is served by this command, --address and --served are of a running service: leave one out")
    bad = bad_rows_of(source, on_bad_row)
    try:
        pinned = Source.parse(source).pinned()
        prompts, digest = list(best_of_n(str(pinned), bad)), pinned.digest()
    except DataError as error:
        fail(error)
    tell(source, bad)
    if not prompts:
        fail(f"{source} holds no prompts" + (f"; left out: {said(bad.counts)}" if bad.counts else ""))
    try:
        measured = _with_model(prompts, digest, model) if model else _served(prompts, digest, address, served)
        found = accuracy(measured.rows, samples=_SAMPLES, seed=_SEED)
    except (ServiceError, RunError, FolderBusyError, NotIdentifiedError) as error:
        fail(error)
    if as_json:
        emit_json(_as_json(str(pinned), measured, found))
    else:
        _print(measured, found)


@dataclass(frozen=True, slots=True)
class _Measured:
    """The prompts of which every answer has its score, and how many were left out for what reason."""

    rows: "list[ScoredAnswers]"
    left_out: Counter[str]
    model: types_pb2.ModelInfo
    scores: Path


def _with_model(prompts: Sequence[BestOfN], digest: str, model: str) -> _Measured:
    from charter.spec.models import folder_digest
    from charter.state_files import alone_in

    folder = _preference_model(model)
    place = _place(digest, folder_digest(folder))
    with alone_in(place), _serving(folder, place) as address:
        return _ask(prompts, address, _info(address, "").model, "", place)


def _served(prompts: Sequence[BestOfN], digest: str, address: str, served: str) -> _Measured:
    from charter.spec.models import folder_digest
    from charter.state_files import alone_in

    address = address or endpoint("preference").main
    info = _info(address, served).model
    # Weights that a run sent have a digest, those of a folder their files.
    here = Path(info.model) if not info.weight_version and (Path(info.model) / "charter.json").is_file() else None
    weights = info.weight_digest or (folder_digest(here) if here else "")
    place = _place(digest, weights or info.model)
    with alone_in(place):
        if not weights:
            # Nobody can say that these are the weights that scored before.
            (place / "scores.jsonl").unlink(missing_ok=True)
        return _ask(prompts, address, info, served, place)


def _ask(prompts: Sequence[BestOfN], address: str, info: types_pb2.ModelInfo, served: str, place: Path) -> _Measured:
    from charter.worker.evaluation.best_of_n import score_prompts, scored_answers

    log = place / "scores.jsonl"
    with errors.status("scoring…") as status:
        found = score_prompts(
            address,
            prompts,
            served,
            info.weight_version,
            log,
            lambda done: status.update(f"scoring… {done} of {len(prompts)} prompts"),
        )
    return _Measured(*scored_answers(found), info, log)


def _info(address: str, served: str) -> preference_pb2.NamedModel:
    """Of a running service, the model of a name, or its first. Raises ``ServiceError``."""
    with channel_to("preference", address) as channel:
        stub = preference_pb2_grpc.PreferenceServiceStub(channel)
        models = stub.GetModelInfo(preference_pb2.PreferenceServiceGetModelInfoRequest(), timeout=QUICK).models
    found = next((one for one in models if not served or one.name == served), None)
    if found is None:
        fail(f"no preference model `{served}` is loaded at {address}; loaded: {', '.join(one.name for one in models)}")
    return found


def _preference_model(model: str) -> Path:
    """The folder that `--model` names: its own, or the newest of a run."""
    if (Path(model) / "charter.json").is_file():
        return Path(model).resolve()
    run = folder_of(model)
    # preference_model, then one after each refresh; a fit that is whole has written its figures.
    whole = [one for one in run.glob("preference_fit*.json") if (run / one.stem.replace("fit", "model")).is_dir()]
    if not whole:
        fail(f"{run} has no preference model: its run fits none, or did not come so far")
    newest = max(whole, key=lambda one: int(one.stem.rpartition("-")[2] or 0) if "-" in one.stem else 0)
    return (run / newest.stem.replace("fit", "model")).resolve()


@contextmanager
def _serving(folder: Path, place: Path) -> Iterator[str]:
    from charter.cli.local.meanwhile import served_meanwhile, stop_left_over

    stop_left_over(place)
    options = ["--model", str(folder), "--database", f"sqlite:///{place / 'services' / 'charter.db'}"]
    with served_meanwhile("preference", options, f"score-file-{place.name}", place, errors) as address:
        yield address


def _place(digest: str, weights: str) -> Path:
    """Where the scores of a file by these weights are kept."""
    return home() / "best-of-n" / hashlib.sha256(f"{digest}\0{weights}".encode()).hexdigest()[:16]


def _as_json(source: str, measured: _Measured, found: "BestOfNAccuracy") -> dict[str, object]:
    chances = _chances(measured.rows)
    subsets = {
        name: asdict(one) | {"chance": chances[name], "prompts_needed": one.prompts_needed(chances[name])}
        for name, one in found.subsets.items()
    }
    return {
        "file": source,
        "model": measured.model.model,
        "weight_version": measured.model.weight_version,
        "subsets": subsets,
        "ties": found.ties and asdict(found.ties),
        "mean": asdict(found.mean),
        "left_out": measured.left_out,
        "scores": str(measured.scores),
    }


def _chances(rows: "Sequence[ScoredAnswers]") -> dict[str, float]:
    """By subset, the accuracy of random scores."""
    from charter.evaluation.figures.best_of_n import by_chance

    return {name: by_chance([one for one in rows if one.subset == name]) for name in {one.subset for one in rows}}


def _print(measured: _Measured, found: "BestOfNAccuracy") -> None:
    chances = _chances(measured.rows)
    console.print(f"{escape(measured.model.model)}, weight version {measured.model.weight_version}", soft_wrap=True)
    table = Table("subset", "prompts", "accuracy", "by chance", "open", box=None, pad_edge=False)
    for name, one in found.subsets.items():
        needed = would_tell({"": one.prompts_needed(chances[name])})
        table.add_row(escape(name or "(none)"), str(one.prompts), percent(one), f"{chances[name]:.1%}", needed)
    if found.ties is not None:
        # Of siblings together, on a scale of its own.
        table.add_row("Ties", str(found.ties.score.prompts), percent(found.ties.score), "", "")
    if len(found.subsets) + (found.ties is not None) > 1:
        table.add_row("[bold]mean[/]", str(found.mean.prompts), percent(found.mean), "", "")
    print_table(table)
    if measured.left_out:
        console.print(f"left out: {escape(_in_words(measured.left_out))}", soft_wrap=True)
    console.print(f"scores: {escape(str(measured.scores))}", soft_wrap=True)


def _in_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items())
