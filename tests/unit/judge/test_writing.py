"""What the judge's model is asked when it criticises and revises."""

from charter.chat import ChatMessage
from charter.judge.writing import Draft, critique_prompt, revision_prompt
from charter.spec.constitution import Principle, RevisionExample

EXAMPLE = RevisionExample("Hi", "What.", "It is cold.", "Hello!")
PLAIN = Principle("kind", "helpful", "Which?", "Say what is unkind.", "Make it kind.", "Be kind.", "Be rude.")
SHOWN = Principle(**{name: getattr(PLAIN, name) for name in PLAIN.__slots__} | {"revisions": (EXAMPLE,)})
PROMPT = (ChatMessage("user", "Bye"),)


def test_without_examples_the_request_stands_alone() -> None:
    (asked,) = critique_prompt(Draft(PROMPT, "At last.", PLAIN)).messages
    assert asked.content.endswith("User: Bye\n\nAssistant: At last.\n\nSay what is unkind.")
    (asked,) = revision_prompt(Draft(PROMPT, "At last.", PLAIN, "It is rude.")).messages
    assert asked.content.endswith(
        "Critique of the last response: It is rude.\n\nMake it kind. Write only the new response."
    )


def test_an_example_is_asked_about_as_the_answer_is() -> None:
    asked, answer, last = critique_prompt(Draft(PROMPT, "At last.", SHOWN)).messages
    assert (asked.role, answer, last.role) == ("user", ChatMessage("assistant", EXAMPLE.critique), "user")
    assert last == critique_prompt(Draft(PROMPT, "At last.", PLAIN)).messages[0]
    of_example = Draft((ChatMessage("user", EXAMPLE.prompt),), EXAMPLE.answer, PLAIN, EXAMPLE.critique)
    assert asked == critique_prompt(of_example).messages[0]
    asked, answer, last = revision_prompt(Draft(PROMPT, "At last.", SHOWN, "It is rude.")).messages
    assert answer == ChatMessage("assistant", EXAMPLE.revision)
    assert asked == revision_prompt(of_example).messages[0]
    assert last == revision_prompt(Draft(PROMPT, "At last.", PLAIN, "It is rude.")).messages[0]
