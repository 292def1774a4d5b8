"""`charter compare`: align one model in several ways on the same labelled pairs, and show what each is worth."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from charter.cli.cluster.remote import remote
from charter.cli.output import INTERRUPTED, JsonOption, console, emit_json, errors, fail
from charter.cli.services import home

if TYPE_CHECKING:
    from charter.study.folder import StudyFolder
    from charter.study.spec import CheckedStudy

StudyArgument = Annotated[
    Path, typer.Argument(metavar="STUDY", help="Study spec, a YAML file. docs/compare.md describes it.")
]
CheckOption = Annotated[bool, typer.Option("--check", help="Only find every mistake in the spec, offline.")]
FiguresOption = Annotated[
    bool,
    typer.Option(
        "--figures", help="Only compute the figures again, from what is stored; STUDY may be its folder or name."
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Begin without asking whether the time it takes is fine.")]


def compare(
    study: StudyArgument,
    check: CheckOption = False,
    figures: FiguresOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Align a model in several ways as a study says, measure them all, and draw the figure.

    Pairs are labelled once by each labeller, then each arm runs with each seed, then judges compare all policies. The
    services must be up (`charter up RUN_SPEC`). Ctrl-C stops cleanly; the same command goes on where it stopped or was
    killed. `charter compare status NAME` shows how far it is.
    """
    # Here, not at the top: who asks for help waits for none of it.
    from charter.cli.finding import study_of
    from charter.state_files import FolderBusyError, alone_in
    from charter.study.folder import StudyFolder
    from charter.study.load import load_study

    say = errors if as_json else console
    if remote():
        fail("charter compare reads the folders of its runs, which must be on this machine: leave out --context")
    try:
        if figures and not study.is_file():
            folder = study_of(str(study))
            with alone_in(folder.path):
                _show(folder, say, as_json)
            return
        if study.is_dir():
            fail(f"{study} is a folder: name the spec, a file, or compute the figures of what is stored by --figures")
        checked = load_study(study, home())
        if check:
            _say_valid(study, checked, say, as_json)
            return
        folder = StudyFolder(checked.folder)
        with alone_in(folder.path):
            if not figures:
                _carry_out(study, checked, folder, say, yes)
            _show(folder, say, as_json)
    except FolderBusyError as error:
        fail(error)
    if not figures and (missing := _missing(folder)):
        say.print(f"{missing} `charter compare {escape(str(study))}` goes on with that.", soft_wrap=True)
        raise typer.Exit(1)


def _say_valid(path: Path, study: "CheckedStudy", say: Console, as_json: bool) -> None:
    say.print(f"{escape(str(path))} is valid.", soft_wrap=True)
    for remark in study.remarks:
        say.print(escape(str(remark)), soft_wrap=True)
    for one in study.unread:
        say.print(f"Not looked into: {escape(str(one))}", soft_wrap=True)
    if as_json:
        emit_json({"valid": True, "remarks": [str(one) for one in study.remarks]})


def _carry_out(path: Path, study: "CheckedStudy", folder: "StudyFolder", say: Console, yes: bool) -> None:
    """Everything that is not done yet. Ends the command when it cannot go on, or at Ctrl-C."""
    from charter.cli.study.carrying_out import carry_out
    from charter.cli.study.running import check_services
    from charter.data.errors import DataError
    from charter.study.changes import changes
    from charter.study.runs import runs_left
    from charter.worker.errors import RunError

    if changed := changes(folder, study):
        fail(
            f"{folder.path} was begun with another study: {'; '.join(changed)}. Go back to it, or give the new one "
            "another name"
        )
    try:
        if runs_left(study.spec, folder.read_runs()):
            check_services(study)
    except RunError as error:
        fail(error)
    if not folder.spec.exists():
        _ask_whether(study, folder, say, yes)
    folder.begin(study)
    folder.start_clock()
    try:
        carry_out(study, folder, say)
    except (DataError, RunError) as error:
        fail(f"{error}\nEverything that came is in {folder.path}; `charter compare {path}` goes on")
    except KeyboardInterrupt:
        say.print(
            f"Stopped. Everything that came is in {escape(str(folder.path))}; `charter compare {escape(str(path))}` "
            "goes on.",
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    finally:
        folder.tick()


def _ask_whether(study: "CheckedStudy", folder: "StudyFolder", say: Console, yes: bool) -> None:
    """Say what it is and how long it takes, and ask. Ends the command where nobody says yes."""
    from charter.cli.study.times import Times

    for line in Times(study, folder).plan():
        say.print(line, soft_wrap=True)
    for remark in study.remarks:
        say.print(escape(str(remark)), soft_wrap=True)
    if yes:
        return
    if not sys.stdin.isatty():
        fail("nobody can be asked whether that is fine: say so by --yes")
    if not typer.confirm("Begin?", default=True, err=True):
        raise typer.Exit(1)


def _show(folder: "StudyFolder", say: Console, as_json: bool) -> None:
    """Compute the figures, write them, and show them."""
    from charter.cli.study.tables import print_results
    from charter.study.report import write_all

    spec = folder.read_spec()
    if spec is None:
        fail(f"nothing is stored in {folder.path}: `charter compare STUDY` begins it")
    if not folder.evaluation.spec.exists():
        say.print("No policy was measured yet: there is no figure.")
        if as_json:
            emit_json({"folder": str(folder.path), "report": None})
        return
    results = write_all(spec, folder)
    if as_json:
        emit_json(results.as_json() | {"folder": str(folder.path), "report": str(folder.report)})
        return
    print_results(results, say)
    say.print(str(folder.report), markup=False, soft_wrap=True)


def _missing(folder: "StudyFolder") -> str:
    """What has failed or was left out, as sentences; empty where every run has made its policy."""
    from charter.listed import listed
    from charter.study.points import missing_of

    spec = folder.read_spec()
    assert spec is not None
    missing = missing_of(spec, folder.read_runs())
    if not missing:
        return ""
    failed = [f"{arm}, seed {seed}" for arm, seed, why in missing if why != "not begun"]
    rest = [f"{arm}, seed {seed}" for arm, seed, why in missing if why == "not begun"]
    said = [f"Failed: {listed(failed)} (`charter compare status {spec.name}` says why)."] if failed else []
    return " ".join([*said, *([f"Not begun: {listed(rest)}."] if rest else [])])
