"""What a client may send: the parameters of OpenAI's API that a policy can serve, and words for the others."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from charter.gateway.errors import RequestError, invalid, not_served
from charter.v1 import policy_pb2, types_pb2

B = TypeVar("B", bound="Parameters")

# Parameters that change no answer.
_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)
# Parameters that a policy has not, with the values that ask for nothing.
_NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (-1, 0),
    "verbosity": ("medium",),
    "web_search_options": (),
}
_ROLES = {
    "system": types_pb2.ROLE_SYSTEM,
    "developer": types_pb2.ROLE_SYSTEM,
    "user": types_pb2.ROLE_USER,
    "assistant": types_pb2.ROLE_ASSISTANT,
}
_MOST_LOGPROBS = 20
# What fits into the request; how many it allows the policy says itself.
_MOST_TOKENS = 2**32 - 1


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool = False


class Parameters(BaseModel):
    """What chat completions and completions have in common."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # What a client calls its prompts.
    prompts: ClassVar[str]

    model: str
    max_tokens: Annotated[int, Field(ge=0, le=_MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=256)] = 1
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] = ""
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_served(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        # Null is what was not sent.
        given = {name: value for name, value in data.items() if value is not None and name not in _WITHOUT_EFFECT}
        for name in given.keys() & (_NOT_SERVED.keys() - cls.model_fields.keys()):
            if not any(given[name] == value for value in _NOT_SERVED[name]):
                raise not_served(name)
            del given[name]
        return given

    @classmethod
    def read(cls: type[B], body: bytes) -> B:
        """From the JSON of a request. Raises ``RequestError``."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise invalid(error) from error

    def sampling(self, max_new_tokens: int | None, top_logprobs: int | None) -> policy_pb2.SamplingParameters:
        """As the policy takes it."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop
        return policy_pb2.SamplingParameters(
            temperature=self.temperature,
            top_p=self.top_p,
            max_new_tokens=max_new_tokens,
            # Clients send negative ones too.
            seed=None if self.seed is None else self.seed % 2**64,
            stop=[one for one in stops if one],
            top_logprobs=top_logprobs,
        )


class _Text(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    # Clients send back what they were sent, with fields that say nothing to a policy.
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Text]

    def message(self) -> types_pb2.Message:
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts)
        return types_pb2.Message(role=_ROLES[self.role], content=text)


class ChatParameters(Parameters):
    """Body of a chat completion."""

    prompts = "messages"

    messages: Annotated[list[_Turn], Field(min_length=1, max_length=200)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=_MOST_TOKENS)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=_MOST_LOGPROBS)] | None = None
    # As vLLM and SGLang have it: the last message is the assistant's, and goes on.
    continue_final_message: bool = False
    add_generation_prompt: bool = True

    def request(self) -> policy_pb2.GenerateRequest:
        """As the policy takes it. Raises ``RequestError`` for parameters that do not go together."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "top_logprobs needs logprobs", "top_logprobs", "invalid_value")
        messages = [turn.message() for turn in self.messages]
        prefix = ""
        if self.continue_final_message:
            if self.add_generation_prompt or len(messages) < 2 or self.messages[-1].role != "assistant":
                words = "continues a last message of the assistant, with add_generation_prompt false"
                raise RequestError(400, f"continue_final_message {words}", "continue_final_message", "invalid_value")
            prefix = messages.pop().content
        most = self.max_completion_tokens or self.max_tokens
        if most == 0:
            raise RequestError(400, "max_tokens must be at least 1", "max_tokens", "invalid_value")
        return policy_pb2.GenerateRequest(
            prompts=[policy_pb2.GenerationPrompt(messages=messages, assistant_prefix=prefix)],
            sampling=self.sampling(most, (self.top_logprobs or 0) if self.logprobs else None),
            samples_per_prompt=self.n,
            stream_text=self.stream,
        )


class CompletionParameters(Parameters):
    """Body of a completion. Several prompts are several texts or lists of tokens."""

    prompts = "prompt"

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0, le=_MOST_TOKENS)] = 16
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=_MOST_LOGPROBS)] | None = None

    def policy_prompts(self) -> list[policy_pb2.GenerationPrompt]:
        """As the policy takes them. Raises ``RequestError`` where there is none."""
        given = self.prompt
        if isinstance(given, str):
            return [_text(given)]
        if not given:
            raise _empty()
        if isinstance(given[0], int):
            given = [given]  # type: ignore[list-item]
        return [_text(one) if isinstance(one, str) else _tokens(one) for one in given]  # type: ignore[arg-type]

    def request(self) -> policy_pb2.GenerateRequest:
        """As the policy takes it."""
        return policy_pb2.GenerateRequest(
            prompts=self.policy_prompts(),
            sampling=self.sampling(self.max_tokens, self.logprobs),
            samples_per_prompt=self.n,
            stream_text=self.stream,
        )


def _text(text: str) -> policy_pb2.GenerationPrompt:
    if not text:
        raise _empty()
    return policy_pb2.GenerationPrompt(text=text, special_tokens=True)


def _tokens(ids: list[int]) -> policy_pb2.GenerationPrompt:
    if not ids:
        raise _empty()
    if strange := [one for one in ids if not 0 <= one < 2**32]:
        raise RequestError(400, f"{strange[0]} in prompt is no token", "prompt", "invalid_value")
    return policy_pb2.GenerationPrompt(token_ids=ids)


def _empty() -> RequestError:
    return RequestError(400, "prompt is empty: the model has nothing to go on from", "prompt", "invalid_value")
