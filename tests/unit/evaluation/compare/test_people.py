"""What votes say of models: orders, ties of equal answers, and several people."""

from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.evaluation.compare.folder import Answer
from charter.evaluation.compare.people import ONE_OF_TWO, People
from charter.evaluation.compare.spec import fill_defaults
from charter.evaluation.compare.votes import Preference, Vote, text_digest, votes_that_count
from charter.v1 import evaluation_pb2

SPEC = fill_defaults(
    evaluation_pb2.EvaluateSpec(
        models=[evaluation_pb2.EvaluatedModel(name=name) for name in ("start", "ppo")], pairs="all"
    )
)
PROMPTS = [TaskPrompt(f"p{i}", (ChatMessage("user", f"Prompt {i}"),), "helpful" if i % 2 else "") for i in range(20)]


def answers(equal: int = 0) -> dict[tuple[str, str, int], Answer]:
    """Of the first ``equal`` prompts both models' are the same."""
    found = [
        Answer(model, prompt.key, 0, 0, prompt.dimension, "same" if place < equal else f"{model} says")
        for place, prompt in enumerate(PROMPTS)
        for model in ("start", "ppo")
    ]
    return {one.key: one for one in found}


def vote(prompt: int, preference: Preference, labeller: str = "ann", left: str = "ppo", id: str = "") -> Vote:
    right = "start" if left == "ppo" else "ppo"
    digests = text_digest(f"{left} says"), text_digest(f"{right} says")
    return Vote(id or f"{labeller}-{prompt}", labeller, "", f"p{prompt}", "", left, right, *digests, preference)


def test_a_preference_is_of_an_answer_wherever_it_was_shown() -> None:
    votes = [vote(0, "left"), vote(1, "right"), vote(2, "left", left="start"), vote(3, "tie", left="start")]
    rows = People(SPEC, PROMPTS, answers(), votes).rows()
    assert [(one.model_a, one.model_b) for one in rows] == [("ppo", "start")] * 4
    assert {one.prompt: one.probability_a for one in rows} == {"p0": 1.0, "p1": 0.0, "p2": 0.0, "p3": 0.5}
    assert {one.dimension for one in rows} == {"", "helpful"}


def test_votes_of_several_people_on_a_pair_are_one_judgement_and_their_agreement() -> None:
    votes = [vote(0, "left"), vote(0, "left", "ben"), vote(0, "right", "cleo"), vote(1, "tie", "ben")]
    people = People(SPEC, PROMPTS, answers(), votes)
    assert {one.prompt: one.probability_a for one in people.rows()} == {"p0": 2 / 3, "p1": 0.5}
    two = people.of_two()
    assert [[one.probability_a for one in two[name]] for name in ONE_OF_TWO] == [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    # Judgements of the same two people are told apart from those of two others.
    assert len({one.seed for one in two[ONE_OF_TWO[0]]}) == 3
    assert people.about["labellers"] == 3
    assert People(SPEC, PROMPTS, answers(), votes[-1:]).of_two() == {}


def test_equal_answers_are_ties_as_far_as_the_others_have_votes() -> None:
    # Of the 8 even prompts with different answers 4 have votes, so 1 of the 2 equal ones counts; of odd ones none has.
    votes = [vote(place, "left") for place in (4, 6, 8, 10)]
    rows = People(SPEC, PROMPTS, answers(equal=4), votes).rows()
    ties = [one for one in rows if one.probability_a == 0.5]
    assert (len(rows), len(ties)) == (5, 1)
    assert ties[0].prompt in ("p0", "p2")
    every = [vote(place, "left") for place in range(4, 20)]
    assert len(People(SPEC, PROMPTS, answers(equal=4), every).rows()) == 20


def test_the_last_vote_on_a_pair_counts_and_one_that_was_taken_back_does_not() -> None:
    first, again = vote(0, "left", id="1"), vote(0, "right", id="2")
    assert votes_that_count([first, first]) == [first]
    assert votes_that_count([first, again]) == [again]
    assert votes_that_count([first, again, vote(0, "", id="2")]) == [first]
    assert votes_that_count([first, vote(0, "", id="1")]) == []


def test_votes_on_other_answers_are_counted_and_left_out() -> None:
    votes = [vote(0, "left"), vote(1, "left")]
    changed = answers()
    changed["ppo", "p1", 0] = Answer("ppo", "p1", 0, 0, "", "something else")
    people = People(SPEC, PROMPTS, changed, votes)
    assert (people.left_out.items, people.left_out.kinds) == (2, {"of_other_answers": 1})
    assert [one.prompt for one in people.rows()] == ["p0"]
