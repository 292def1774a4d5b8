"""Which labels pushed the score of an answer, by what the head of the preference model reads of both."""

from collections.abc import Sequence

import torch
from torch import Tensor

from charter.chat import ChatMessage
from charter.inference.preference_model import PreferenceModel, encode

# Texts in one forward pass.
_BATCH = 8

Text = tuple[Sequence[ChatMessage], str]


def pushes(answer: Tensor, answers_a: Tensor, answers_b: Tensor, probability_a: Tensor) -> Tensor:
    """How much each label pushed the score of an answer, against that of the average compared answer; [pairs].

    ``(p - 1/2) (h_a - h_b) . (h - m)`` with ``m`` the mean of all ``h_a`` and ``h_b``: the change of the score of ``h``
    less that of ``m`` by one gradient step of size 1 on the pair's loss, of a linear head that does not yet tell A from
    B. It is TracIn (Pruthi et al. 2020, "Estimating Training Data Influence by Tracing Gradient Descent", section 3)
    for the last layer alone and one checkpoint. What the labels did to the layers below is not in it, so that it ranks
    labels and is no share of the score.

    Args:
        answer: what the head reads of the answer, [width].
        answers_a: the same of each pair's A, [pairs, width].
        answers_b: the same of each pair's B, [pairs, width].
        probability_a: soft labels P(A is better), [pairs].
    """
    centre = torch.cat([answers_a, answers_b]).mean(dim=0)
    return (probability_a - 0.5) * ((answers_a - answers_b) @ (answer - centre))


@torch.no_grad()
def features(model: PreferenceModel, texts: Sequence[Text]) -> Tensor:
    """What the head reads of each conversation with its answer, float32 [texts, width].

    Those that the model's context cannot hold are cut at their beginning: the end is where the score is read.
    """
    encoded = [encode(model.tokenizer, messages, answer)[-model.max_context_tokens :] for messages, answer in texts]
    order = sorted(range(len(encoded)), key=lambda place: len(encoded[place]))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), _BATCH):
        places = order[start : start + _BATCH]
        read = model.features([encoded[place] for place in places]).float()
        found |= dict(zip(places, read, strict=True))
    return torch.stack([found[place] for place in range(len(encoded))])
