"""What is wrong with a revision is found by its kind, and a good one is left alone."""

import pytest
from charter.evaluation.figures.words import ending
from charter.worker.revision.filters import (
    CUT_OFF,
    EMPTY,
    LANGUAGE,
    REPEATS,
    SCAFFOLDING,
    SCRIPT,
    UNCHANGED,
    common_endings,
    why_unfit,
)
from hypothesis import given
from hypothesis import strategies as st

PROMPT = "How do I pick a lock?"
ANSWER = "Buy a pick and a tension wrench, then rake the pins until the cylinder turns."
CRITIQUE = "The response could help somebody to enter a house that is not theirs, and it never asks whose lock it is."
GOOD = "If it is your own door, a locksmith can open it today and cut a new key. I would not pick a stranger's lock."


def kind(revision: str, *, answer: str = ANSWER, prompt: str = PROMPT, cut_off: bool = False) -> str:
    return why_unfit(revision, answer=answer, prompt=prompt, critique=CRITIQUE, cut_off=cut_off)


@pytest.mark.parametrize(
    "revision",
    [
        GOOD,
        "Call a locksmith.",
        # A list repeats its marks, a table its rules.
        "- Ask the owner.\n- Ask a neighbour.\n- Ask the police.\n- Wait.",
        "| tool | use |\n| --- | --- |\n| key | opens |\n| lock | closes |",
        "42",
        "The new lock needs a new key. This is the key: a small one.",
    ],
)
def test_a_good_revision_passes(revision: str) -> None:
    assert kind(revision) == ""


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("", EMPTY),
        (" \n ", EMPTY),
        (ANSWER, UNCHANGED),
        (f"  {ANSWER.upper()} ", UNCHANGED),
        ("Please be kind. " * 6, REPEATS),
        ("I cannot help you with that request. " * 3, REPEATS),
        ("Call one 😊😊😊😊😊😊😊", REPEATS),
        ("我不能帮助你。" * 6, REPEATS),
        ("Sure, here is a revised response: call a locksmith.", SCAFFOLDING),
        ("Here's the rewritten answer. Call a locksmith.", SCAFFOLDING),
        ("Revised response: call a locksmith.", SCAFFOLDING),
        ("Based on the critique I would say: call a locksmith.", SCAFFOLDING),
        ("Assistant: call a locksmith.", SCAFFOLDING),
        ("Call one.\n\nUser: thanks", SCAFFOLDING),
        ("**Revision Request:** call one", SCAFFOLDING),
        ("No: somebody to enter a house that is not theirs could read it.", SCAFFOLDING),
        ("Вызовите слесаря, он откроет дверь.", SCRIPT),
        ("请打电话给锁匠,他会帮你开门。", SCRIPT),
        ("Je ne peux pas vous aider avec cela, mais un serrurier peut ouvrir votre porte.", LANGUAGE),
        ("Dabei kann ich leider nicht helfen. Frage bitte einen Schlosser.", LANGUAGE),
        ("No puedo ayudarte con eso. Llama a un cerrajero.", LANGUAGE),
        ("Maaf, saya tidak bisa membantu Anda dengan hal itu.", LANGUAGE),
        ("Niestety nie mogę w tym pomóc.", LANGUAGE),
    ],
)
def test_what_is_wrong_is_named(revision: str, expected: str) -> None:
    assert kind(revision) == expected


def test_a_revision_that_the_limit_ended_is_cut_off() -> None:
    assert kind(GOOD, cut_off=True) == CUT_OFF


def test_a_script_of_the_conversation_is_no_change() -> None:
    assert kind("Вызовите слесаря.", prompt="Как открыть замок?") == ""
    # A single foreign word makes no conversation of two scripts.
    assert kind("Вызовите слесаря.", prompt=f"{PROMPT} (замок)") == SCRIPT


def test_a_language_of_the_conversation_is_no_change() -> None:
    french = "Je ne peux pas vous aider avec cela, mais un serrurier peut ouvrir votre porte."
    assert kind(french, prompt="Comment ouvrir une serrure sans la clé ? Réponds-moi vite.") == ""
    assert kind(french, answer="Achetez un crochet et tournez le cylindre de la serrure.") == ""
    assert kind(GOOD, answer="Achetez un crochet et tournez le cylindre de la serrure.") == ""
    # Nobody knows what language a number or a name is in.
    assert kind("Paris!", prompt="17 + 4 = ?", answer="21") == ""
    assert kind("Nein, ich helfe dir nicht dabei, bitte frage einen Schlosser.", prompt="17 + 4 = ?", answer="21") == ""


def test_words_of_the_conversation_are_no_scaffolding() -> None:
    asked = "Write a scene.\nUser: hello\nAssistant: hi"
    assert kind("A scene.\nUser: good day\nAssistant: hi there", prompt=asked) == ""
    assert kind("A scene.\nCritique: none", prompt=asked) == SCAFFOLDING


def test_endings_that_many_share_are_common() -> None:
    own = [f"Answer number {n} says what it has to say about topic {n}." for n in range(57)]
    shared = [f"Answer {n}. Have a great day, my dear friend!" for n in range(3)]
    assert common_endings([*own, *shared]) == {ending(shared[0])}
    # Below three, and below 5 %.
    assert common_endings([*own[:10], *shared[:2]]) == set()
    assert common_endings([*own, *own, *shared]) == set()


def test_a_short_text_has_no_ending_of_its_own() -> None:
    assert ending("No, I cannot.") == ""
    assert common_endings(["I cannot."] * 10) == set()


@given(st.text(), st.text(), st.text(), st.text())
def test_every_text_has_a_verdict(revision: str, answer: str, prompt: str, critique: str) -> None:
    found = why_unfit(revision, answer=answer, prompt=prompt, critique=critique, cut_off=False)
    assert (found == EMPTY) == (not revision.strip())
    assert why_unfit(answer, answer=answer, prompt=prompt, critique=critique, cut_off=False) in (EMPTY, UNCHANGED)
