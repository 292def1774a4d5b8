"""Comparisons to learn from: of each pair the better answer is to gain on the worse one."""

from collections.abc import Collection, Iterator, Mapping

from charter.chat import ChatMessage
from charter.data.bad_rows import BadRows
from charter.data.pairs.read import PairDefaults, comparisons
from charter.held_out import prompt_key
from charter.outcomes import side
from charter.rpc.messages import chat_messages
from charter.storage.comparisons import LABELLED, enum_name
from charter.v1 import types_pb2
from charter.worker.clients.failed import Failed
from charter.worker.offline.items import ComparedAnswers, with_labels
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.supervised.corpus import EVALUATED, Keyed, SourceItems, divide, prompt_keys
from charter.worker.training.batches import TrainingSequence

TIE, IDENTICAL = "tie", "identical"


def read_comparisons(
    sources: Mapping[str, str],
    reader: ConversationReader,
    fraction: float,
    evaluated: Collection[str] = (),
    bad: BadRows | None = None,
) -> dict[str, SourceItems]:
    """Comparisons of sources by name, held out by prompt; what a label holds out is held out besides.

    Left out are rows that ``bad`` skips, those without a label, ties, two equal answers, what is too long, and prompts
    of ``evaluated``. Raises ``SpecError`` for data that cannot be used.
    """
    held_out: set[str] = set()
    bad = bad or BadRows()

    def items(source: str) -> Iterator[Keyed]:
        for _, one in comparisons(source, PairDefaults(labeller=""), bad):
            prompt = chat_messages(one.prompt)
            key = prompt_key(prompt)
            if one.split == types_pb2.SPLIT_HELD_OUT:
                held_out.add(key)
            yield key, _item(one, prompt, reader, evaluated)

    return with_labels(divide(sources, items, fraction, held_out, bad))


def _item(
    comparison: types_pb2.Comparison,
    prompt: tuple[ChatMessage, ...],
    reader: ConversationReader,
    evaluated: Collection[str],
) -> ComparedAnswers | Failed:
    if comparison.outcome not in LABELLED:
        return Failed(enum_name("outcome", comparison.outcome).lower(), "it has no label")
    if prompt_keys(prompt) & set(evaluated):
        return Failed(EVALUATED, "its prompt is one of the evaluation")
    texts = [comparison.answer_a.text, comparison.answer_b.text]
    if texts[0] == texts[1]:
        return Failed(IDENTICAL, "both answers are the same text")
    if side(comparison.probability_a) == 0:
        return Failed(TIE, "neither answer is preferred")
    sequences: list[TrainingSequence] = []
    for text in texts:
        read = reader.read((*prompt, ChatMessage("assistant", text)))
        if isinstance(read, Failed):
            return read
        sequences += read
    if list(sequences[0].targets) == list(sequences[1].targets):
        # But for white space that the template strips.
        return Failed(IDENTICAL, "the template makes the same of both answers")
    return ComparedAnswers(
        tuple(sequences),
        group=prompt_key(prompt),
        label_source=enum_name("source", comparison.source),
        probability_a=comparison.probability_a,
    )
