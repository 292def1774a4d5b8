"""Near-copies are found, all of them, and are never on both sides."""

import math
import re
from itertools import product

import pytest
from charter.chat import ChatMessage
from charter.held_out import is_held_out, prompt_key
from charter.prompts.near_copies import NearCopies, pieces_of, plain_words, similarity
from charter.prompts.split import (
    BETWEEN,
    COPY,
    DUPLICATE,
    HELD_OUT,
    HELD_OUT_WORDS,
    NEAR,
    NEAR_DUPLICATE,
    TRAIN,
    Split,
    in_a_row,
)
from hypothesis import given, settings
from hypothesis import strategies as st

WORDS = re.findall(
    r"\S+", "tea cup how do you brew green black hot cold water for a friend in the morning please tell me"
)
# Of few words, so that many are near to each other.
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=2, max_size=14).map(" ".join), min_size=2, max_size=16)


def drawn(text: str, fraction: float) -> str:
    return HELD_OUT if is_held_out(prompt_key([ChatMessage("user", text)]), fraction) else TRAIN


def text_drawn(side: str, fraction: float = 0.5, begin: str = "tea") -> str:
    """A text that draws a side, unlike any other word by word."""
    return next(text for n in range(100) if drawn(text := f"{begin} {math.factorial(n + 9) * 7919}", fraction) == side)


@settings(max_examples=25, deadline=None)
@given(texts=TEXTS, asked=st.lists(st.sampled_from(WORDS), min_size=1, max_size=14).map(" ".join))
@pytest.mark.parametrize("least", [NEAR, COPY, 1.0])
def test_no_near_copy_is_overlooked(least: float, texts: list[str], asked: str) -> None:
    index = NearCopies()
    for text in texts:
        index.add(pieces_of(text))
    found = [similarity(pieces_of(asked), pieces_of(text)) for text in texts]
    assert index.near(pieces_of(asked), least) == [place for place, one in enumerate(found) if one >= least]
    assert index.nearest(pieces_of(asked)) == pytest.approx(max(found))


@settings(max_examples=40, deadline=None)
@given(seeds=TEXTS, held_out=TEXTS, new=TEXTS, fraction=st.sampled_from([0.0, 0.2, 0.5]))
def test_near_copies_never_cross(seeds: list[str], held_out: list[str], new: list[str], fraction: float) -> None:
    split = Split(fraction)
    # What people give may be near to anything; what is new is not.
    there = [(text, TRAIN) for text in seeds] + [(text, HELD_OUT) for text in held_out]
    for text, side in there:
        split.add(text, side)
    accepted: list[tuple[str, str]] = []
    for text in new:
        side, why = split.side_of(text)
        assert bool(side) != bool(why)
        if side:
            split.add(text, side)
            accepted.append((text, side))
    for (text, side), (other, its_side) in product(accepted, there + accepted):
        if text is other:
            continue
        near = similarity(pieces_of(text), pieces_of(other))
        assert near < COPY
        assert side == its_side or near < NEAR
        if side != its_side:
            assert not in_a_row(plain_words(text)) & in_a_row(plain_words(other))


def test_a_side_is_drawn_by_the_first_of_a_cluster() -> None:
    for side in (TRAIN, HELD_OUT):
        split = Split(0.5)
        first = text_drawn(side)
        assert split.side_of(first) == (side, "")
        split.add(first, side)
        # Of texts that are near to it, some would have drawn the other side.
        near = [f"{first} {word}{other}" for word in WORDS for other in WORDS]
        near = [text for text in near if NEAR <= similarity(pieces_of(text), pieces_of(first)) < COPY]
        assert {drawn(text, 0.5) for text in near} == {TRAIN, HELD_OUT}
        assert {split.side_of(text) for text in near} == {(side, "")}


def test_the_share_is_that_of_the_clusters() -> None:
    split = Split(0.2)
    sides = [split.side_of(f"{math.factorial(n + 20)}")[0] for n in range(200)]
    assert 0.1 < sides.count(HELD_OUT) / 200 < 0.3
    assert {Split(0.0).side_of(text)[0] for text in WORDS} == {TRAIN}


@pytest.mark.parametrize(
    "text", ["How do you BREW green tea?", "  how do you brew, green tea  ", "How\u200b do you brew green tea"]
)
def test_a_copy_is_one_whatever_its_case_and_punctuation(text: str) -> None:
    split = Split(0.5)
    split.add("How do you brew green tea?", TRAIN)
    assert split.side_of(text) == ("", DUPLICATE)
    assert split.side_of("How do you brew some green tea?") == ("", NEAR_DUPLICATE)


def test_what_is_near_to_both_sides_is_refused() -> None:
    split = Split(0.5)
    split.add("how to brew green tea at home", TRAIN)
    split.add("the best cups for the morning", HELD_OUT)
    assert split.side_of("how to brew green tea at home the best cups for the morning") == ("", BETWEEN)


def test_eight_words_in_a_row_give_a_held_out_prompt_away() -> None:
    eight = "one two three four five six seven eight"
    more = "and then something else that nobody has ever said before at all, with many other words behind"
    split = Split(0.5)
    split.add(f"{eight} is how a long request about numbers begins, of which there is a great deal to say", HELD_OUT)
    assert split.side_of(f"{more} {eight}") == ("", HELD_OUT_WORDS)
    assert split.side_of(f"{more} {eight.removesuffix(' eight')} nine")[1] == ""
    # The other way round: with words of what is trained on a prompt cannot be held out.
    fresh = next(f"{more} {n} {eight}" for n in range(100) if drawn(f"{more} {n} {eight}", 0.5) == HELD_OUT)
    split = Split(0.5)
    split.add(f"{eight} is how a long request about numbers begins, of which there is a great deal to say", TRAIN)
    assert split.side_of(fresh) == (TRAIN, "")


def test_a_text_that_is_just_near_is_found_by_its_commonest_pieces() -> None:
    index = NearCopies()
    asked = frozenset("abcdefghij")
    # 6 of 10 are shared, the last that are looked up: nobody else has the other 4.
    index.add(frozenset("abcdef"))
    for piece in "abcdef":
        index.add(frozenset((piece, "x", "y", "z")))
    assert index.near(asked, 0.6) == [0]
    assert index.near(asked, 0.61) == []
