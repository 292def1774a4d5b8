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


def debiased(examples: Sequence[Example], fitted_on: Sequence[Example] | None = None) -> list[Example]:
    """The pairs with ``length_logit`` = w (tokens of A - tokens of B).

    w is by logistic regression on the labels of ``fitted_on``; None = of the pairs themselves.
    """
    known = examples if fitted_on is None else fitted_on
    longer = np.array([[float(one.tokens_a - one.tokens_b)] for one in known])
    labels = np.array([one.probability_a for one in known])
    weights = np.array([one.weight for one in known])
    slope = float(fit_probe(longer, labels, [one.group for one in known], weights)[0])
    return [replace(one, length_logit=slope * (one.tokens_a - one.tokens_b)) for one in examples]
