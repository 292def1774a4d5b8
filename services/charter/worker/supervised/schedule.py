"""The learning rate of a step."""

import math


def learning_rate(step: int, total: int, peak: float, warmup_share: float) -> float:
    """Linear warm-up to ``peak`` over the first ``warmup_share`` of the steps, then a cosine to 0.

    Loshchilov and Hutter 2016 ("SGDR", arXiv 1608.03983), with the warm-up of Goyal et al. 2017 (arXiv 1706.02677).
    ``step`` counts from 0; no step has the rate 0.
    """
    warmup = math.ceil(warmup_share * total)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
