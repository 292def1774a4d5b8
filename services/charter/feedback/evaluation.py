"""Pairs of the answers of an evaluation's models, to be voted on."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, zip_longest

from charter.data.prompts import TaskPrompt
from charter.evaluation.compare.folder import Answer, EvaluationFolder
from charter.evaluation.compare.spec import EvaluateSpec, pairs_of
from charter.feedback.pairs import Pair, pair_of, unique
from charter.hashing import stable_fraction
from charter.rpc.messages import proto_messages
from charter.state_files import alone_in
from charter.v1 import types_pb2


def evaluated_pairs(folder: EvaluationFolder) -> list[Pair]:
    """Pairs of answers that differ, in such an order that its beginning has as many of all pairs of models.

    Where two pairs of models answered alike, theirs is one pair. Raises ``ValueError`` where there is no evaluation or
    no pair, ``FolderBusyError``, ``StateFileError``, ``OSError``.
    """
    spec = folder.read_spec()
    if spec is None:
        raise ValueError(f"{folder.path} holds no evaluation: `charter evaluate SPEC` makes one")
    with alone_in(folder.path):
        answers, prompts = folder.read_answers(), folder.read_prompts()
    of_models = [_drawn(list(_pairs(spec, prompts, answers, a, b)), a, b) for a, b in pairs_of(spec)]
    found = unique(pair for pair in chain.from_iterable(zip_longest(*of_models)) if pair is not None)
    if not found:
        raise ValueError(
            f"there are no pairs to compare: {folder.path} holds no two different answers to a prompt. "
            "`charter evaluate SPEC` asks its models"
        )
    return found


def _pairs(
    spec: EvaluateSpec, prompts: Sequence[TaskPrompt], answers: Mapping[tuple[str, str, int], Answer], a: str, b: str
) -> Iterator[Pair]:
    for prompt in prompts:
        for sample in range(spec.answers_per_prompt):
            one, other = answers.get((a, prompt.key, sample)), answers.get((b, prompt.key, sample))
            if one is not None and other is not None and not one.failure and not other.failure:
                yield pair_of(
                    types_pb2.Comparison(
                        prompt=proto_messages(prompt.messages),
                        answer_a=_answer(one),
                        answer_b=_answer(other),
                        source=types_pb2.LABEL_SOURCE_HUMAN,
                        outcome=types_pb2.OUTCOME_UNAVAILABLE,
                        dimension=prompt.dimension,
                    )
                )


def _answer(answer: Answer) -> types_pb2.Answer:
    return types_pb2.Answer(text=answer.text, model=answer.model, cut_off=answer.cut_off)


def _drawn(pairs: list[Pair], a: str, b: str) -> list[Pair]:
    """In another order for every two models: the more prompts a few votes are of, the more they tell."""
    return sorted(pairs, key=lambda pair: stable_fraction("order of votes", a, b, pair.id))
