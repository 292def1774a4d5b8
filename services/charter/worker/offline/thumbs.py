"""Rated answers to learn from: each by itself is to gain or to lose."""

import random
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.thumbs import Thumb, thumbs
from charter.held_out import prompt_key
from charter.worker.clients.failed import Failed
from charter.worker.errors import SpecError
from charter.worker.offline.items import RatedAnswer, with_labels
from charter.worker.seeds import derive_seed
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.supervised.corpus import EVALUATED, Item, Keyed, SourceItems, divide, prompt_keys
from charter.worker.training.batches import TrainingSequence

UP, DOWN = "up", "down"


def read_thumbs(
    sources: Mapping[str, str],
    reader: ConversationReader,
    fraction: float,
    evaluated: Collection[str] = (),
    bad: BadRows | None = None,
) -> dict[str, SourceItems]:
    """Rated answers of sources by name, held out by prompt; what a label holds out is held out besides.

    Raises ``SpecError`` for data that cannot be used, and where all that is learned from is good, or all bad.
    """
    held_out: set[str] = set()

    def items(source: str) -> Iterator[Keyed]:
        for one in thumbs(source, bad):
            key = prompt_key(one.prompt)
            if one.split == "HELD_OUT":
                held_out.add(key)
            yield key, _item(one, key, reader, evaluated)

    read = with_labels(divide(sources, items, fraction, held_out, bad))
    corpus = {
        name: replace(one, verdicts=Counter(map(_verdict, (*one.train, *one.held_out)))) for name, one in read.items()
    }
    said = Counter(_verdict(item) for one in corpus.values() for item in one.train)
    if len(said) == 1:
        (only,) = said
        raise SpecError(
            f"KTO learns from good and from bad answers, and all {said[only]} that it may learn from have a thumb "
            f"{only}: add some with a thumb {DOWN if only == UP else UP}, or use `supervised` for good answers alone"
        )
    return corpus


def _item(one: Thumb, key: str, reader: ConversationReader, evaluated: Collection[str]) -> RatedAnswer | Failed:
    if prompt_keys(one.prompt) & set(evaluated):
        return Failed(EVALUATED, "its prompt is one of the evaluation")
    read = reader.read((*one.prompt, ChatMessage("assistant", one.answer)))
    if isinstance(read, Failed):
        return read
    return RatedAnswer(read, group=key, label_source=one.source, good=one.good)


def _verdict(item: object) -> str:
    return UP if isinstance(item, RatedAnswer) and item.good else DOWN


def with_other_answers(corpus: Mapping[str, SourceItems], max_tokens: int, seed: int) -> dict[str, SourceItems]:
    """Every rated answer with one to another prompt behind it, as if it were to its own: the paper's mismatched pairs.

    Each item is given another one's answer, by an order that follows from the seed, and keeps it. It is cut where
    prompt and answer would have more than ``max_tokens``. Raises ``SpecError`` where all answers are to one prompt.
    """
    items = [one for source in corpus.values() for one in _rated((*source.train, *source.held_out))]
    order = list(range(len(items)))
    random.Random(derive_seed(seed, "mismatched answers")).shuffle(order)
    shuffled = [items[place] for place in order]
    if len({one.group for one in items}) < 2:
        raise SpecError("KTO reads answers to other prompts, too, and all that there are are to one: add other prompts")
    found = list(items)
    for at, place in enumerate(order):
        mismatched = _mismatched(items[place], _other(shuffled, at), max_tokens)
        found[place] = replace(items[place], sequences=(*items[place].sequences, mismatched))
    whole = iter(found)
    return {
        name: replace(
            one, train=tuple(next(whole) for _ in one.train), held_out=tuple(next(whole) for _ in one.held_out)
        )
        for name, one in corpus.items()
    }


def _rated(items: Sequence[Item]) -> list[RatedAnswer]:
    return [one for one in items if isinstance(one, RatedAnswer)]


def _other(items: Sequence[RatedAnswer], at: int) -> RatedAnswer:
    """The next item whose prompt is another."""
    following = (items[(at + offset) % len(items)] for offset in range(1, len(items)))
    return next(one for one in following if one.group != items[at].group)


def _mismatched(item: RatedAnswer, other: RatedAnswer, max_tokens: int) -> TrainingSequence:
    sequence = item.sequences[0]
    prompt = sequence.ids[: sequence.states[0] + 1]
    # The last target is not read.
    answer = list(other.sequences[0].targets)[: max_tokens - len(prompt) + 1]
    ids = array("i", [*prompt, *answer[:-1]])
    return TrainingSequence(ids, range(len(prompt) - 1, len(ids)), array("i", answer))
