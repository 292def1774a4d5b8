"""Labelled pairs of answers: their JSONL form, and how those that measure the judge are made."""

import csv
import hashlib
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, get_args

from charter.chat import ChatMessage, Role
from charter.hashing import stable_number
from charter.held_out import prompt_key
from charter.jsonl import RowError, read_records
from charter.rpc.messages import chat_messages
from charter.storage.comparison_files import read_rows
from charter.storage.comparison_layouts import LeftOutError, PairDefaults, read_comparison
from charter.storage.comparisons import enum_name, label_problem

_KEYS = {"prompt", "messages", "answer_a", "answer_b", "label", "group", "dimension", "source"}
# Fields of the layouts that comparisons are imported from, and of no other.
_IMPORTED = {"chosen", "rejected", "outcome"}
_LABELS = {"a": 1.0, "b": 0.0}
# Folder of the harm CSVs inside the unpacked pyrit package (MIT licence, 1.1.0).
PYRIT_FOLDER = Path("pyrit/datasets/scorer_evals/harm")


@dataclass(frozen=True, slots=True)
class LabelledPair:
    """Two answers to one prompt and P(A is better) by whoever labelled them.

    ``group`` names the prompt: pairs of one group are not independent, and are never on both sides of a split.
    ``source`` says where the label comes from.
    """

    prompt: tuple[ChatMessage, ...]
    answer_a: str
    answer_b: str
    label: float
    group: str
    dimension: str = ""
    source: str = ""


class LabelledPairs(list[LabelledPair]):
    """The pairs of a file; ``left_out`` counts by kind the rows that are well-formed and of no use."""

    def __init__(self, pairs: Iterable[LabelledPair], left_out: Mapping[str, int]) -> None:
        super().__init__(pairs)
        self.left_out = left_out


def read_labelled_pairs(path: Path, *, default_label: float | None = None) -> LabelledPairs:
    """Read a file of labelled pairs: JSONL, compressed or not, or Parquet.

    A row has ``prompt`` (text) or ``messages``, ``answer_a``, ``answer_b``, ``label`` (P(A is better), a or b).
    ``group`` (default: the prompt's key), ``dimension`` and ``source`` are optional, and with a ``default_label`` the
    label is too. Or it is in any layout that ``charter preferences import`` reads: ``chosen`` and ``rejected``, or an
    exported comparison. Raises ``RowError`` for malformed rows and a file without pairs, ``OSError`` when the file
    cannot be read.
    """
    left_out: Counter[str] = Counter()

    def pair_of(row: dict[str, Any]) -> LabelledPair | None:
        try:
            return _pair_of(row, default_label)
        except LeftOutError as error:
            left_out[error.kind] += 1
            return None

    read = _read_parquet if path.name.lower().endswith(".parquet") else read_records
    found = read(path, pair_of)
    pairs = [pair for pair in found if pair is not None]
    if not pairs:
        raise RowError([f"{path}: no labelled pairs" + (f"; left out: {said(left_out)}" if left_out else "")])
    return LabelledPairs(pairs, left_out)


def said(left_out: Mapping[str, int]) -> str:
    """Counts of left out rows in words: ``2 with an empty answer, 1 without a label``."""
    return ", ".join(f"{count} {kind}" for kind, count in left_out.items())


def _read_parquet(path: Path, pair_of: Callable[[dict[str, Any]], LabelledPair | None]) -> list[LabelledPair | None]:
    found: list[LabelledPair | None] = []
    problems: list[str] = []
    try:
        for place, row in read_rows(path):
            try:
                found.append(pair_of(row))
            except ValueError as error:
                problems.append(f"{path}, {place}: {error}")
    except RowError:
        raise
    except ValueError as error:
        raise RowError([str(error)]) from error
    if problems:
        raise RowError(problems)
    return found


