"""Critique and Revise: the generation steps of Constitutional AI (Bai et al. 2022, arXiv 2212.08073, section 3.1)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from charter.chat import ChatMessage
from charter.inference.engine import ContextTooLongError, Engine, Finish, GeneratedSample, Prompt, Sampling
from charter.judge.asking import ask_each, in_words
from charter.judge.drafts import Draft
from charter.judge.pairs import Usage, quoted, too_long, transcript
from charter.judge.plain_form import before_next_header, critique_text, revision_text
from charter.judge.text_generation import write_each
from charter.v1 import types_pb2


@dataclass(frozen=True, slots=True)
class Written:
    """What the model wrote, or why it wrote nothing."""

    text: str = ""
    failure: str = ""
    kind: types_pb2.FailureKind.ValueType = types_pb2.FAILURE_KIND_UNSPECIFIED
    usage: Usage = field(default_factory=Usage)
    # The token limit ended it.
    cut_off: bool = False


def critique_prompt(draft: Draft, *, plain: bool = False) -> Prompt:
    """Ask what is wrong with the answer by the principle, after its examples; ``plain`` for a base model."""
    if plain:
        return Prompt((), seed=draft.seed, text=critique_text(draft))
    turns: list[ChatMessage] = []
    for example in draft.examples():
        turns += [ChatMessage("user", _critique_request(example)), ChatMessage("assistant", example.critique)]
    return Prompt((*turns, ChatMessage("user", _critique_request(draft))), seed=draft.seed)


def revision_prompt(draft: Draft, *, plain: bool = False) -> Prompt:
    """Ask for a better answer, by the principle and the critique, after its examples; ``plain`` for a base model."""
    if plain:
        return Prompt((), seed=draft.seed, text=revision_text(draft))
    turns: list[ChatMessage] = []
    for example, shown in zip(draft.examples(), draft.principle.revisions, strict=True):
        turns += [ChatMessage("user", _revision_request(example)), ChatMessage("assistant", shown.revision)]
    return Prompt((*turns, ChatMessage("user", _revision_request(draft))), seed=draft.seed)


def _critique_request(draft: Draft) -> str:
    return f"{_shown(draft)}\n\n{draft.principle.critique}"


def _revision_request(draft: Draft) -> str:
    critique = f"\n\nCritique of the last response: {quoted(draft.critique)}" if draft.critique else ""
    return f"{_shown(draft)}{critique}\n\n{draft.principle.revise} Write only the new response."


async def write(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> list[Written]:
    """One text for each prompt, in their order."""

    async def ask(asked: Sequence[Prompt]) -> list[Written]:
        samples = await write_each(engine, asked, sampling)
        return [_written(sample, plain=bool(prompt.text)) for prompt, sample in zip(asked, samples, strict=True)]

    return await ask_each(ask, prompts, lambda error, kind: Written(failure=in_words(error), kind=kind))


def _shown(draft: Draft) -> str:
    return (
        "Here is a conversation between a user and an assistant.\n\n"
        f"{transcript(draft.prompt)}\n\nAssistant: {quoted(draft.answer)}"
    )


def _written(sample: GeneratedSample | ContextTooLongError, *, plain: bool) -> Written:
    if isinstance(sample, ContextTooLongError):
        return Written(failure=too_long(sample), kind=types_pb2.FAILURE_KIND_TOO_LONG)
    usage = Usage(*sample.usage)
    text, ended = before_next_header(sample.text) if plain else (sample.text, False)
    if not text.strip():
        return Written(failure="the model wrote nothing", kind=types_pb2.FAILURE_KIND_EMPTY, usage=usage)
    return Written(text.strip(), usage=usage, cut_off=sample.finish is Finish.LENGTH and not ended)
