"""The protocol that every inference engine speaks, and the values that cross it."""

import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from charter.chat import ChatMessage


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its text alone (a part of a character is U+FFFD), and its log-prob where it stands, in nats.

    The first token of a prompt has no log-prob.
    """

    token_id: int
    text: str
    logprob: float | None


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """The token that stands in a place of a text, and the likeliest there, the likeliest first."""

    token: TokenLogprob
    top: tuple[TokenLogprob, ...]


# Called on the event loop with prompt index, sample index, an answer's text so far, and the tokens that were written
# since the call before (where ``Sampling.top_logprobs`` asks for them).
OnText = Callable[[int, int, str, Sequence[TokenPlace]], None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to continue with the assistant's turn, or a plain ``text`` to go on with and no messages.

    With ``as_user`` the user's next turn is written instead, of which the messages may be none.
    Special tokens that a ``text`` spells are not read as such. ``assistant_prefix`` is text that the assistant's turn
    already starts with, for example ``"The answer is ("``. ``seed`` fixes the random numbers of its answers, whatever
    else is in the call; without one ``Sampling.seed`` and the prompt's place in the call do. ``raw`` takes the place of
    both: a text whose special tokens are read, or token ids, exactly as they stand.
    """

    messages: tuple[ChatMessage, ...]
    assistant_prefix: str = ""
    seed: int | None = None
    text: str = ""
    as_user: bool = False
    raw: str | tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample. Log-probs are those of the full distribution at ``temperature``.

    Without ``max_new_tokens`` an answer may fill the model's context. An answer ends before the first of ``stop`` in
    it. With ``top_logprobs`` samples have their ``places``, with as many of the likeliest tokens in each.
    """

    max_new_tokens: int | None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None

    def most_tokens(self, prompts: Sequence[Sequence[int]], context: int) -> list[int]:
        """Most tokens of the answer to each prompt. Raises ``ContextTooLongError`` for one that does not fit."""
        for index, ids in enumerate(prompts):
            needed = len(ids) + (self.max_new_tokens or 1)
            if needed > context:
                raise ContextTooLongError(index, needed, context)
        return [self.max_new_tokens or context - len(ids) for ids in prompts]

    def sample_seed(self, prompt: Prompt, prompt_index: int, sample_index: int) -> int | None:
        """Seed in [0, 2^63) of one answer's own random numbers; None when nothing was fixed."""
        if prompt.seed is not None:
            return random.Random(f"{prompt.seed} {sample_index}").getrandbits(63)
        if self.seed is not None:
            return random.Random(f"{self.seed} {prompt_index} {sample_index}").getrandbits(63)
        return None


class Finish(Enum):
    """Why a sample ended."""

    EOS = "eos"
    LENGTH = "length"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Tokens ``[start, end)`` of a sample were written by ``version``."""

    start: int
    end: int
    version: int


@dataclass(frozen=True, slots=True)
class GeneratedSample:
    """One finished answer.

    ``token_ids`` and ``logprobs`` have the same length; the EOS token, when sampled, is the last of them and
    is not in ``text``, nor is the text of ``Sampling.stop`` that ended it. ``logprobs`` are in nats, at the sampling
    temperature (at 1 for greedy sampling).
    """

    prompt_index: int
    sample_index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    version_spans: tuple[VersionSpan, ...]
    prompt_token_ids: tuple[int, ...]
    # One for each of token_ids where Sampling.top_logprobs asks for them.
    places: tuple[TokenPlace, ...] = ()
    # Tokens of prompt and answer as an endpoint counts them that gives no ids.
    counted_tokens: tuple[int, int] | None = None
    # ``time.monotonic()`` when the first token was there; None where the engine does not say.
    first_token_time: float | None = field(default=None, compare=False)

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of prompt and answer."""
        return self.counted_tokens or (len(self.prompt_token_ids), len(self.token_ids))


@dataclass(frozen=True, slots=True)
class ChoiceLogprobs:
    """Log-probs of the next token being each of the given choices, over the full vocabulary.

    ``sum(exp(logprobs))`` is the mass on the choices: little mass means that the model would not have
    answered with any of them. ``written`` is true where the model could only be read by the choice that it wrote: that
    one then has probability 1.
    """

    logprobs: tuple[float, ...]
    prompt_tokens: int
    completion_tokens: int = 0
    written: bool = False


