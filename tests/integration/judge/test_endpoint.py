"""The judge service in front of an OpenAI-compatible endpoint: the methods that ask questions, and failures."""

import json
import math
from pathlib import Path

import grpc
import pytest
from charter.chat import ChatMessage
from charter.judge.server import JudgeConfig, build
from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, types_pb2
from prometheus_client import REGISTRY

from tests.support.endpoint import MODEL, Answer, Body, Failure, endpoint
from tests.support.endpoint_judge import CONSTITUTION, DEADLINE, compare, item, judge
from tests.support.harness import running


def asked(body: Body) -> str:
    """The text of the user's last turn; a prefix may stand behind it."""
    return str([turn["content"] for turn in body["messages"] if turn["role"] == "user"][-1])


def letters(first: float) -> Answer:
    return Answer("A", {"A": first, " B": 1 - first})


def prefers_good(body: Body) -> Answer:
    """Says A with 0.9 when the good answer is A, with 0.6 when it is B: a bias towards the first position."""
    text = asked(body)
    return letters(0.9 if text.find("good") < text.find("bad") else 0.6)


def test_both_orders_are_averaged_and_reported(tmp_path: Path) -> None:
    with judge(tmp_path, prefers_good) as (stub, _):
        judged = compare(stub, item("x", "a good answer", "a bad answer"))["x"]
        exchanged = compare(stub, item("x", "a bad answer", "a good answer"))["x"]
    (one,) = judged.principles
    assert one.probability_a_shown_first == pytest.approx(0.9)
    # B stands first and gets 0.6 although A is the good one.
    assert one.probability_a_shown_second == pytest.approx(0.4)
    assert judged.probability_a == pytest.approx(0.65)
    assert judged.outcome == types_pb2.OUTCOME_PREFERRED_A
    assert abs(exchanged.probability_a - (1 - judged.probability_a)) < 1e-12
    assert exchanged.principles[0].probability_a_shown_first == pytest.approx(0.6)


def test_position_bias_is_counted_by_principle(tmp_path: Path) -> None:
    def count(name: str) -> float:
        return REGISTRY.get_sample_value(name, {"principle": "kind"}) or 0.0

    with judge(tmp_path, prefers_good) as (stub, _):
        names = ("charter_judge_ordered_total", "charter_judge_position_biased_total")
        before = [count(name) for name in names]
        compare(stub, item("x", "a good answer", "a bad answer"), item("y", "one", "another"))
        assert [count(name) for name in names] == [before[0] + 2, before[1] + 2]


def test_a_judge_that_only_sees_positions_gives_a_tie(tmp_path: Path) -> None:
    with judge(tmp_path, lambda body: letters(0.99)) as (stub, _):
        judged = compare(stub, item("x", "a good answer", "a bad answer"))["x"]
    assert (judged.probability_a, judged.outcome) == (0.5, types_pb2.OUTCOME_TIE)


def test_the_prompt_holds_conversation_answers_and_principle(tmp_path: Path) -> None:
    with judge(tmp_path, prefers_good) as (stub, served):
        served.requests.clear()
        compare(stub, item("x", "a good answer", "a bad answer"))
        texts = [asked(body) for body in served.requests]
    assert len(texts) == 2
    for text in texts:
        assert "User: How are you?" in text
        assert "Which is kinder?" in text
    assert sum("(A) a bad answer\n\n(B) a good answer" in text for text in texts) == 1


def test_examples_come_before_the_pair_and_are_swapped_with_it(tmp_path: Path) -> None:
    examples = """
    examples:
      - {prompt: "First?", better: one good, worse: one bad}
      - {prompt: "Second?", better: two good, worse: two bad}
"""
    with judge(tmp_path, prefers_good, constitution=CONSTITUTION + examples) as (stub, served):
        served.requests.clear()
        judged = compare(stub, item("x", "a good answer", "a bad answer"))["x"]
        dialogues = [[turn["content"] for turn in body["messages"]] for body in served.requests]
    assert judged.principles[0].probability_a_shown_first == pytest.approx(0.9)
    assert len(dialogues) == 2
    orders = {}
    for first, answer_1, second, answer_2, pair, _ in dialogues:
        assert ("First?" in first, "Second?" in second, "Which is kinder?" in first) == (True, True, True)
        letters_of = (answer_1[-2], answer_2[-2])
        for text, letter, word in ((first, letters_of[0], "one"), (second, letters_of[1], "two")):
            assert f"({letter}) {word} good" in text
        orders["(A) a good answer" in pair] = letters_of
    assert sorted(orders.values()) == [("A", "B"), ("B", "A")]
    assert len(orders) == 2


