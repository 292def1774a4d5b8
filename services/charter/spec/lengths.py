"""How many tokens of the policy conversations and prompts have at least, without the model and its template."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from charter.chat import ChatMessage
from charter.spec.models import tokenizer_file


class LengthCounter:
    """Counts with a model's tokenizer."""

    def __init__(self, file: Path) -> None:
        # Here, not at the top: a spec whose model is elsewhere waits for no tokenizer.
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(file))

    @classmethod
    def of(cls, model: str) -> "LengthCounter | None":
        """None where the model's tokenizer is not on this machine."""
        file = tokenizer_file(model)
        return None if file is None else cls(file)

    def least(self, conversations: Iterable[Sequence[ChatMessage]]) -> list[int]:
        """Of each its tokens without those that a template puts around the messages."""
        found = []
        for messages in conversations:
            texts = self._tokenizer.encode_batch([one.content for one in messages], add_special_tokens=False)
            found.append(sum(len(one.ids) for one in texts))
        return found