@dataclass(frozen=True, slots=True)
class AnswerLogLikelihood:
    """Log-likelihood in nats of an answer's tokens (without the end of turn) after a prompt."""

    total: float
    tokens: int
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt as the model read it, its tokens with their log-probs at temperature 1, and the likeliest ones next.

    ``next_ends``: the first of the likeliest ends an answer.
    """

    text: str
    places: tuple[TokenPlace, ...]
    next: tuple[TokenLogprob, ...]
    next_ends: bool


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves."""

    model: str
    engine: str
    weight_version: int
    weight_digest: str
    parameters: int
    max_context_tokens: int
    # Why its log-probs were not compared with the model's own at the start; empty where they were.
    not_compared: str = ""


@dataclass(slots=True)
class ContextTooLongError(ValueError):
    """An input does not fit the model's context. ``index`` is its place in the call."""

    index: int
    tokens: int
    limit: int
    message: str = field(init=False)

    def __post_init__(self) -> None:
        """Word the message."""
        self.message = f"item {self.index} needs {self.tokens} tokens, the model's context holds {self.limit}"
        ValueError.__init__(self, self.message)


class RefusedRequestError(ValueError):
    """The chat template refuses a conversation, or the engine a sampling parameter; the message says which and why."""


class BudgetSpentError(RuntimeError):
    """The tokens that an endpoint may cost are spent."""

    def __init__(self, spent: int, budget: int) -> None:
        self.spent, self.budget = spent, budget
        super().__init__(f"the token budget of {budget} is spent ({spent} used)")


class CannotSleepError(RuntimeError):
    """The engine was not started so that it can free its memory; the message says how to."""


class WeightMismatchError(ValueError):
    """Received weights do not fit the served model; the message names the tensors."""


class WeightsNotTakenError(RuntimeError):
    """Received weights could not be made ready, whether or not they fit; the engine serves what it served before."""


class Engine(Protocol):
    """Runs one model. All methods are called on the event loop and never block it.

    Calls may overlap; an engine batches them as it can. A call that is cancelled gives up its place.
    """

    async def start(self) -> None:
        """Load and warm the model. Raises ``OSError`` when it cannot be found."""

    async def stop(self) -> None:
        """Free the model. Calls under way fail."""

    def info(self) -> EngineInfo:
        """What is served now."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        samples_per_prompt: int = 1,
        on_text: OnText | None = None,
    ) -> AsyncGenerator[GeneratedSample, None]:
        """Sample answers, each yielded when it is finished; closing the generator gives up the rest.

        ``on_text`` is called as each answer grows, and never after the answer was yielded. Raises
        ``ContextTooLongError`` and ``RefusedRequestError`` before anything is sampled.
        """

    async def choice_logprobs(
        self, prompts: Sequence[Prompt], choices: Sequence[str]
    ) -> list[ChoiceLogprobs | ContextTooLongError]:
        """Log-probs of each choice (a text that is one token after the prompt) for each prompt.

        A prompt that does not fit gives its error in its place. Raises ``ValueError`` when a choice is not one token.
        """

    async def answer_loglikelihoods(
        self, items: Sequence[tuple[Prompt, str]]
    ) -> list[AnswerLogLikelihood | ContextTooLongError]:
        """Log-likelihood of each answer after its prompt, at temperature 1.

        An item that does not fit gives its error in its place; an empty answer has total 0 and 0 tokens.
        """

    async def score_prompts(
        self, prompts: Sequence[Prompt], top_logprobs: int
    ) -> list[ScoredPrompt | ContextTooLongError]:
        """The tokens of each prompt, and as many of the likeliest in each place; of the next token at least one.

        A prompt that does not fit gives its error in its place. Raises ``RefusedRequestError``.
        """

    async def load_weights(self, path: Path, version: int, digest: str) -> float:
        """Serve the weights of a safetensors file from now on, as ``version``; returns the seconds that nothing ran.

        Tensor names are those of ``AutoModelForCausalLM.state_dict()`` (tied copies left out). Raises
        ``WeightMismatchError`` and changes nothing when a tensor is unknown, missing or of the wrong shape.
        """

    async def sleep(self) -> None:
        """Free the accelerator: weights go to main memory, caches are dropped. No call is under way, and none comes.

        ``load_weights`` still works. Raises ``CannotSleepError``.
        """

    async def wake(self) -> None:
        """Take back what ``sleep`` has freed; calls may come again. Raises ``RuntimeError`` when it cannot be had."""