def test_a_conversation_of_several_turns_is_shown_whole(tmp_path: Path) -> None:
    turns = [
        ChatMessage("system", "You are a guide."),
        ChatMessage("user", "Where am I?"),
        ChatMessage("assistant", "In Rome."),
        ChatMessage("user", "And the time?"),
    ]
    pair = judge_pb2.ComparisonItem(id="x", prompt=proto_messages(turns), answer_a="a good one", answer_b="a bad one")
    with judge(tmp_path, prefers_good) as (stub, served):
        served.requests.clear()
        assert compare(stub, pair)["x"].outcome == types_pb2.OUTCOME_PREFERRED_A
        shown = asked(served.requests[0])
    assert "System: You are a guide.\n\nUser: Where am I?\n\nAssistant: In Rome.\n\nUser: And the time?\n\n(A)" in shown


def test_an_answer_outside_the_options_is_invalid(tmp_path: Path) -> None:
    with judge(tmp_path, lambda body: Answer("Hm", {"Hm": 0.97, "A": 0.02, "B": 0.01})) as (stub, _):
        judged = compare(stub, item("x", "a good answer", "a bad answer"))["x"]
    assert (judged.outcome, judged.HasField("probability_a")) == (types_pb2.OUTCOME_INVALID, False)
    assert "a probability of 0.03 in all" in judged.principles[0].failure


def test_an_option_that_is_not_listed_stays_finite(tmp_path: Path) -> None:
    with judge(tmp_path, lambda body: Answer("A", {"A": 0.999})) as (stub, _):
        judged = compare(stub, item("x", "a good answer", "a bad answer"))["x"]
    assert judged.probability_a == pytest.approx(0.5)
    assert judged.principles[0].probability_a_shown_first < 1


