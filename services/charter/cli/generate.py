"""`charter generate`: ask the policy."""

from typing import Annotated, Any

import typer
from rich.markup import escape

from charter.cli.calls import channel_to
from charter.cli.output import JsonOption, console, emit_json, printable
from charter.rpc.channel import BATCH
from charter.v1 import policy_pb2, policy_pb2_grpc, types_pb2

PromptsArgument = Annotated[list[str], typer.Argument(help="Requests to answer, each in quotes.", metavar="PROMPT...")]
NOption = Annotated[int, typer.Option("--n", "-n", min=1, max=256, help="Answers for each prompt.")]
TemperatureOption = Annotated[float, typer.Option(min=0, max=10, help="0 is greedy.")]
TokensOption = Annotated[int, typer.Option(min=1, max=32768, help="Longest answer, in tokens.")]
SeedOption = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answers.")]


def generate(
    prompts: PromptsArgument,
    n: NOption = 1,
    temperature: TemperatureOption = 1.0,
    max_new_tokens: TokensOption = 128,
    seed: SeedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the policy that is being served answer."""
    request = policy_pb2.GenerateRequest(
        prompts=[
            policy_pb2.GenerationPrompt(messages=[types_pb2.Message(role=types_pb2.ROLE_USER, content=prompt)])
            for prompt in prompts
        ],
        sampling=policy_pb2.SamplingParameters(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed),
        samples_per_prompt=n,
    )
    with channel_to("policy") as channel:
        responses = list(policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, timeout=BATCH))
    # Answers come as they are finished.
    responses.sort(key=lambda one: (one.prompt_index, one.sample_index))
    answers = [
        {
            "prompt": prompts[one.prompt_index],
            "text": one.sample.text,
            "tokens": len(one.sample.token_ids),
            "finish_reason": policy_pb2.FinishReason.Name(one.sample.finish_reason)
            .removeprefix("FINISH_REASON_")
            .lower(),
            "weight_versions": sorted({span.weight_version for span in one.sample.version_spans}),
        }
        for one in responses
    ]
    if as_json:
        emit_json(answers)
        return
    for answer in answers:
        _print(answer)


def _print(answer: dict[str, Any]) -> None:
    versions = ", ".join(map(str, answer["weight_versions"]))
    cut = ", cut at its longest" if answer["finish_reason"] == "length" else ""
    console.rule(f"[bold]{escape(answer['prompt'])}", align="left")
    console.print(escape(printable(answer["text"])))
    console.print(f"[dim]{answer['tokens']} tokens{cut}, weight version {versions}[/]\n")