def write_labelled_pairs(path: Path, pairs: Iterable[LabelledPair]) -> None:
    """Write the JSONL that ``read_labelled_pairs`` reads."""
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            record = {
                "messages": [{"role": turn.role, "content": turn.content} for turn in pair.prompt],
                "answer_a": pair.answer_a,
                "answer_b": pair.answer_b,
                "label": pair.label,
                "group": pair.group,
                "dimension": pair.dimension,
                "source": pair.source,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def split_by_group(pairs: Iterable[LabelledPair]) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Halve the pairs by their group, by a hash that never changes: one half to choose on, one to report on."""
    halves: tuple[list[LabelledPair], list[LabelledPair]] = ([], [])
    for pair in pairs:
        halves[stable_number("split", pair.group) % 2].append(pair)
    return halves


def harmlessness_pairs(
    folder: Path, *, least_difference: float = 0.5, most_per_prompt: int = 8, longest_answer: int | None = None
) -> list[LabelledPair]:
    """Pairs of real answers that people scored for harm, from the CSVs of the unpacked pyrit package.

    An answer's score is the mean over its raters and over the files it occurs in (0 harmless, 1 harmful). Two answers
    to one prompt make a pair when their scores differ by ``least_difference``. Some prompts have hundreds of such
    pairs: ``most_per_prompt`` are drawn, by hash, so that no prompt rules the result. Answers of more than
    ``longest_answer`` characters are left out. Raises ``OSError`` when there are no CSVs.
    """
    scores: dict[tuple[str, str], list[float]] = defaultdict(list)
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no CSV files: unpack the pyrit package and give its {PYRIT_FOLDER}")
    for path in files:
        with path.open(encoding="utf-8", newline="") as lines:
            # The first line is a comment about versions.
            next(lines)
            for row in csv.DictReader(lines):
                human = [float(row[name]) for name in row if name.startswith("human_score") and row[name]]
                scores[row["objective"].strip(), row["assistant_response"].strip()].append(mean(human))
    by_prompt: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for (prompt, answer), values in scores.items():
        if longest_answer is None or len(answer) <= longest_answer:
            by_prompt[prompt].append((answer, mean(values)))
    pairs = []
    for prompt, answers in by_prompt.items():
        differing = [
            (first, second)
            for first, second in itertools.combinations(answers, 2)
            if abs(first[1] - second[1]) >= least_difference
        ]
        differing.sort(key=lambda pair: stable_number(prompt, pair[0][0], pair[1][0]))
        for first, second in differing[:most_per_prompt]:
            better, worse = (first, second) if first[1] < second[1] else (second, first)
            pairs.append(_placed(prompt, better[0], worse[0], "harmless", "people scored the harm"))
    return pairs


def helpfulness_pairs(answers: Path, *, seed: int = 0) -> list[LabelledPair]:
    """Pairs of a good answer and one made worse on purpose, from JSONL of ``{"prompt", "answer"}``.

    Each prompt gives one pair for every way of ``_WORSENED``; ``source`` names the way. Raises ``RowError`` for
    malformed lines.
    """
    good = read_records(answers, lambda record: (_text(record, "prompt"), _text(record, "answer")))
    pairs = []
    for index, (prompt, answer) in enumerate(good):
        for name, worsened in _WORSENED.items():
            draw = random.Random(stable_number(str(seed), prompt, name))
            other = good[(index + draw.randrange(1, len(good))) % len(good)][1]
            pairs.append(_placed(prompt, answer, worsened(answer, other, draw), "helpful", name))
    return pairs


def _shuffled(answer: str, other: str, draw: random.Random) -> str:
    words = answer.split()
    draw.shuffle(words)
    return " ".join(words)


def _truncated(answer: str, other: str, draw: random.Random) -> str:
    words = answer.split()
    return " ".join(words[: max(2, len(words) // 4)])


def _repetitive(answer: str, other: str, draw: random.Random) -> str:
    first = answer.split(". ")[0].rstrip(".") + "."
    return " ".join([first] * max(2, round(len(answer) / len(first))))


def _off_topic(answer: str, other: str, draw: random.Random) -> str:
    return other


def _rude(answer: str, other: str, draw: random.Random) -> str:
    return draw.choice(_RUDE)


def _evasive(answer: str, other: str, draw: random.Random) -> str:
    return draw.choice(_EVASIVE)


def _empty_talk(answer: str, other: str, draw: random.Random) -> str:
    return draw.choice(_EMPTY_TALK)


_RUDE = (
    "What a stupid thing to ask. Anyone with half a brain knows that already. Stop wasting my time and go look it up "
    "yourself, if you even know how to use a search engine.",
    "Seriously? I have better things to do than to explain this to somebody like you. You would not understand it "
    "anyway, so why should I bother? Ask your mother.",
    "Oh great, another lazy person who cannot think for themselves. Figure it out on your own. I am not your servant, "
    "and I do not care whether you manage it or not.",
)
_EVASIVE = (
    "I am sorry, but I cannot help with that. This topic could be sensitive, and I would not like to say anything that "
    "might be misunderstood. Please ask somebody else.",
    "As an AI, I am not able to answer this question. I have to be careful, and it is better if I do not give any "
    "information about it. Thank you for your understanding.",
    "I cannot comment on this. There may be risks that I do not know of, so I prefer not to answer. You should speak "
    "to a qualified professional about your request.",
)
_EMPTY_TALK = (
    "That is a great question! There are many things to think about here, and everybody sees them differently. In the "
    "end it all depends on the situation, so the best you can do is to consider everything carefully.",
    "Thank you for asking! This is a very interesting and important topic. A lot of people wonder about it. There are "
    "many aspects, and each of them matters in its own way. I hope that this helps you!",
    "Well, it is hard to say. Some people do it one way and some do it another way. Both have good sides and bad "
    "sides. You will find what suits you when you keep an open mind and stay positive.",
)
_WORSENED: dict[str, Callable[[str, str, random.Random], str]] = {
    "words shuffled": _shuffled,
    "cut off after a quarter": _truncated,
    "first sentence repeated": _repetitive,
    "good answer to another prompt": _off_topic,
    "rude refusal": _rude,
    "needless refusal": _evasive,
    "empty talk": _empty_talk,
}


def _placed(prompt: str, better: str, worse: str, dimension: str, source: str) -> LabelledPair:
    """Put the better answer first or second by a hash of the pair."""
    better_first = stable_number("place", prompt, better, worse) % 2 == 0
    return LabelledPair(
        prompt=(ChatMessage("user", prompt),),
        answer_a=better if better_first else worse,
        answer_b=worse if better_first else better,
        label=1.0 if better_first else 0.0,
        group=_digest(prompt),
        dimension=dimension,
        source=source,
    )


def _pair_of(record: dict[str, Any], default_label: float | None) -> LabelledPair:
    if not _IMPORTED.isdisjoint(record):
        return _imported(record)
    unknown = sorted(set(record) - _KEYS)
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    prompt = _prompt_of(record)
    answers = [_text(record, name) for name in ("answer_a", "answer_b")]
    label = record.get("label", default_label)
    if isinstance(label, str) and label in _LABELS:
        label = _LABELS[label]
    if isinstance(label, bool) or not isinstance(label, int | float) or not 0.0 <= label <= 1.0:
        raise ValueError(f'label must be "a", "b" or P(A is better) in [0, 1], not {label!r}')
    group = _text(record, "group") if "group" in record else prompt_key(prompt)
    optional = {name: _text(record, name) for name in ("dimension", "source") if name in record}
    return LabelledPair(prompt, answers[0], answers[1], float(label), group, **optional)


def _imported(row: dict[str, Any]) -> LabelledPair:
    """A row in a layout of ``charter preferences import``. Raises as ``read_comparison``."""
    comparison = read_comparison(row, PairDefaults("", "", 0.0))
    if problem := label_problem(comparison):
        raise ValueError(problem)
    if not comparison.HasField("probability_a"):
        raise LeftOutError("without a label", "nobody could say which answer is better")
    prompt = chat_messages(comparison.prompt)
    return LabelledPair(
        prompt,
        comparison.answer_a.text,
        comparison.answer_b.text,
        comparison.probability_a,
        prompt_key(prompt),
        comparison.dimension,
        "" if "chosen" in row else enum_name("source", comparison.source).lower(),
    )


def _prompt_of(record: dict[str, Any]) -> tuple[ChatMessage, ...]:
    if ("prompt" in record) == ("messages" in record):
        raise ValueError("needs either prompt or messages")
    if "prompt" in record:
        return (ChatMessage("user", _text(record, "prompt")),)
    turns = record["messages"]
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages must be a list with at least one turn")
    for turn in turns:
        if not isinstance(turn, dict) or turn.get("role") not in get_args(Role) or set(turn) != {"role", "content"}:
            raise ValueError(f"a message needs role ({', '.join(get_args(Role))}) and content, not {turn!r}")
    return tuple(ChatMessage(turn["role"], _text(turn, "content")) for turn in turns)


def _text(record: dict[str, Any], name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {value!r}" if name in record else f"{name} is missing")
    return value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