def test_an_endpoint_that_fails_gives_no_label_and_costs_no_other(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer | Failure:
        return Failure(503) if "broken" in asked(body) else prefers_good(body)

    with judge(tmp_path, reply) as (stub, served):
        served.requests.clear()
        judged = compare(stub, item("lost", "a broken answer", "a bad answer"), item("kept", "a good one", "a bad one"))
        tries = sum("broken" in asked(body) for body in served.requests)
    assert (judged["lost"].outcome, judged["lost"].HasField("probability_a")) == (types_pb2.OUTCOME_UNAVAILABLE, False)
    assert MODEL in judged["lost"].principles[0].failure
    assert judged["kept"].outcome == types_pb2.OUTCOME_PREFERRED_A
    # Each of the two orders was tried again.
    assert tries > 2


def test_a_failure_that_passes_is_tried_again(tmp_path: Path) -> None:
    failures = iter([Failure(429), Failure(500)])

    def reply(body: Body) -> Answer | Failure:
        return next(failures, prefers_good(body)) if "good" in asked(body) else prefers_good(body)

    with judge(tmp_path, reply) as (stub, _):
        judged = compare(stub, item("x", "a good answer", "a bad answer"))["x"]
    assert judged.outcome == types_pb2.OUTCOME_PREFERRED_A


def structured(body: Body) -> Answer | Failure:
    """An endpoint without log-probs, that keeps to a schema; it prefers the good answer."""
    if body.get("logprobs"):
        return Failure(400, "logprobs are not supported")
    if "response_format" not in body:
        return Answer("A")
    options = body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"]
    text = asked(body)
    if "endless" in text:
        return Answer("I would rather not say")
    choice = "8" if "8" in options else "A" if text.find("good") < text.find("bad") else "B"
    return Answer(json.dumps({"answer": choice}))


def test_without_log_probs_the_written_option_is_read_and_the_result_says_so(tmp_path: Path) -> None:
    with judge(tmp_path, structured) as (stub, _):
        judged = compare(stub, item("x", "a good answer", "a bad answer"), item("lost", "endless", "short"))
        rated = judge_pb2.AnswerItem(id="x", prompt=item("x", "", "").prompt, answer="Fine.")
        (score,) = stub.Score(judge_pb2.JudgeServiceScoreRequest(items=[rated]), timeout=DEADLINE)
    (one,) = judged["x"].principles
    assert one.without_logprobs
    assert judged["x"].probability_a == pytest.approx(1, abs=1e-6)
    assert (judged["x"].usage.prompt_tokens, judged["x"].usage.completion_tokens) == (14, 2)
    assert (one.prompt_tokens, one.completion_tokens) == (14, 2)
    assert judged["lost"].outcome == types_pb2.OUTCOME_INVALID
    assert judged["lost"].principles[0].failure == "the model wrote none of the options A, B"
    assert (score.without_logprobs, list(score.distribution)[7]) == (True, 1.0)


def test_an_endpoint_with_neither_log_probs_nor_structure_cannot_judge(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer | Failure:
        return Failure(400, "unknown parameter") if "response_format" in body else Answer("A")

    with pytest.raises(ValueError, match=r"cannot judge by choice: .*unknown parameter"), judge(tmp_path, reply):
        pass


def test_reasoning_counts_the_tokens_that_the_endpoint_counted(tmp_path: Path) -> None:
    with judge(tmp_path, prefers_good) as (stub, served):
        served.requests.clear()
        judged = compare(stub, item("x", "a good answer", "a bad answer"), chain_of_thought=True)["x"]
        calls = len(served.requests)
    assert (judged.usage.prompt_tokens, judged.usage.completion_tokens) == (7 * calls, calls)


def test_a_spent_budget_ends_the_request_and_says_what_to_do(tmp_path: Path) -> None:
    # Starting costs some calls of 8 tokens, a label two.
    with judge(tmp_path, prefers_good, token_budget=160, concurrent_calls=2) as (stub, served):
        items = [item(str(index), f"a good answer {index}", "a bad answer") for index in range(40)]
        with pytest.raises(grpc.RpcError) as caught:
            compare(stub, *items)
        asked_in_all = len(served.requests)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "token budget of 160 is spent" in (caught.value.details() or "")
    assert "resume the run" in (caught.value.details() or "")
    # Only what was under way passes the bound.
    assert 20 <= asked_in_all <= 22


def test_a_conversation_that_is_refused_is_invalid(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer | Failure:
        too_long = Failure(400, "maximum context length is 8 tokens", "context_length_exceeded")
        return too_long if "endless" in asked(body) else prefers_good(body)

    with judge(tmp_path, reply) as (stub, _):
        judged = compare(stub, item("long", "endless", "short"), item("kept", "a good one", "a bad one"))
    assert judged["long"].outcome == types_pb2.OUTCOME_INVALID
    assert "maximum context length" in judged["long"].principles[0].failure
    assert judged["kept"].HasField("probability_a")


def test_verdict_asks_about_one_answer_and_mirrors_the_question(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer:
        text = asked(body)
        # Yes-biased, and right about the good answer under both questions.
        kind = "Be kind." in text
        yes = {(True, True): 0.9, (True, False): 0.6, (False, True): 0.5, (False, False): 0.8}[kind, "good" in text]
        return Answer("Yes", {"Yes": yes, "No": 1 - yes})

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    with judge(tmp_path, reply, "verdict") as (stub, _):
        judged = compare(stub, item("x", "a good answer", "a bad answer"))["x"]
    (one,) = judged.principles
    assert list(one.evidence) == pytest.approx([logit(0.9) - logit(0.6), logit(0.5) - logit(0.8)])
    assert not one.HasField("probability_a_shown_first")
    assert judged.method == judge_pb2.JUDGING_METHOD_VERDICT


def test_a_mix_weighs_what_its_methods_find(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer:
        text = asked(body)
        if "(A)" in text:
            return prefers_good(body)
        yes = 0.8 if ("Be kind." in text) == ("good" in text) else 0.3
        return Answer("Yes", {"Yes": yes, "No": 1 - yes})

    def logit(p: float) -> float:
        return math.log(p / (1 - p))

    with judge(tmp_path, reply, "mix") as (stub, _):
        judged = compare(stub, item("x", "a good answer", "a bad answer"))["x"]
        exchanged = compare(stub, item("x", "a bad answer", "a good answer"))["x"]
    (one,) = judged.principles
    lead = logit(0.8) - logit(0.3)
    # Both orders of the letters, the verdicts and their mirror; an endpoint gives no likelihoods to contrast.
    expected = [logit(0.9), -logit(0.6), lead, -lead, 0, 0]
    assert list(one.evidence) == pytest.approx(expected)
    log_odds = ((expected[0] + expected[1]) / 2 + 2 * lead) / 3
    assert judged.probability_a == pytest.approx(1 / (1 + math.exp(-log_odds)))
    assert exchanged.probability_a == pytest.approx(1 - judged.probability_a, abs=1e-12)
    assert list(exchanged.principles[0].evidence) == pytest.approx([logit(0.6), -logit(0.9), -lead, lead, 0, 0])
    assert judged.method == judge_pb2.JUDGING_METHOD_MIX


def test_contrast_needs_likelihoods_that_an_endpoint_does_not_give(tmp_path: Path) -> None:
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    with endpoint(prefers_good) as served:
        room = build(
            JudgeConfig(MODEL, tmp_path / "constitution.yaml", "openai", engine_settings={"endpoint": served.url})
        )
        with pytest.raises(ValueError, match=f"{MODEL} cannot judge by contrast: .* no log-likelihood"), running(room):
            pass


def test_reasoning_comes_first_and_is_clamped(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer:
        if len(body["messages"]) == 1 and "step by step" in asked(body):
            return Answer("Because it is good.")
        return letters(0.999)

    with judge(tmp_path, reply) as (stub, served):
        served.requests.clear()
        judged = compare(stub, item("x", "a good answer", "a bad answer"), chain_of_thought=True)["x"]
        last = [body for body in served.requests if body.get("logprobs")]
    (one,) = judged.principles
    assert (one.probability_a_shown_first, one.probability_a_shown_second) == pytest.approx((0.6, 0.4))
    assert (one.rationale, one.rationale_swapped) == ("Because it is good.", "Because it is good.")
    assert all(any(turn["content"] == "Because it is good." for turn in body["messages"]) for body in last)


def test_a_score_is_the_expected_rating(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer:
        if "whole number" not in asked(body):
            return letters(0.5)
        return Answer("8", {"8": 0.4, " 10": 0.4, "1": 0.1, "well": 0.1})

    with judge(tmp_path, reply) as (stub, _):
        answer = judge_pb2.AnswerItem(id="x", prompt=item("x", "", "").prompt, answer="Fine.")
        empty = judge_pb2.AnswerItem(id="empty", prompt=answer.prompt, answer=" ")
        request = judge_pb2.JudgeServiceScoreRequest(items=[answer, empty])
        found = {one.item_id: one for one in stub.Score(request, timeout=DEADLINE)}
    assert list(found["x"].distribution) == pytest.approx([1 / 9, 0, 0, 0, 0, 0, 0, 4 / 9, 0, 4 / 9], abs=1e-7)
    expected = (1 * 0.1 + 8 * 0.4 + 10 * 0.4) / 0.9
    assert found["x"].score == pytest.approx(2 * (expected - 1) / 9 - 1, abs=1e-6)
    assert (found["empty"].rated, found["empty"].HasField("score")) == (False, False)
    assert found["empty"].failure == "the answer is empty"


def test_critique_and_revision_are_written_by_the_principle(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer:
        text = asked(body)
        if "Say what is unkind." in text:
            return Answer(" It is rude. ")
        if "Make it kind." in text:
            return Answer("Fine, thank you." if "Critique of the last response: It is rude." in text else "?")
        return letters(0.5)

    with judge(tmp_path, reply) as (stub, _):
        draft = judge_pb2.AnswerItem(id="x", prompt=item("x", "", "").prompt, answer="Go away.")
        limits = judge_pb2.SamplingLimits(max_new_tokens=20, temperature=0)
        (critique,) = stub.Critique(judge_pb2.CritiqueRequest(items=[draft], limits=limits), timeout=DEADLINE)
        assert (critique.critique, critique.principle_id, critique.failure) == ("It is rude.", "kind", "")
        draft.critique = critique.critique
        (revision,) = stub.Revise(judge_pb2.ReviseRequest(items=[draft], limits=limits), timeout=DEADLINE)
    assert (revision.revision, revision.principle_id) == ("Fine, thank you.", "kind")


def test_an_unwritten_critique_says_why(tmp_path: Path) -> None:
    def reply(body: Body) -> Answer | Failure:
        text = asked(body)
        return (Answer("") if "silent" in text else Failure(500)) if "Say what" in text else letters(0.5)

    with judge(tmp_path, reply) as (stub, _):
        items = [
            judge_pb2.AnswerItem(id=name, prompt=item("x", "", "").prompt, answer=name) for name in ("silent", "broken")
        ]
        found = {one.item_id: one for one in stub.Critique(judge_pb2.CritiqueRequest(items=items), timeout=DEADLINE)}
    assert found["silent"].failure == "the model wrote nothing"
    assert "cannot be reached" in found["broken"].failure
    assert not any(one.critique for one in found.values())
