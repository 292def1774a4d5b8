"""How a graded label becomes a soft one: one rule for every scale.

The grade is taken for the log of an answer's strength, and P(A is better) is that of the model of Bradley and Terry
(1952): ``sigmoid(grade of A - grade of B)``, so one point of a scale is one nat of log-odds: 1 point 0.73, 2 points
0.88, 3 points 0.95. Nemotron-4 340B takes the same sigmoid of graded gaps for its targets (arXiv 2406.11704,
reward-aware preference optimization). A signed preference is such a gap already. Of counted votes the log is the grade,
which gives ``votes of A / (votes of A + votes of B)``.

A grade is never certain: the probability is at most ``SUREST``. All functions are odd under an exchange of the answers.
"""

import math

from charter.outcomes import held_between, probability_of

SUREST = 0.99


def probability_of_gap(gap: float) -> float:
    """P(A is better) where A is graded ``gap`` points above B."""
    return held_between(probability_of(gap), 1.0 - SUREST)


def probability_of_votes(votes_a: float, votes_b: float) -> float:
    """P(A is better) by votes for each; fewer than one count as one."""
    return probability_of_gap(math.log(max(votes_a, 1.0)) - math.log(max(votes_b, 1.0)))
