"""How alike a model's answers are: distinct n-grams, repeats within an answer, and the same answer to many prompts.

What all answers have together (``distinct``) depends on how many words they have: compare models of one set of prompts
and of similar lengths.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy.special import stdtrit

from charter.evaluation.figures.rows import Answer
from charter.evaluation.figures.words import ngrams, words_of
from charter.evaluation.statistics import LEVEL, Estimate, NotIdentifiedError, estimate, numbered

SIZES = (1, 2, 3, 4)
# Of a repeat within an answer.
REPEATED_WORDS = 4
# Parts of the prompts that are left out in turn.
_PARTS = 20


@dataclass(frozen=True, slots=True)
class Diversity:
    """Of a model's answers that have words; ``empty`` counts the others."""

    answers: int
    empty: int
    mean_words: float
    # Different n-grams by all n-grams, of all answers together (Li et al. 2016, arXiv 1510.03055, section 5.2).
    distinct: Mapping[int, Estimate]
    # Share of an answer's n-grams of 4 words that it said before (Welleck et al. 2020, arXiv 1908.04319, section 6.1).
    repeated: Estimate
    # Share of answers whose words are those of an answer to another prompt.
    same_as_another: Estimate


def diversity(answers: Sequence[Answer], *, samples: int, seed: int) -> Diversity:
    """Of the answers of one model.

    The interval of ``distinct`` is by the jackknife that leaves out a twentieth of the prompts in turn (Kott 2001), and
    rather too wide (Efron and Stein 1981); a bootstrap draws answers twice, which are then not distinct. The others are
    means, whose unit is the prompt.

    Raises ``NotIdentifiedError`` where fewer than two prompts have an answer with words, or no answer has n words.
    """
    texts = [(one.prompt, words_of(one.text)) for one in answers]
    texts = [(prompt, words) for prompt, words in texts if words]
    prompts = [prompt for prompt, _ in texts]
    if len(set(prompts)) < 2:
        raise NotIdentifiedError("no diversity: answers with words to two prompts or more are needed")
    said_to: dict[str, set[str]] = {}
    for prompt, words in texts:
        said_to.setdefault(" ".join(words), set()).add(prompt)
    same = [float(len(said_to[" ".join(words)]) > 1) for _, words in texts]
    repeated = [_repeated(words) for _, words in texts]
    return Diversity(
        answers=len(texts),
        empty=len(answers) - len(texts),
        mean_words=float(np.mean([len(words) for _, words in texts])),
        distinct={size: _distinct(texts, size, seed) for size in SIZES},
        repeated=estimate(repeated, prompts, samples=samples, seed=seed, bounds=(0.0, 1.0)),
        same_as_another=estimate(same, prompts, samples=samples, seed=seed, bounds=(0.0, 1.0)),
    )


def _repeated(words: Sequence[str]) -> float:
    found = list(ngrams(words, REPEATED_WORDS))
    return 1.0 - len(set(found)) / len(found) if found else 0.0


def _distinct(texts: Sequence[tuple[str, list[str]]], size: int, seed: int) -> Estimate:
    places, count = numbered([prompt for prompt, _ in texts])
    parts = min(_PARTS, count)
    of_prompt = np.random.default_rng(seed).permutation(count) % parts
    by_part: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(parts)]
    for place, (_, words) in zip(places, texts, strict=True):
        by_part[of_prompt[place]].update(ngrams(words, size))
    # In how many parts an n-gram is: one that is in a single part goes with it.
    spread = Counter(chain.from_iterable(by_part))
    totals = np.array([one.total() for one in by_part])
    only = np.array([sum(spread[ngram] == 1 for ngram in one) for one in by_part])
    if not (totals.sum() - totals).all():
        raise NotIdentifiedError(f"no share of distinct n-grams: too few answers have {size} words")
    value = len(spread) / totals.sum()
    without = (len(spread) - only) / (totals.sum() - totals)
    error = np.sqrt((parts - 1) / parts * np.square(without - without.mean()).sum())
    half = float(stdtrit(parts - 1, (1 + LEVEL) / 2) * error)
    return Estimate(float(value), max(0.0, float(value) - half), min(1.0, float(value) + half), count)
