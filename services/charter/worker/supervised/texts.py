"""A text as a model learns from it: pieces of its context, none of which holds parts of two texts."""

import hashlib
from array import array
from collections.abc import Sequence

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from charter.held_out import normalised
from charter.inference.chat_template import begins_with_bos, loading
from charter.spec.chat_form import origin_of
from charter.worker.training.batches import TrainingSequence


class TextReader:
    """Reads texts with a model's tokenizer, in pieces of at most ``context_tokens``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_tokens: int, eos: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._eos = tokenizer.eos_token_id if eos is None else eos
        self._context = context_tokens

    @classmethod
    def load(cls, model: str, context_tokens: int) -> "TextReader":
        """With the tokenizer of a folder or hub id, which needs no chat template. Raises ``OSError``."""
        with loading(model):
            tokenizer = AutoTokenizer.from_pretrained(model)
        # A base model that was given a chat template ends a text as it always has, and not a turn.
        origin = origin_of(model)
        eos = tokenizer.convert_tokens_to_ids(origin.eos_token) if origin is not None and origin.eos_token else None
        return cls(tokenizer, context_tokens, eos)

    @property
    def stops(self) -> frozenset[int]:
        """What ends a text."""
        return frozenset({self._eos})

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def read(self, text: str) -> tuple[TrainingSequence, ...]:
        """Every token of the text is a target once, and so is the EOS behind it.

        The first is predicted behind BOS, or behind EOS in the tokenizers that begin a text with nothing, whose models
        have seen it behind the EOS of another. A text that is longer than the context is cut; a piece begins with the
        token that the piece before predicted last.
        """
        ids = list(self._tokenizer.encode(text, add_special_tokens=False))
        bos, eos = self._tokenizer.bos_token_id, self._eos
        whole = [bos if begins_with_bos(self._tokenizer) else eos, *ids, eos]
        pieces = []
        for start in range(0, len(whole) - 1, self._context):
            piece = whole[start : start + self._context + 1]
            pieces.append(TrainingSequence(array("i", piece[:-1]), range(len(piece) - 1), array("i", piece[1:])))
        return tuple(pieces)


def text_key(text: str) -> str:
    """Names a text by its content, white space and what nobody sees left out, in 16 hex digits."""
    return hashlib.sha256(normalised(text).encode(errors="surrogatepass")).hexdigest()[:16]
