"""`charter feedback`: the page where people compare answers and chat."""

import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from charter.cli.bad_rows import OnBadRow, OnBadRowOption, bad_rows_of, tell
from charter.cli.finding import evaluation_of, run_id_of, study_of
from charter.cli.output import console, fail
from charter.cli.services import endpoint, home
from charter.feedback.labellers import Labellers, LabellersError, add_labeller, load_labellers
from charter.rpc.errors import ServiceError
from charter.spec.constitution import load_constitution
from charter.state_files import FolderBusyError

if TYPE_CHECKING:
    from charter.feedback.room import FeedbackConfig

LabellerOption = Annotated[
    list[str] | None,
    typer.Option("--labeller", help="Someone who labels; gets a token at the first time. Repeatable."),
]
LabellersOption = Annotated[
    Path | None,
    typer.Option("--labellers", help='JSON file {"name": "token"}. Default: feedback/labellers.json in CHARTER_HOME.'),
]
PairsOption = Annotated[
    list[str] | None, typer.Option("--pairs", help="File or hub data set of pairs to compare. Repeatable.")
]
RunOption = Annotated[
    str, typer.Option("--run", help="Compare the pairs of this run (id or name), blind to its labels.")
]
EvaluationOption = Annotated[
    str,
    typer.Option("--evaluation", help="Compare the models of an evaluation (folder or name), blind; votes stay in it."),
]
StudyOption = Annotated[
    str, typer.Option("--study", help="Label the pairs of a study of `charter compare` (folder or name), blind.")
]
CountOption = Annotated[
    int | None, typer.Option(min=1, help="Only so many pairs of the evaluation, as many of all models.")
]
SecondOption = Annotated[float, typer.Option(min=0, max=1, help="Share of the pairs that a second person labels too.")]
ConstitutionOption = Annotated[
    Path | None, typer.Option(help="Constitution whose principles a labeller can name as the one that decided.")
]
GuidedOption = Annotated[bool, typer.Option("--guided", help="Show a principle to judge each pair by.")]
TemperatureOption = Annotated[float, typer.Option(min=0.01, max=10, help="Of the answers in chats.")]
TokensOption = Annotated[int, typer.Option(min=1, max=32768, help="Longest answer in chats, in tokens.")]
PolicyOption = Annotated[str, typer.Option("--policy", help="The policy service, host:port.")]
PreferenceOption = Annotated[str, typer.Option("--preference", help="The preference service, host:port.")]
HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")]
PortOption = Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")]


def feedback(
    labeller: LabellerOption = None,
    labellers: LabellersOption = None,
    pairs: PairsOption = None,
    on_bad_row: OnBadRowOption = OnBadRow.STOP,
    run: RunOption = "",
    evaluation: EvaluationOption = "",
    study: StudyOption = "",
    count: CountOption = None,
    second_share: SecondOption = 0.2,
    constitution: ConstitutionOption = None,
    guided: GuidedOption = False,
    temperature: TemperatureOption = 1.0,
    max_new_tokens: TokensOption = 256,
    policy: PolicyOption = "",
    preference: PreferenceOption = "",
    host: HostOption = "127.0.0.1",
    port: PortOption = 8600,
) -> None:
    """Serve the page where people chat with the policy and compare answers.

    It runs until Ctrl-C. Prints a sign-in link for each labeller. Labels go to the preference service, votes on an
    evaluation or a study into its folder; what was not sent stays in the browser and is sent later.
    """
    # Here, not at the top: who asks for help waits for no numpy and no web server.
    from charter.feedback.room import FeedbackConfig

    if guided and constitution is None:
        fail("--guided needs --constitution, the file whose principles are shown")
    for option, given in (("--evaluation", evaluation), ("--study", study)):
        if given and (pairs or run):
            fail(f"{option} has a queue and a place for votes of its own: leave --pairs and --run out")
    if evaluation and study:
        fail("give --evaluation or --study, not both")
    if count is not None and not evaluation:
        fail("--count is for --evaluation")
    known = _labellers(labellers or home() / "feedback" / "labellers.json", labeller or [])
    config = FeedbackConfig(
        policy=policy or endpoint("policy").main,
        preference=preference or endpoint("preference").main,
        labellers=known,
        chats=home() / "feedback" / "chats.jsonl",
        files={source: bad_rows_of(source, on_bad_row) for source in pairs or ()},
        run=run_id_of(run, preference),
        evaluation=evaluation_of(evaluation) if evaluation else None,
        most=count,
        study=study_of(study) if study else None,
        second_share=second_share,
        constitution=None if constitution is None else load_constitution(constitution).to_proto(),
        guided=guided,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
    )
    asyncio.run(_serve(config, host, port))


async def _serve(config: "FeedbackConfig", host: str, port: int) -> None:
    import uvicorn

    from charter.feedback.app import build
    from charter.feedback.room import Room

    room = Room(config)
    try:
        await room.start()
    except (ServiceError, FolderBusyError, OSError, ValueError) as error:
        await room.stop()
        fail(error)
    for source, bad in config.files.items():
        tell(source, bad)
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        await room.stop()
        fail(f"cannot listen on {host}:{port}: {error.strerror}. Stop what listens there, or use another --port")
    shown = "localhost" if host == "0.0.0.0" else host
    for name, token in room.labellers.tokens.items():
        console.print(f"{escape(name)}: http://{shown}:{port}/#token={token}", soft_wrap=True)
    console.print("Ctrl-C stops the page.")
    server = uvicorn.Server(uvicorn.Config(build(room), log_level="warning", lifespan="off"))
    try:
        await server.serve(sockets=[listening])
    finally:
        await room.stop()


def _labellers(file: Path, names: list[str]) -> Labellers:
    try:
        known = load_labellers(file)
        for name in names:
            known = add_labeller(file, name)
    except (LabellersError, OSError) as error:
        fail(error)
    if not known.tokens:
        fail("nobody may label yet: name someone with --labeller NAME")
    return known
