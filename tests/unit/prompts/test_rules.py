"""What is no prompt, and how a model is asked for one."""

import pytest
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.prompts.asking import FEW_SHOT, MAGPIE, PLAIN, Wanted, try_of
from charter.prompts.rules import CUT_OFF, REPEATS, SCAFFOLDING, TOO_LONG, TOO_SHORT, why_refused
from charter.v1 import types_pb2

SEEDS = [
    TaskPrompt(f"key{n}", (ChatMessage("user", f"What is {n}?"),), "harmless" if n % 2 else "helpful")
    for n in range(10)
]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("How do I brew tea?", ""),
        ("What does <b>bold</b> mean in HTML, and who is the user: me?", ""),
        ("Act as an assistant in a shop.\n\nWhat do you sell here?", ""),
        ("Tea?", TOO_SHORT),
        ("... !!", TOO_SHORT),
        ("word " * 30 + "and " * 30, TOO_LONG),
        ("User: how do I brew tea?", SCAFFOLDING),
        ("How do I brew tea?\nAssistant: Boil water.", SCAFFOLDING),
        ("How do I brew tea?<|im_end|>", SCAFFOLDING),
        ("How do I brew tea? [/INST] Boil", SCAFFOLDING),
        ("1. How do I brew tea?", SCAFFOLDING),
        ("Sure, how do I brew tea?", SCAFFOLDING),
        ("Here's another short request: how do I brew tea?", SCAFFOLDING),
        ("As an AI language model, I do not drink tea.", SCAFFOLDING),
        ("Request 5: how do I brew tea?", SCAFFOLDING),
        ("How do I brew \ufffd tea?", SCAFFOLDING),
        ("tell me of the tea tell me of the tea tell me of the tea", REPEATS),
    ],
)
def test_a_rule_refuses_what_is_no_prompt(text: str, rule: str) -> None:
    assert why_refused(text, cut_off=False, least_words=3, most_words=40) == rule


def test_what_is_cut_off_is_refused_whatever_it_says() -> None:
    assert why_refused("How do I brew tea?", cut_off=True, least_words=3, most_words=40) == CUT_OFF


def wanted(method: str, **more: object) -> Wanted:
    given = {"dimensions": ["helpful", "harmless"], "topics": ["tea", "law", "code"], "examples": 3} | more
    return Wanted(method, 7, given["dimensions"], given["topics"], given["examples"], SEEDS)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [FEW_SHOT, PLAIN, MAGPIE])
def test_a_try_follows_from_seed_and_number(method: str) -> None:
    tries = [try_of(wanted(method), number) for number in range(12)]
    assert tries == [try_of(wanted(method), number) for number in range(12)]
    assert len({one.seed for one in tries}) == 12
    # Each dimension with each topic, in turn.
    assert len({(one.dimension, one.topic) for one in tries[:6]}) == 6
    assert all(example.dimension == one.dimension for one in tries for example in one.examples)
    assert len({one.examples for one in tries}) == (1 if method == MAGPIE else 12)


def test_examples_are_turns_of_a_chat() -> None:
    asked = try_of(wanted(FEW_SHOT), 0)
    request = asked.as_request()
    roles = [turn.role for turn in request.messages]
    user, assistant = types_pb2.ROLE_USER, types_pb2.ROLE_ASSISTANT
    assert roles == [types_pb2.ROLE_SYSTEM, *[user, assistant] * 3, user]
    said = [turn.content for turn in request.messages if turn.role == assistant]
    assert said == [one.text for one in asked.examples]
    assert request.messages[-1].content.endswith("about tea.")
    assert asked.read('  "How do I brew tea?" ', ended=True) == [("How do I brew tea?", False)]
    assert asked.read("How do", ended=False) == [("How do", True)]


def test_a_base_model_goes_on_with_a_list() -> None:
    asked = try_of(wanted(PLAIN), 0)
    request = asked.as_request()
    assert not request.messages
    assert all(one.text in request.text for one in asked.examples)
    assert request.text.endswith("### Request 4\n")
    written = "How do I brew tea?\n\n### Request 5\nWhat is\nmatcha?\n\n### Request 6\nWhy is"
    whole = [("How do I brew tea?", False), ("What is\nmatcha?", False)]
    assert asked.read(written, ended=False) == [*whole, ("Why is", True)]
    assert asked.read(written, ended=True) == [*whole, ("Why is", False)]


def test_the_user_is_let_speak_about_a_topic() -> None:
    request = try_of(wanted(MAGPIE), 0).as_request()
    assert request.as_user
    assert [turn.role for turn in request.messages] == [types_pb2.ROLE_SYSTEM]
    assert not try_of(wanted(MAGPIE, topics=[""]), 0).as_request().messages
