"""`charter prompts generate`: new prompts by the policy itself."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli.bad_rows import OnBadRow, OnBadRowOption, bad_rows_of, tell
from charter.cli.calls import channel_to
from charter.cli.output import JsonOption, console, emit_json, errors, fail, print_table, shortened
from charter.data.errors import DataError
from charter.data.prompts import TaskPrompt, read_prompts
from charter.prompts.asking import FEW_SHOT, MAGPIE, PLAIN, Wanted
from charter.prompts.figures import Figures, figures
from charter.prompts.folder import AnotherGenerationError, Folder
from charter.prompts.generation import ENOUGH, NOTHING_NEW, Generation, Limits, Options
from charter.rpc.errors import ServiceError
from charter.shown import beginning
from charter.spec.load import SpecFile
from charter.v1 import policy_pb2_grpc, run_pb2

# Of a prompt, or of a topic.
_SHOWN = 60
_TRIES_FOR_A_PROMPT = 10


class Method(StrEnum):
    """How the policy is asked."""

    FEW_SHOT = "few-shot"
    PLAIN = "plain"
    MAGPIE = "magpie"


_METHODS = {Method.FEW_SHOT: FEW_SHOT, Method.PLAIN: PLAIN, Method.MAGPIE: MAGPIE}


def generate(
    folder: Annotated[
        Path, typer.Argument(help="Where train.jsonl and held_out.jsonl are written. The same command goes on there.")
    ],
    seeds: Annotated[
        list[str] | None, typer.Option("--seeds", help="Prompts to learn from: a file or hub data set. Repeatable.")
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", help="Prompts that are held out already: none may be given away. Repeatable."),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="Run spec whose prompts.train are seeds and prompts.held_out are held out.")
    ] = None,
    method: Annotated[
        Method,
        typer.Option(
            help="few-shot: examples as turns of a chat. plain: a text that a base model goes on with. magpie: the "
            "model writes the user's turn."
        ),
    ] = Method.FEW_SHOT,
    count: Annotated[int, typer.Option(min=1, help="Prompts to make, those included that are there.")] = 100,
    tries: Annotated[int, typer.Option(min=0, help="Most tries in all. 0 = ten for each prompt.")] = 0,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many tries in a row with nothing new.")] = 100,
    dimension: Annotated[
        str, typer.Option(help="Dimension of the prompts. Default: those of the seeds, in turn; of magpie none.")
    ] = "",
    topic: Annotated[list[str] | None, typer.Option(help="What prompts are about, in turn. Repeatable.")] = None,
    topics: Annotated[Path | None, typer.Option(help="File of topics, one a line.")] = None,
    examples: Annotated[int, typer.Option(min=1, max=50, help="Seeds that each try shows.")] = 4,
    held_out_fraction: Annotated[float, typer.Option(min=0, max=0.9, help="Share of the clusters to hold out.")] = 0.1,
    least_words: Annotated[int, typer.Option(min=1, help="Shorter texts are refused.")] = 3,
    most_words: Annotated[int, typer.Option(min=1, help="Longer texts are refused.")] = 100,
    temperature: Annotated[float, typer.Option(min=0.01, max=10, help="Higher is more varied.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=32768, help="Longest text, in tokens.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and weights give the same prompts.")] = 0,
    on_bad_row: OnBadRowOption = OnBadRow.STOP,
    show: Annotated[int, typer.Option(min=0, help=f"Show so many, of each half, at most {_SHOWN} characters.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Have the policy that is being served write prompts, new and different ones.

    Refused, and counted by rule, is what is too short or long, cut off, repeats itself, is a copy or near-copy, speaks
    of the request or of roles, or would give a held-out prompt away. With fewer prompts than asked for it exits with 1.
    """
    try:
        known, kept = _known(spec, seeds or [], held_out or [], on_bad_row)
        named = [*(topic or []), *(topics.read_text(encoding="utf-8").splitlines() if topics else [])]
    except (DataError, UnicodeDecodeError) as error:
        fail(error)
    shown = known if method is Method.MAGPIE else _of_one_turn(known, dimension)
    # Nothing tells of which dimension a prompt is that was written without examples.
    given = dimension or method is Method.MAGPIE
    dimensions = [dimension] if given else list(dict.fromkeys(one.dimension for one in shown))
    about = list(dict.fromkeys(line.strip() for line in named if line.strip())) or [""]
    wanted = Wanted(_METHODS[method], seed, dimensions, about, examples, shown)
    options = Options(held_out_fraction, least_words, most_words, temperature, max_new_tokens)
    generation = Generation(wanted, options, known, kept)
    limits = Limits(count, tries or _TRIES_FOR_A_PROMPT * count, patience)
    try:
        with channel_to("policy") as channel, errors.status("asking the policy…") as status:
            there, stop = generation.run(
                policy_pb2_grpc.PolicyServiceStub(channel),
                folder,
                limits,
                lambda there: status.update(f"{len(there.prompts)} of {count} prompts, {len(there.outcomes)} tries"),
            )
    except (ServiceError, AnotherGenerationError) as error:
        fail(error)
    made = figures(there, known)
    if as_json:
        emit_json(asdict(made) | {"folder": str(folder), "stopped": stop})
    else:
        _print(there, made, show)
    if stop != ENOUGH:
        fail(_stopped(stop, there, limits))


