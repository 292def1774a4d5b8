"""A conversation as a model learns from it: token ids, and which of them it is to write itself.

What a model writes is found by rendering: the conversation up to an answer, as the policy service renders a prompt, and
with it. What the answer adds is learned, up to the token that ends generation; what the template puts behind that token
is never written by the model. A template's own marks of what is generated are not used: most templates have none.
"""

from array import array
from collections.abc import Sequence

from charter.chat import ChatMessage
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import RefusedRequestError
from charter.shown import beginning
from charter.worker.clients.failed import Failed
from charter.worker.errors import RunError
from charter.worker.training.batches import TrainingSequence

TOO_LONG, REFUSED, EMPTY, NO_ANSWER = "too_long", "refused", "empty", "no_answer"

_PROBE = (
    ChatMessage("user", "Qz0zQ"),
    ChatMessage("assistant", "Qz1zQ"),
    ChatMessage("user", "Qz2zQ"),
    ChatMessage("assistant", "Qz3zQ"),
)


class ConversationReader:
    """Reads conversations with a model's template; longer ones than ``max_tokens`` fail.

    With ``last_only`` the last answer is learned, and what was answered before is only read.

    Raises ``RunError`` for a template that shows an answer otherwise once the conversation goes on: what was learned
    would not be what the model reads later.
    """

    def __init__(self, tokenizer: ChatTokenizer, max_tokens: int, *, last_only: bool = False) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._last_only = last_only
        try:
            self._answers(_PROBE)
        except RefusedRequestError as error:
            raise RunError(str(error)) from error

    def read(self, messages: Sequence[ChatMessage]) -> tuple[TrainingSequence, ...] | Failed:
        """The conversation up to its last answer, mostly as one sequence.

        An answer before which the tokens are others than in the sequence so far (a tokenizer may join the end of a turn
        with what follows) begins a new one. Raises ``RunError`` as the constructor.
        """
        answers = [message.content for message in messages if message.role == "assistant"]
        if not answers:
            return Failed(NO_ANSWER, "the assistant says nothing in it")
        if not all(answer.strip() for answer in answers):
            return Failed(EMPTY, "a turn of the assistant is empty")
        if messages[0].role == "assistant":
            return Failed(REFUSED, "it begins with the assistant")
        try:
            pieces = self._answers(messages)
        except RefusedRequestError as error:
            return Failed(REFUSED, str(error))
        drafts: list[_Draft] = []
        for before, added in pieces[-1:] if self._last_only else pieces:
            prompt = self._tokenizer.encode(before)
            if not drafts or prompt[: len(drafts[-1].ids)] != drafts[-1].ids:
                drafts.append(_Draft())
            answer = self._tokenizer.continuation_ids(before, prompt, added)
            drafts[-1].add(prompt, answer, self._tokenizer)
        sequences = tuple(draft.sequence() for draft in drafts)
        if (longest := max(len(one.ids) for one in sequences)) > self._max_tokens:
            return Failed(TOO_LONG, f"it has {longest} tokens, more than {self._max_tokens}")
        return sequences

    def shown(self, rendered: str) -> str:
        """A rendered prompt as a report may have it: what the template says whole, of what people say the beginning."""
        before, _, after = self._tokenizer.render(_PROBE[:1]).partition(_PROBE[0].content)
        start = len(before) if rendered.startswith(before) else 0
        end = rendered.rfind(after.strip(), start)
        # A tokenizer may spell the end otherwise.
        return f"{rendered[:start]}{beginning(rendered[start:end])}{rendered[end:]}" if end >= start else "…"

    def _answers(self, messages: Sequence[ChatMessage]) -> list[tuple[str, str]]:
        """Of each answer the rendered text before it, and what it adds."""
        found: list[tuple[str, str]] = []
        rendered = ""
        for place, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._tokenizer.render(messages[:place])
            if not before.startswith(rendered):
                raise self._unstable("shows earlier answers otherwise once the conversation goes on")
            rendered = self._tokenizer.render(messages[: place + 1], to_answer=False)
            if not rendered.startswith(before):
                raise self._unstable("does not begin an answer in a conversation as it has the model begin one")
            added = rendered.removeprefix(before)
            if self._tokenizer.shown(message).strip() not in added:
                raise self._unstable("leaves out some of what an answer says")
            found.append((before, added))
        return found

    def _unstable(self, what: str) -> RunError:
        return RunError(
            f"the chat template of {self._tokenizer.name} {what}: nothing can be learned from conversations by it. Use "
            "a model with another template, or put one beside it (chat_template.jinja) that renders every turn alike"
        )


class _Draft:
    """A sequence as it grows, answer by answer."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self._states: list[int] = []
        self._targets: list[int] = []

    def add(self, prompt: Sequence[int], answer: Sequence[int], tokenizer: ChatTokenizer) -> None:
        """Go on by the rest of the prompt, which begins with all of the sequence, and what the answer adds."""
        self.ids = [*prompt, *answer]
        targets = _written(answer, tokenizer)
        self._states += range(len(prompt) - 1, len(prompt) - 1 + len(targets))
        self._targets += targets

    def sequence(self) -> TrainingSequence:
        """What is read ends where the last target is predicted."""
        kept = self.ids[: self._states[-1] + 1]
        return TrainingSequence(array("i", kept), array("i", self._states), array("i", self._targets))


def _written(answer: Sequence[int], tokenizer: ChatTokenizer) -> list[int]:
    """Of what an answer adds, what the model is to write: all up to the token that ends generation.

    Where the template ends a turn by something else, the model writes that and then EOS, but not the white space that
    parts the turn from the next.
    """
    for place, token in enumerate(answer):
        if token in tokenizer.stop_ids:
            return list(answer[: place + 1])
    written = list(answer)
    while len(written) > 1 and str(tokenizer.tokenizer.decode(written[-1:])).isspace():
        written.pop()
    return [*written, tokenizer.eos_id]
