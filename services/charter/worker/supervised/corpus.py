"""What a stage learns from and what it holds out, by source, read and made into token ids."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from charter.data.conversations import conversations
from charter.data.errors import DataError
from charter.data.sources import Source
from charter.data.texts import texts
from charter.held_out import held_out_of, prompt_key
from charter.runs.results import LeftOut
from charter.v1 import run_pb2
from charter.worker.clients.failed import Failed
from charter.worker.errors import SpecError
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.supervised.texts import TextReader, text_key
from charter.worker.training.batches import TrainingSequence

T = TypeVar("T")

# A conversation that holds a prompt of the run's evaluation.
EVALUATED = "evaluated"
# Held-out items of a source at most: more of them only make its loss slower to measure.
MOST_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation or a text: what is learned of it."""

    sequences: tuple[TrainingSequence, ...]
    # Of the text in UTF-8; 0 for a conversation, of which only a part is learned.
    bytes: int = 0

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return sum(len(one.targets) for one in self.sequences)


@dataclass(frozen=True, slots=True)
class SourceItems:
    """Of one source what is learned, what is held out, and what was left out."""

    train: tuple[Item, ...]
    held_out: tuple[Item, ...]
    left_out: LeftOut


Corpus = Mapping[str, SourceItems]


def read_conversations(
    sources: Sequence[run_pb2.DataSource], reader: ConversationReader, fraction: float, evaluated: Collection[str]
) -> dict[str, SourceItems]:
    """Conversations by source. Those with a prompt of ``evaluated``, keys of prompts, are left out.

    Held out is by the prompt that a conversation begins with. Raises ``SpecError`` for data that cannot be used,
    ``RunError`` for a template that rewrites what was said.
    """

    def items(source: str) -> Iterator[tuple[str, Item | Failed]]:
        for one in conversations(source):
            prompts = [
                prompt_key(one.messages[:place])
                for place, message in enumerate(one.messages)
                if message.role == "assistant"
            ]
            if any(key in evaluated for key in prompts):
                yield prompts[0], Failed(EVALUATED, "a prompt of the evaluation is in it")
                continue
            read = reader.read(one.messages)
            yield prompts[0], read if isinstance(read, Failed) else Item(read)

    return _divide({name: (source, items) for name, source in names_of(sources).items()}, fraction)


def read_texts(
    sources: Sequence[run_pb2.DataSource], reader: TextReader, fraction: float
) -> dict[str, SourceItems]:
    """Texts by source; held out is by the whole text. Raises ``SpecError`` for data that cannot be used."""

    def items(source: str) -> Iterator[tuple[str, Item | Failed]]:
        for one in texts(source):
            yield text_key(one.text), Item(reader.read(one.text), len(one.text.encode(errors="replace")))

    return _divide({name: (source, items) for name, source in names_of(sources).items()}, fraction)


def names_of(sources: Iterable[run_pb2.DataSource]) -> dict[str, str]:
    """Sources by a short name: that of the file, or all of it where two files have the same."""
    whole = [one.source for one in sources]
    short = {one: _short(one) for one in whole}
    counted = Counter(short.values())
    return {short[one] if counted[short[one]] == 1 else one: one for one in whole}


def weights_of(sources: Iterable[run_pb2.DataSource]) -> dict[str, float]:
    """By the same names; empty where none has a weight."""
    weights = {one.source: one.weight for one in sources if one.HasField("weight")}
    return {name: weights[source] for name, source in names_of(sources).items()} if weights else {}


def _short(source: str) -> str:
    parsed = Source.parse(source)
    place = parsed.place if parsed.place.startswith("hub:") else Path(parsed.place).name
    return f"{place}#{parsed.column}" if parsed.column else place


def _divide(
    sources: Mapping[str, tuple[str, Callable[[str], Iterator[tuple[str, Item | Failed]]]]], fraction: float
) -> dict[str, SourceItems]:
    """Read the sources and hold out the share ``fraction`` of each; what is held out of one is so in all."""
    keyed: dict[str, list[tuple[str, Item]]] = {}
    left_out: dict[str, LeftOut] = {}
    held: set[str] = set()
    for name, (source, items) in sources.items():
        try:
            found = list(items(source))
        except (DataError, OSError) as error:
            raise SpecError(str(error)) from error
        keyed[name] = [(key, item) for key, item in found if isinstance(item, Item)]
        left_out[name] = LeftOut.of(len(found), [item.kind for _, item in found if isinstance(item, Failed)])
        if not keyed[name]:
            raise SpecError(f"nothing can be learned from {source}: {left_out[name].in_words() or 'it is empty'}")
        keys = {key for key, _ in keyed[name]}
        if fraction:
            held |= held_out_of(keys, min(fraction, MOST_HELD_OUT / len(keys)))
    divided = {}
    for name, found_items in keyed.items():
        train = tuple(item for key, item in found_items if key not in held)
        if not train:
            raise SpecError(f"everything in {sources[name][0]} is held out: lower held_out_fraction, or add to it")
        held_out = tuple(item for key, item in found_items if key in held)
        divided[name] = SourceItems(train, held_out, left_out[name])
    return divided
