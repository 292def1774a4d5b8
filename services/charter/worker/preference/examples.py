"""Stored comparisons as the pairs that a preference model is fitted to, and what is left out of them."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import AutoConfig

from charter.held_out import held_out_of, prompt_key
from charter.inference.chat_template import ChatTokenizer
from charter.inference.engine import Prompt
from charter.inference.preference_model import encode_answer
from charter.rpc.messages import chat_messages
from charter.storage.comparisons import LABELLED, REVISION_METHOD, enum_name
from charter.v1 import run_pb2, types_pb2
from charter.worker.context import FIRST_VERSION
from charter.worker.errors import RunError
from charter.worker.preference.fit import Example
from charter.worker.preference.mixing import with_share

# Where no stored label says what is held out.
_HELD_OUT_FRACTION = 0.2

# To fit to, and held out.
Divided = tuple[list[Example], list[Example]]


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


@dataclass(frozen=True, slots=True)
class Labels:
    """Stored comparisons as they were read."""

    # Those that can be used.
    examples: list[Example]
    # Keys of the prompts that a comparison holds out, be it usable or not.
    held_out: set[str]
    # The others, counted by why.
    left_out: dict[str, int]

    def in_words(self) -> str:
        """How many of them can be used, and why not the others."""
        stored = len(self.examples) + sum(self.left_out.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        return f"only {len(self.examples)} of {stored} comparisons can be used" + (
            f" (left out: {reasons})" if reasons else ""
        )


def read_labels(
    model: Reads,
    comparisons: Iterable[types_pb2.Comparison],
    evaluated: Collection[str] = (),
    start: int = FIRST_VERSION,
) -> Labels:
    """Read comparisons; answers by policies up to version ``start`` count as the starting policy's.

    Left out are those without a label (``INVALID``, ``UNAVAILABLE``), of two equal answers (``IDENTICAL``), that do not
    fit the model's context (``TOO_LONG``), and of the prompts whose keys are in ``evaluated`` (``EVALUATED``), on which
    the run is judged in the end.

    Whether too many have no label is for the stage to say that had them judged (``failures.max_share``).
    """
    examples: list[Example] = []
    held_out: set[str] = set()
    left_out: Counter[str] = Counter()
    for comparison in comparisons:
        example = _example(model, comparison, start)
        if comparison.split == types_pb2.SPLIT_HELD_OUT:
            held_out.add(example.group)
        if reason := _left_out(model, comparison, example, evaluated):
            left_out[reason] += 1
        else:
            examples.append(example)
    return Labels(examples, held_out, dict(left_out))


def divide_labels(
    labels: Labels,
    warm_start: Labels | None,
    feedback: run_pb2.FeedbackSpec,
    held_out: Collection[str],
    fraction: float,
) -> tuple[Divided, Divided | None]:
    """What the fit and its warm start learn from and are measured on: a prompt that is held out anywhere is so in both.

    Args:
        labels: what the fit may use; those whose source has no share by ``feedback`` are left away.
        warm_start: what a warm start learns from before, if there is one.
        held_out: keys of prompts that are held out besides those that stored labels hold out.
        fraction: as for ``divide``.

    Raises:
        RunError: as ``divide``.
    """
    everywhere = labels.held_out | set(held_out) | (warm_start.held_out if warm_start is not None else set())
    main = divide(labels, with_share(labels.examples, feedback), everywhere, fraction)
    if warm_start is None:
        return main, None
    everywhere |= {example.group for example in main[1]}
    train = [example for example in warm_start.examples if example.group not in everywhere]
    if not train:
        raise RunError(
            f"preference_model.warm_start_epochs: all {len(warm_start.examples)} imported labels that can be used are "
            "of prompts that are held out: import labels of other prompts, or leave the warm start out"
        )
    # Where no prompt of its own is held out, it is measured on those of the fit.
    return main, (train, [example for example in warm_start.examples if example.group in everywhere] or main[1])


def divide(labels: Labels, examples: Sequence[Example], held_out: Collection[str], fraction: float) -> Divided:
    """Pairs to fit to, and pairs held out; no prompt is in both.

    Args:
        labels: what was read, for the errors.
        examples: those of its examples that are used.
        held_out: keys of the prompts that are held out.
        fraction: share of the prompts to hold out where ``held_out`` has none of them.

    Raises:
        RunError: there are not two prompts, one for either part.
    """
    prompts = {example.group for example in examples}
    chosen = prompts & set(held_out) or held_out_of(prompts, fraction)
    train = [example for example in examples if example.group not in chosen]
    if len(prompts) < 2:
        raise RunError(
            f"{labels.in_words()}, and those that the spec mixes are of {len(prompts)} prompts, too few for a "
            "preference model: it needs one prompt to fit to and one to hold out. Give prompts.train more prompts, "
            "raise comparisons.pairs if that is why so few of them were judged, or label pairs of other prompts"
        )
    if not train:
        raise RunError(
            f"all {len(prompts)} prompts with labels are held out, and none is left to fit a preference model to: "
            "import labels with a smaller --held-out-fraction, or label pairs of other prompts"
        )
    return train, [example for example in examples if example.group in chosen]


def split_examples(
    model: Reads, comparisons: Iterable[types_pb2.Comparison], evaluated: Collection[str] = ()
) -> tuple[list[Example], list[Example], dict[str, int]]:
    """Pairs to fit to, pairs held out, and what was left out, of comparisons that are all used. Raises ``RunError``."""
    labels = read_labels(model, comparisons, evaluated)
    return *divide(labels, labels.examples, labels.held_out, _HELD_OUT_FRACTION), labels.left_out


def _example(model: Reads, comparison: types_pb2.Comparison, start: int) -> Example:
    messages = chat_messages(comparison.prompt)
    prompt = model.tokenizer.prompt_ids(Prompt(messages))
    return Example(
        (*prompt, *encode_answer(model.tokenizer, comparison.answer_a.text)),
        (*prompt, *encode_answer(model.tokenizer, comparison.answer_b.text)),
        comparison.probability_a,
        prompt_key(messages),
        enum_name("source", comparison.source),
        comparison.dimension,
        starting=comparison.answer_a.weight_version <= start and comparison.method != REVISION_METHOD,
        prompt_tokens=len(prompt),
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
