"""`charter publish`: the policy of a run and its card, to a hub or into a folder."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from charter.cli.finding import evaluation_of
from charter.cli.output import JsonOption, console, emit_json, errors, fail, print_table
from charter.cli.runs.report import folder_of
from charter.cli.services import home
from charter.evaluation.report.model_names import is_hub_id
from charter.state_files import StateFileError

if TYPE_CHECKING:
    from charter.evaluation.card.files import Publication

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="Id or name of a run, or the path of its folder.", show_default=False)
]
RepositoryArgument = Annotated[str, typer.Argument(metavar="[ORG/NAME]", help="Repository of the hub.")]
FolderOption = Annotated[
    Path | None, typer.Option("--folder", help="A new or empty folder to write into, instead of a repository.")
]
PublicOption = Annotated[bool, typer.Option("--public", help="Let everybody see the repository. Default: private.")]
EvaluationOption = Annotated[
    list[str] | None,
    typer.Option(
        "--evaluation",
        help="A `charter evaluate` of this run, by its name or folder; repeatable. Default: all in "
        "CHARTER_HOME/evaluations.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only show what would be published.")]


def publish(
    run: RunArgument,
    repository: RepositoryArgument = "",
    folder: FolderOption = None,
    public: PublicOption = False,
    evaluation: EvaluationOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Publish the policy of a run with its card: in a repository of the Hugging Face hub, or into a folder.

    The card is joined anew from what the run and its evaluations have left. A repository is made, and private unless
    --public is given; the token is that of HF_TOKEN or `hf auth login`.
    """
    if bool(repository) == (folder is not None):
        fail("say where: a repository as ORG/NAME, or --folder DIR")
    if repository and not is_hub_id(repository):
        fail(f"{repository} is no name of a repository: write ORG/NAME, ORG being a user or an organisation")
    if folder is not None:
        _check_empty(folder)
    found = _publication(folder_of(run), evaluation, repository or ".")
    if dry_run:
        where = f"{repository}, {'public' if public else 'private'}" if repository else str(folder)
        _show(found, where, as_json)
        return
    if folder is not None:
        _write(found, folder)
        place = str(folder.resolve())
    else:
        place = _push(found, repository, public)
    if as_json:
        emit_json({"published": place, "files": found.sizes()})
    else:
        console.print(f"Published: {escape(place)}", soft_wrap=True)


def _publication(run: Path, chosen: list[str] | None, repository: str) -> "Publication":
    # Here, not at the top: who asks for help waits for none of it.
    from charter.evaluation.card.evaluated import find_evaluations, is_evaluated
    from charter.evaluation.card.files import NotPublishableError, publication_of
    from charter.runs.folder import RunFolderError, read_run_folder

    try:
        if chosen is None:
            evaluations, damaged = find_evaluations(run, home() / "evaluations")
            for problem in damaged:
                errors.print(f"[yellow]An evaluation is left out: {escape(str(problem))}[/]", soft_wrap=True)
        else:
            evaluations = [evaluation_of(name).path for name in chosen]
            for one in evaluations:
                if not is_evaluated(run, one):
                    fail(f"{one} has no figures of this run's policy: `charter evaluate SPEC` makes them")
        return publication_of(read_run_folder(run), evaluations, repository)
    except (NotPublishableError, RunFolderError, StateFileError) as error:
        fail(error)


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"{folder} is there and not empty: name a new folder, so that nothing in it is lost or published")


def _show(found: "Publication", where: str, as_json: bool) -> None:
    sizes = found.sizes()
    if as_json:
        emit_json({"would_publish": where, "files": sizes})
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, size in sizes.items():
        table.add_row(escape(name), f"{size:,} bytes")
    print_table(table)
    total = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
    console.print(f"{total}, would be published: {escape(where)}. Nothing was sent.", soft_wrap=True)


def _write(found: "Publication", folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in found.model.items():
        shutil.copyfile(path, folder / name)
    for name, text in found.texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def _push(found: "Publication", repository: str, public: bool) -> str:
    """Push everything in one commit and return the address of the repository."""
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if get_token() is None:
        fail("there is no token of the hub: set HF_TOKEN to one that may write, or log in with `hf auth login`")
    api = HfApi()
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        private = api.model_info(repository).private
        if not public and not private:
            fail(
                f"{repository} is there already, and everybody can see it: say --public to publish in it, or name "
                "another repository"
            )
        if public and private:
            errors.print(
                f"[yellow]{repository} is there already, private, and stays so: --public is for new ones. Its settings "
                f"at {escape(api.endpoint)}/{repository}/settings make it public.[/]",
                soft_wrap=True,
            )
        errors.print(f"Sending {len(found.sizes())} files, {sum(found.sizes().values()):,} bytes", soft_wrap=True)
        operations = [
            *(CommitOperationAdd(name, str(path)) for name, path in found.model.items()),
            *(CommitOperationAdd(name, text.encode()) for name, text in found.texts.items()),
        ]
        api.create_commit(repository, operations, commit_message="Model and card, by charter publish")
    except HfHubHTTPError as error:
        fail(f"the hub at {api.endpoint} refuses: {_refusal(error, repository)}")
    except HFValidationError as error:
        fail(f"{repository} is no name of a repository: {error}")
    except OfflineModeIsEnabled as error:
        fail(f"HF_HUB_OFFLINE keeps the hub away: {error}")
    except httpx2.TransportError as error:
        fail(f"the hub at {api.endpoint} cannot be reached: {error}. HF_ENDPOINT names another")
    return str(made)


def _refusal(error: Exception, repository: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return (
            f"the token may not write to {repository}. Take one with the right to write there (HF_TOKEN, `hf auth "
            f"login`), or another repository. ({error})"
        )
    return str(error)
