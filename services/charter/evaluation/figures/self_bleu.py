"""Self-BLEU: how much of one answer's words in a row another answer has, on a sample of pairs.

Zhu et al. 2018, "Texygen" (arXiv 1802.01886, section 2.3) compare each text with all others at once, which grows with
the square of their number and with that number changes what the figure means. Here each text is compared with one other
at a time (BLEU with up to 4 words in a row, by sacrebleu), so that figures of 50 and of 10,000 answers compare.
"""

from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics import BLEU

from charter.evaluation.figures.rows import Answer
from charter.evaluation.figures.words import words_of
from charter.evaluation.statistics import Estimate, NotIdentifiedError, mean_of_pairs

# Pairs that are compared, at most.
PAIRS = 2000


def self_bleu(answers: Sequence[Answer], *, seed: int) -> Estimate:
    """Mean BLEU (0 to 1) of an answer against one to another prompt, over at most ``PAIRS`` pairs drawn at random.

    Raises ``NotIdentifiedError`` where fewer than three prompts have an answer with words: two make one pair.
    """
    by_prompt: dict[str, list[str]] = {}
    for one in answers:
        if words := words_of(one.text):
            by_prompt.setdefault(one.prompt, []).append(" ".join(words))
    texts = list(by_prompt.values())
    if len(texts) < 3:
        raise NotIdentifiedError("no self-BLEU: answers with words to three prompts or more are needed")
    rng = np.random.default_rng(seed)
    first, second = pairs_of(len(texts), rng)
    # Words are parted already, those of scripts without spaces too; a short answer is read by as many as it has.
    bleu = BLEU(tokenize="none", effective_order=True, smooth_method="exp")
    values = [
        bleu.sentence_score(rng.choice(texts[one]), [rng.choice(texts[other])]).score / 100
        for one, other in zip(first, second, strict=True)
    ]
    return mean_of_pairs(np.array(values), first, second, bounds=(0.0, 1.0))


def pairs_of(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of different prompts: each prompt in a random order with the next ones, as many times as there is room."""
    order = rng.permutation(count)
    times = max(1, min((count - 1) // 2, PAIRS // count))
    first = np.tile(order, times)[:PAIRS]
    second = np.concatenate([np.roll(order, -shift) for shift in range(1, times + 1)])[:PAIRS]
    return first, second
