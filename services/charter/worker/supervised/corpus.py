"""What a stage learns from and what it holds out, by source, read and made into token ids."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
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

# A conversation that holds a prompt of the run's evaluation.
EVALUATED = "evaluated"
# Held-out items of a source at most: more of them only make its loss slower to measure.
MOST_HELD_OUT = 1000


@dataclass(frozen=True, slots=True)
class Item:
    """A conversation, a piece of a text, a comparison or a rated answer: what is learned of it."""

    sequences: tuple[TrainingSequence, ...]
    # Of the text in UTF-8, in the first of its pieces; 0 for what is learned only in part.
    bytes: int = 0
    # Names the prompt, where there are figures of whole items.
    group: str = ""

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return sum(len(one.targets) for one in self.sequences)

    @property
    def units(self) -> int:
        """What the loss is a mean over: the tokens."""
        return self.targets


@dataclass(frozen=True, slots=True)
class SourceItems:
    """Of one source what is learned, what is held out, and what was left out."""

    train: tuple[Item, ...]
    held_out: tuple[Item, ...]
    left_out: LeftOut
    # As of ``LearnedSource``.
    digest: str
    labels: Mapping[str, int] = field(default_factory=dict)
    verdicts: Mapping[str, int] = field(default_factory=dict)


Corpus = Mapping[str, SourceItems]
# What names an item for the held-out share, and the item, or why it is none.
Keyed = tuple[str, Item | Failed]


def read_conversations(
    sources: Mapping[str, str],
    reader: ConversationReader,
    fraction: float,
    evaluated: Collection[str] = (),
    bad: BadRows | None = None,
) -> dict[str, SourceItems]:
    """Conversations of sources by name. Those with a prompt of ``evaluated``, keys of prompts, are left out.

    Held out is by the prompt that a conversation begins with. Raises ``SpecError`` for data that cannot be used,
    ``RunError`` for a template that rewrites what was said.
    """

    def items(source: str) -> Iterator[Keyed]:
        for one in conversations(source, bad):
            prompts = [one.messages[:place] for place, turn in enumerate(one.messages) if turn.role == "assistant"]
            first = prompt_key(prompts[0])
            if any(key in evaluated for prompt in prompts for key in prompt_keys(prompt)):
                yield first, Failed(EVALUATED, "a prompt of the evaluation is in it")
                continue
            read = reader.read(one.messages)
            yield first, read if isinstance(read, Failed) else Item(read)

    return divide(sources, items, fraction, bad=bad)


def prompt_keys(prompt: Sequence[ChatMessage]) -> set[str]:
    """Of a prompt as it stands, without its system turns, and of its last turn alone."""
    spoken = [turn for turn in prompt if turn.role != "system"]
    return {prompt_key(prompt), prompt_key(spoken), prompt_key(spoken[-1:])}


def read_texts(
    sources: Mapping[str, str], reader: TextReader, fraction: float, bad: BadRows | None = None
) -> dict[str, SourceItems]:
    """Texts of sources by name, each piece of a text an item.

    Held out is by the whole text, and of a source that is one text by the piece. Raises ``SpecError`` for data that
    cannot be used.
    """

    def items(source: str) -> Iterator[Keyed]:
        documents = list(texts(source, bad))
        for one in documents:
            key = text_key(one.text)
            for place, sequence in enumerate(reader.read(one.text)):
                if len(documents) == 1:
                    size = len(reader.decode(sequence.targets).encode(errors="replace"))
                    yield text_key(f"{key} {place}"), Item((sequence,), size)
                else:
                    size = 0 if place else len(one.text.encode(errors="replace"))
                    yield key, Item((sequence,), size)

    return divide(sources, items, fraction, bad=bad)


def names_of(sources: Iterable[run_pb2.DataSource]) -> dict[str, str]:
    """Sources by a short name: that of the file, or all of it where two files have the same."""
    whole = [one.source for one in sources]
    counted = Counter(map(_short, whole))
    return {_short(one) if counted[_short(one)] == 1 else one: one for one in whole}


def weights_of(sources: Iterable[run_pb2.DataSource], names: Mapping[str, str]) -> dict[str, float]:
    """By the names that ``names_of`` gave; empty where none has a weight."""
    weights = {one.source: one.weight for one in sources if one.HasField("weight")}
    return {name: weights[source] for name, source in names.items() if source in weights}


def _short(source: str) -> str:
    parsed = Source.parse(source)
    return f"{parsed.name}#{parsed.column}" if parsed.column else parsed.name


def divide(
    sources: Mapping[str, str],
    items: Callable[[str], Iterator[Keyed]],
    fraction: float,
    held_out: Collection[str] = (),
    bad: BadRows | None = None,
) -> dict[str, SourceItems]:
    """Read the sources and hold out the share ``fraction`` of each; what is held out of one is so in all.

    ``held_out`` are keys that are held out besides; ``items`` may add to it. Raises ``SpecError`` for data that cannot
    be used. Rows that ``bad`` has skipped are left out by their reason.
    """
    keyed: dict[str, list[tuple[str, Item]]] = {}
    left_out: dict[str, LeftOut] = {}
    digests: dict[str, str] = {}
    held: set[str] = set()
    for name, source in sources.items():
        keyed[name], failed = [], []
        before = bad.counts.copy() if bad else Counter[str]()
        try:
            for key, item in items(source):
                if isinstance(item, Failed):
                    failed.append(item.kind)
                else:
                    keyed[name].append((key, item))
            digests[name] = Source.parse(source).digest()
        except (DataError, OSError) as error:
            raise SpecError(str(error)) from error
        failed += (bad.counts - before).elements() if bad else ()
        left_out[name] = LeftOut.of(len(keyed[name]) + len(failed), failed)
        if not keyed[name]:
            raise SpecError(f"nothing can be learned from {source}: {left_out[name].in_words() or 'it is empty'}")
        keys = {key for key, _ in keyed[name]}
        if fraction:
            held |= held_out_of(keys, min(fraction, MOST_HELD_OUT / len(keys)))
    held |= set(held_out)
    divided = {}
    for name, found in keyed.items():
        train = tuple(item for key, item in found if key not in held)
        if not train:
            raise SpecError(f"everything in {sources[name]} is held out: lower held_out_fraction, or add to it")
        apart = tuple(item for key, item in found if key in held)
        divided[name] = SourceItems(train, apart, left_out[name], digests[name])
    return divided
