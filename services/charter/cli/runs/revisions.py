"""`charter runs revisions`: what a run's judge wrote about the policy's answers, and what became of it."""

from typing import Annotated

import typer
from google.protobuf import json_format
from rich.markup import escape

from charter.cli.calls import channel_to
from charter.cli.output import JsonOption, console, shortened
from charter.cli.runs.runs import RunArgument
from charter.shown import beginning
from charter.v1 import trainer_pb2, trainer_pb2_grpc

# Characters of a text in the list, and of a prompt.
_SHOWN, _SHOWN_OF_PROMPT = 60, 30


def revisions(
    run: RunArgument,
    after: Annotated[int, typer.Option(min=0, help="Leave out rows up to this number.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """List a run's critiques and revisions, of a run under way as they come.

    With --json every row is one line of JSON, with its texts in full. --after with the number of its last row goes on
    with a list that broke off. What became of a row is known when all rounds are done.
    """
    request = trainer_pb2.WatchRevisionsRequest(run_id=run, after_row=after)
    last = after
    with channel_to("trainer") as channel:
        for response in trainer_pb2_grpc.TrainerServiceStub(channel).WatchRevisions(request):
            last = response.row
            if as_json:
                typer.echo(json_format.MessageToJson(response, preserving_proto_field_name=True, indent=None))
            else:
                _show(response)
    if last == after and not as_json:
        console.print(f"Run {escape(run)} has no {'further ' if after else ''}revisions.")


def _show(response: trainer_pb2.WatchRevisionsResponse) -> None:
    one = response.revision
    parts = (
        str(response.row),
        f"round {one.round}",
        one.principle_id,
        (one.outcome or one.verdict).replace("_", " "),
        shortened(beginning(one.prompt[-1].content, _SHOWN_OF_PROMPT), _SHOWN_OF_PROMPT + 1),
        f"-> {shortened(one.revision, _SHOWN)}",
    )
    console.print("  ".join(map(escape, parts)), soft_wrap=True)
