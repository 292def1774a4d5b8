"""Stored comparisons as the pairs that a preference model is fitted to, and what is left out of them."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from transformers import AutoConfig

from charter.inference.chat_template import ChatTokenizer
from charter.inference.preference_model import encode
from charter.rpc.messages import chat_messages
from charter.storage.comparisons import LABELLED, enum_name
from charter.v1 import types_pb2
from charter.worker.context import STARTING_VERSION
from charter.worker.errors import RunError
from charter.worker.preference.fit import Example


class Reads(Protocol):
    """What reads comparisons: a preference model, or ``Reader``."""

    @property
    def tokenizer(self) -> ChatTokenizer:
        """Gives token ids."""

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of conversation, answer and EOS together."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads comparisons as a preference model on some language model will, without its weights."""

    tokenizer: ChatTokenizer
    max_context_tokens: int

    @classmethod
    def load(cls, model: str) -> "Reader":
        """Of a folder or hub id. Raises as ``ChatTokenizer.load``."""
        return cls(ChatTokenizer.load(model), AutoConfig.from_pretrained(model).max_position_embeddings)


def split_examples(
    model: Reads, comparisons: Iterable[types_pb2.Comparison], evaluated: Collection[str] = ()
) -> tuple[list[Example], list[Example], dict[str, int]]:
    """Pairs to fit, pairs held out, and what was left out, counted by why.

    A prompt that any comparison holds out is held out in all. Left out are comparisons without a label (``INVALID``,
    ``UNAVAILABLE``), of two equal answers (``IDENTICAL``), that do not fit the model's context (``TOO_LONG``), and of
    the prompts in ``evaluated`` (``EVALUATED``), on which the run is judged in the end.

    Raises ``RunError`` when none is left to fit, or to hold out. Whether too many have no label is for the stage to say
    that had them judged (``failures.max_share``).
    """
    examples: list[Example] = []
    held_out_groups: set[str] = set()
    left_out: Counter[str] = Counter()
    stored = 0
    for comparison in comparisons:
        stored += 1
        example = _example(model, comparison)
        reason = _left_out(model, comparison, example, evaluated)
        if reason:
            left_out[reason] += 1
            continue
        examples.append(example)
        if comparison.split == types_pb2.SPLIT_HELD_OUT:
            held_out_groups.add(example.group)
    train = [example for example in examples if example.group not in held_out_groups]
    held_out = [example for example in examples if example.group in held_out_groups]
    if not train or not held_out:
        raise RunError(
            f"only {len(examples)} of {stored} comparisons can be used ({len(train)} to fit, {len(held_out)} held out; "
            f"left out: {dict(left_out)}), too few for a preference model. If labels failed, the judge's log says why; "
            "otherwise raise comparisons.pairs, or label more"
        )
    return train, held_out, dict(left_out)


def group_of(messages: Iterable[str]) -> str:
    """Names a prompt by the contents of its turns."""
    return "\n".join(messages)


def _example(model: Reads, comparison: types_pb2.Comparison) -> Example:
    messages = chat_messages(comparison.prompt)
    return Example(
        tuple(encode(model.tokenizer, messages, comparison.answer_a.text)),
        tuple(encode(model.tokenizer, messages, comparison.answer_b.text)),
        comparison.probability_a,
        group_of(message.content for message in messages),
        enum_name("source", comparison.source),
        comparison.dimension,
        starting=comparison.answer_a.weight_version <= STARTING_VERSION,
    )


def _left_out(model: Reads, comparison: types_pb2.Comparison, example: Example, evaluated: Collection[str]) -> str:
    """Why a comparison cannot be used; empty when it can."""
    if comparison.outcome not in LABELLED:
        return enum_name("outcome", comparison.outcome)
    if example.group in evaluated:
        return "EVALUATED"
    if comparison.answer_a.text == comparison.answer_b.text:
        return "IDENTICAL"
    if max(len(example.ids_a), len(example.ids_b)) > model.max_context_tokens:
        return "TOO_LONG"
    return ""
