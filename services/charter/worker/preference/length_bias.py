"""Takes what the lengths of two answers explain of a label out of what a preference model learns.

Where labels go with length, a preference model learns to count, and PPO to write long (or short). Here lengths alone
explain the labels first; their log-odds are then added to the model's in the loss, and left away ever after, so that
the model has no reason to learn them: the "bias product" of Clark, Yatskar and Zettlemoyer 2019 ("Don't Take the Easy
Way Out", arXiv 1909.03683, section 3.2), with length as the bias as in Shen et al. 2023 ("Loose Lips Sink Ships", arXiv
2310.05199).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from charter.worker.preference.fit import Example
from charter.worker.preference.probe import fit_probe


def debiased(examples: Sequence[Example]) -> list[Example]:
    """The pairs with ``length_logit`` = w (tokens of A - tokens of B), w by logistic regression on the labels."""
    longer = np.array([[float(len(example.ids_a) - len(example.ids_b))] for example in examples])
    labels = np.array([example.probability_a for example in examples])
    weights = np.array([example.weight for example in examples])
    logits = longer @ fit_probe(longer, labels, [example.group for example in examples], weights)
    return [replace(example, length_logit=float(logit)) for example, logit in zip(examples, logits, strict=True)]