def _known(
    spec: Path | None, seeds: list[str], held_out: list[str], on_bad_row: OnBadRow
) -> tuple[list[TaskPrompt], list[TaskPrompt]]:
    """The seeds, and what is held out. What a spec says of bad rows holds for all."""
    if spec is not None:
        file = SpecFile(spec)
        file.raise_if_wrong()
        seeds, held_out = [*seeds, *file.spec.prompts.train], [*held_out, *file.spec.prompts.held_out]
        if file.spec.failures.on_bad_row == run_pb2.ON_BAD_ROW_SKIP:
            on_bad_row = OnBadRow.SKIP
    read = [[one for source in sources for one in _read(source, on_bad_row)] for sources in (seeds, held_out)]
    known, kept = ({one.key: one for one in prompts} for prompts in read)
    return [one for key, one in known.items() if key not in kept], list(kept.values())


def _read(source: str, on_bad_row: OnBadRow) -> list[TaskPrompt]:
    bad = bad_rows_of(source, on_bad_row)
    found = read_prompts(source, bad)
    tell(source, bad)
    return found


def _of_one_turn(known: list[TaskPrompt], dimension: str) -> list[TaskPrompt]:
    """The seeds that can be shown: of one turn, and of the dimension or of none."""
    single = [one for one in known if sum(turn.role != "system" for turn in one.messages) == 1]
    shown = [one for one in single if not dimension or one.dimension in ("", dimension)]
    if not shown:
        has = ", ".join(sorted({one.dimension for one in single} - {""})) or "none"
        fail(
            f"no seed of one turn has the dimension {dimension} (they have {has})"
            if single
            else "examples are needed: name prompts of one turn by --seeds or --spec, or take --method magpie"
        )
    return shown


def _stopped(stop: str, there: Folder, limits: Limits) -> str:
    made = f"{len(there.prompts)} of {limits.count} prompts were made and are in {there.path}"
    if stop == NOTHING_NEW:
        return (
            f"the last {limits.patience} tries gave nothing new: {made}. Raise --patience to go on, or begin another "
            "folder with more seeds or topics, or a higher temperature"
        )
    return f"{limits.tries} tries are over: {made}. Raise --tries to go on"


def _print(there: Folder, made: Figures, show: int) -> None:
    sides = ", ".join(f"{made.sides.get(side, 0)} in {there.file(side)}" for side in ("train", "held_out"))
    console.print(f"{made.accepted} prompts: {sides}", markup=False, soft_wrap=True)
    share = f"{made.accepted / made.texts:.0%}" if made.texts else "none"
    console.print(f"{made.tries} tries gave {made.texts} texts; accepted {share}")
    for title, counts in (
        ("refused", {name.replace("_", " "): count for name, count in made.refused.items()}),
        ("dimension", made.dimensions if set(made.dimensions) != {""} else {}),
        ("topic", made.topics if set(made.topics) != {""} else {}),
        ("words", made.histogram if made.accepted else {}),
    ):
        if counts:
            table = Table(title, "count", box=None, pad_edge=False)
            for name, number in counts.items():
                table.add_row(escape(shortened(name or "none", _SHOWN)), str(number))
            print_table(table)
    if made.lengths:
        console.print("words at 0, 10, 50, 90, 100 %: " + ", ".join(f"{one:.0f}" for one in made.lengths))
        console.print(", ".join(f"{name} {share:.2f}" for name, share in made.distinct.items()))
    if made.nearest_seed:
        near = ", ".join(f"{one:.2f}" for one in made.nearest_seed)
        console.print(f"similarity with the nearest seed at 50, 90, 100 %: {near}")
    for one in there.prompts[:show]:
        console.print(f"[dim]{escape(one.side)}[/] {escape(shortened(beginning(one.text, _SHOWN), _SHOWN + 1))}")
