"""`charter judge critique` and `charter judge revise`: what the judge writes about an answer, by a principle."""

from typing import Annotated

import typer
from rich.markup import escape

from charter.chat import ChatMessage
from charter.cli.calls import channel_to
from charter.cli.output import JsonOption, console, emit_json, fail, printable
from charter.rpc.channel import BATCH
from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, judge_pb2_grpc

PromptOption = Annotated[str, typer.Option(help="The user's request.")]
AnswerOption = Annotated[str, typer.Option(help="The answer to write about.")]
PrincipleOption = Annotated[str, typer.Option(help="The principle to write by. Default: one drawn at random.")]
DimensionOption = Annotated[str, typer.Option(help="Draw only principles of this dimension.")]
InstructionOption = Annotated[str, typer.Option(help="Write by this instruction instead of the constitution.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of the draw of principles, and of what is written.")]
TokensOption = Annotated[int, typer.Option(min=1, max=32768, help="Longest text, in tokens.")]
TemperatureOption = Annotated[float, typer.Option(min=0, max=10, help="0 is greedy.")]
AddressOption = Annotated[
    str, typer.Option(help="The judge service, host:port. Default: that of `charter up`, port 50052.")
]


def critique(
    prompt: PromptOption,
    answer: AnswerOption,
    principle: PrincipleOption = "",
    dimension: DimensionOption = "",
    instruction: InstructionOption = "",
    seed: SeedOption = 0,
    max_new_tokens: TokensOption = 256,
    temperature: TemperatureOption = 1.0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Criticise an answer by a principle."""
    request = judge_pb2.CritiqueRequest(
        items=[_item(prompt, answer)],
        options=_options(principle, dimension, instruction, seed),
        limits=judge_pb2.SamplingLimits(max_new_tokens=max_new_tokens, temperature=temperature),
    )
    with channel_to("judge", address) as channel:
        (found,) = judge_pb2_grpc.JudgeServiceStub(channel).Critique(request, timeout=BATCH)
    _show("critique", found.critique, found, as_json)


def revise(
    prompt: PromptOption,
    answer: AnswerOption,
    critique: Annotated[str, typer.Option(help="What to change, as `charter judge critique` says it.")],
    principle: PrincipleOption = "",
    dimension: DimensionOption = "",
    instruction: InstructionOption = "",
    seed: SeedOption = 0,
    max_new_tokens: TokensOption = 256,
    temperature: TemperatureOption = 1.0,
    address: AddressOption = "",
    as_json: JsonOption = False,
) -> None:
    """Rewrite an answer by a principle and a critique of it.

    The same --seed and --principle as for the critique give the same principle.
    """
    request = judge_pb2.ReviseRequest(
        items=[_item(prompt, answer, critique)],
        options=_options(principle, dimension, instruction, seed),
        limits=judge_pb2.SamplingLimits(max_new_tokens=max_new_tokens, temperature=temperature),
    )
    with channel_to("judge", address) as channel:
        (found,) = judge_pb2_grpc.JudgeServiceStub(channel).Revise(request, timeout=BATCH)
    _show("revision", found.revision, found, as_json)


def _item(prompt: str, answer: str, critique: str = "") -> judge_pb2.AnswerItem:
    messages = proto_messages([ChatMessage("user", prompt)])
    return judge_pb2.AnswerItem(id="0", prompt=messages, answer=answer, critique=critique)


def _options(principle: str, dimension: str, instruction: str, seed: int) -> judge_pb2.JudgingOptions:
    return judge_pb2.JudgingOptions(principle_id=principle, dimension=dimension, instruction=instruction, seed=seed)


def _show(what: str, text: str, written: judge_pb2.CritiqueResponse | judge_pb2.ReviseResponse, as_json: bool) -> None:
    """Print what was written, and whether the token limit ended it; ends the command with 1 when there is nothing."""
    principle, failure, cut_off = written.principle_id, written.failure, written.cut_off
    if as_json:
        emit_json({what: text, "principle_id": principle, "failure": failure, "cut_off": cut_off})
    elif text:
        limit = ", cut off by --max-new-tokens" if cut_off else ""
        console.print(f"{escape(printable(text))}\n[dim]{what} by {escape(principle)}{limit}[/]")
    if failure:
        fail(f"no {what} was written: {failure}")
