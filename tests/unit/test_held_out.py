"""Which prompts are held out: the same for every way to write them."""

import unicodedata

import pytest
from charter.chat import ChatMessage
from charter.held_out import held_out_of, is_held_out, normalised, prompt_key
from hypothesis import given
from hypothesis import strategies as st


def key(*contents: str) -> str:
    return prompt_key(
        ChatMessage("user" if not place % 2 else "assistant", text) for place, text in enumerate(contents)
    )


@pytest.mark.parametrize(
    "variant",
    [
        "  What is\tthé tea?\r\n",
        "What  is\nthé\u00a0tea?",
        "What is thé tea?\u200b",
        "\ufeffWhat is thé tea?",
        "What is thé\u2028tea?",
        unicodedata.normalize("NFD", "What is thé tea?"),
        "What is thé tea？",
        "What is the\u200b\u0301 tea?",
    ],
)
def test_ways_to_write_a_prompt(variant: str) -> None:
    assert key(variant) == key("What is thé tea?")
    assert key("Hi", "Hello", variant) == key("Hi", "Hello", "What is thé tea?")


def test_what_makes_a_prompt_another_one() -> None:
    keys = [key("a b"), key("ab"), key("A b"), key("a b", "c", "d"), key("a b c d"), key("")]
    assert len(set(keys)) == len(keys)
    system = ChatMessage("system", "Be brief.")
    user = ChatMessage("user", "a b")
    assert prompt_key([system, user]) != key("a b") == prompt_key([ChatMessage("system", " "), user])
    assert prompt_key([ChatMessage("assistant", "a b")]) != key("a b")


def test_keys_never_change() -> None:
    """Answers that runs keep are named by them. `printf '[["user", "What is tea?"]]' | sha256sum`."""
    assert key("What is tea?") == "6e3275d78fb6302c"


@given(st.text())
def test_normalising_again_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@given(st.sets(st.text(min_size=1), max_size=30), st.floats(0, 1))
def test_a_share_of_the_prompts_is_held_out_and_both_parts_have_one(keys: set[str], fraction: float) -> None:
    held_out = held_out_of(keys, fraction)
    assert held_out <= keys
    if len(keys) < 2:
        assert not held_out
    else:
        assert 1 <= len(held_out) <= len(keys) - 1
        assert abs(len(held_out) - fraction * len(keys)) <= 1
        # The order is that in which prompts are held out one by one.
        assert {one for one in keys if is_held_out(one, fraction)} in (held_out, *_nested(keys, held_out, fraction))


def _nested(keys: set[str], held_out: set[str], fraction: float) -> list[set[str]]:
    alone = {one for one in keys if is_held_out(one, fraction)}
    return [alone] if alone <= held_out or held_out <= alone else []
