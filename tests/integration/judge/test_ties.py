"""A judge that sees nothing but positions labels ties, whichever method it judges by."""

import json
from pathlib import Path

import pytest
from charter.evaluation.figures.win_rate import win_rate
from charter.v1 import judge_pb2, types_pb2

from tests.support.endpoint import Answer, Body, Failure
from tests.support.endpoint_judge import compare, item, judge


@pytest.mark.parametrize("method", ["choice", "reasoned choice", "verdict", "mix"])
def test_an_endpoint_that_always_writes_the_same_option_prefers_nobody(tmp_path: Path, method: str) -> None:
    """Without log-probs, a letter that is always A is a tie by every method, and half of the pairs are won."""

    def always_the_first(body: Body) -> Answer | Failure:
        if body.get("logprobs"):
            return Failure(400, "logprobs are not supported")
        if "response_format" not in body:
            return Answer("Let me think.")
        options = body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"]
        return Answer(json.dumps({"answer": options[0]}))

    reasons = method == "reasoned choice"
    number = judge_pb2.JudgingMethod.Value(f"JUDGING_METHOD_{method.rpartition(' ')[2].upper()}")
    with judge(tmp_path, always_the_first) as (stub, _):
        pairs = [item(str(place), f"answer {place}", f"another {place}") for place in range(6)]
        judged = compare(stub, *pairs, method=number, chain_of_thought=reasons).values()
    assert {(one.outcome, one.probability_a) for one in judged} == {(types_pb2.OUTCOME_TIE, 0.5)}
    assert {one.principles[0].outcome for one in judged} == {types_pb2.OUTCOME_TIE}
    found = win_rate([one.probability_a for one in judged], samples=100, seed=0)
    assert (found.win_rate.value, found.ties) == (0.5, 6)
    # Six ties say little about the next pair.
    assert found.win_rate.low == pytest.approx(1 - found.win_rate.high)
    assert 0.3 < found.win_rate.low < 0.45
