"""Score over a real channel: which principles an answer is rated by, their mean, and what kind a failure is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from charter.chat import ChatMessage
from charter.judge.server import JudgeConfig, build
from charter.rpc.channel import QUICK, connect
from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, judge_pb2_grpc, types_pb2

from tests.support.chat_templates import LLAMA_2, sentencepiece_tokenizer
from tests.support.endpoint import MODEL, Answer, Body, Failure, endpoint, last_message
from tests.support.endpoint_judge import judge
from tests.support.harness import running
from tests.support.tiny import make_talkative_model

FIELDS = 'compare: "Which?", critique: "Why?", revise: Better., oppose: Do not.'
CONSTITUTION = f"""\
name: ratings
version: "1"
principles:
  - {{id: kind, dimension: helpful, follow: Be kind., {FIELDS}}}
  - {{id: brief, dimension: helpful, follow: Be brief., {FIELDS}}}
  - {{id: safe, dimension: harmless, follow: Be safe., {FIELDS}}}
"""
# What the judge's model says under each.
RATINGS = {"Be kind.": 9, "Be brief.": 3, "Be safe.": 5}


def reply(body: Body) -> Answer | Failure:
    asked = str(body["messages"][0]["content"])
    if "Refuse this" in asked:
        return Failure(400)
    if "Down" in asked:
        return Failure(503)
    rating = next((number for text, number in RATINGS.items() if text in asked), 1)
    unclear = "Puzzle" in asked and "Be brief." in asked
    return Answer("x", {"x": 1.0} if unclear else {str(rating): 0.75, str(rating + 1): 0.25})


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[judge_pb2_grpc.JudgeServiceStub]:
    path = tmp_path_factory.mktemp("rating") / "constitution.yaml"
    path.write_text(CONSTITUTION)
    with endpoint(reply) as served:
        config = JudgeConfig(MODEL, path, "openai", "choice", None, {"endpoint": served.url})
        with running(build(config)) as addresses, connect(addresses.main) as channel:
            yield judge_pb2_grpc.JudgeServiceStub(channel)


def item(name: str, answer: str, **fields: str) -> judge_pb2.AnswerItem:
    prompt = proto_messages([ChatMessage("user", "How are you?")])
    return judge_pb2.AnswerItem(id=name, prompt=prompt, answer=answer, **fields)


def score(
    stub: judge_pb2_grpc.JudgeServiceStub, items: Sequence[judge_pb2.AnswerItem], **options: Any
) -> list[judge_pb2.JudgeServiceScoreResponse]:
    request = judge_pb2.JudgeServiceScoreRequest(items=items, options=judge_pb2.JudgingOptions(**options))
    found = {response.item_id: response for response in stub.Score(request, timeout=QUICK * 3)}
    return [found[one.id] for one in items]


def expected(rating: int) -> float:
    return ((rating + 0.25) - 1) / 4.5 - 1


def test_a_group_is_rated_by_one_principle_of_its_dimension(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    """Their ratings are compared with each other: another principle's level would count as merit."""
    drawn: set[str] = set()
    for group in map(str, range(20)):
        items = [item(f"{group}-{n}", f"Answer {n}.", dimension="helpful", group=group) for n in range(4)]
        principles = {one.principle_id for one in score(stub, items, seed=7)}
        assert len(principles) == 1
        drawn |= principles
    assert drawn == {"kind", "brief"}


def test_without_a_group_each_answer_draws(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    found = score(stub, [item(str(n), "Fine.", dimension="helpful") for n in range(20)], seed=7)
    assert {one.principle_id for one in found} == {"kind", "brief"}


@pytest.mark.parametrize("continues", [True, False])
def test_a_ten_of_two_tokens_is_not_a_one(tmp_path: Path, *, continues: bool) -> None:
    """An endpoint's model may spell 10 by two tokens: the first alone would be the worst rating there is."""

    def spells(body: Body) -> Answer | Failure:
        if body.get("continue_final_message") and not continues:
            return Failure(400)
        if last_message(body).endswith(("Rating: 1", "Rating: 1\nWrite only what follows that beginning.")):
            return Answer("0", {"0": 0.9, ".": 0.1})
        return Answer("1", {"1": 0.8, "9": 0.2})

    with judge(tmp_path, spells) as (stub, _):
        (found,) = score(stub, [item("x", "Fine.")])
    assert found.distribution == pytest.approx([0.08, 0, 0, 0, 0, 0, 0, 0, 0.2, 0.72])
    # The question and, behind the one, its zero.
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (14, 2)


def test_a_model_that_cannot_rate_says_so_at_once(tmp_path: Path) -> None:
    """Here a digit is a part of the token before it."""
    tokenizer = sentencepiece_tokenizer(LLAMA_2)
    tokenizer.add_tokens(["ting: 1"])
    make_talkative_model(tmp_path / "model", tokenizer, ["A"])
    path = tmp_path / "constitution.yaml"
    path.write_text(CONSTITUTION)
    config = JudgeConfig(str(tmp_path / "model"), path, "transformers", "contrast")
    with running(build(config)) as addresses, connect(addresses.main) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        info = stub.GetModelInfo(judge_pb2.JudgeServiceGetModelInfoRequest(), timeout=QUICK * 3)
        assert "choice '1' is no token of its own" in info.rating_problem
        with pytest.raises(grpc.RpcError, match="on engine transformers cannot rate answers: choice '1'") as refusal:
            score(stub, [item("x", "Fine.")])
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_an_ensemble_is_the_mean_of_its_principles(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    (found,) = score(stub, [item("x", "Fine.")], ensemble_size=3)
    assert sorted(found.principle_ids) == ["brief", "kind", "safe"]
    assert found.principle_id == found.principle_ids[0]
    assert found.score == pytest.approx(sum(map(expected, RATINGS.values())) / 3)
    assert found.distribution == pytest.approx([0, 0, 0.25, 0.25 / 3, 0.25, 0.25 / 3, 0, 0, 0.25, 0.25 / 3])
    # A question for each principle.
    assert found.usage.prompt_tokens == 3 * 7


def test_an_answer_that_one_principle_cannot_rate_is_not_rated(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    """The mean over the others would not compare with the rest of its group."""
    found, fine = score(stub, [item("x", "Puzzle."), item("y", "Fine.")], ensemble_size=3)
    assert not found.rated
    assert not found.HasField("score")
    assert found.failure_kind == types_pb2.FAILURE_KIND_UNCLEAR
    assert fine.rated


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (" \n", types_pb2.FAILURE_KIND_EMPTY),
        ("Refuse this", types_pb2.FAILURE_KIND_REFUSED),
        ("Down", types_pb2.FAILURE_KIND_UNAVAILABLE),
    ],
)
def test_a_failure_says_its_kind(
    stub: judge_pb2_grpc.JudgeServiceStub, answer: str, kind: types_pb2.FailureKind.ValueType
) -> None:
    (found,) = score(stub, [item("x", answer)])
    assert (found.rated, found.failure_kind) == (False, kind)
    assert found.failure
    prompt = proto_messages([ChatMessage("user", "How are you?")])
    pair = judge_pb2.ComparisonItem(id="x", prompt=prompt, answer_a=answer, answer_b="Well.")
    request = judge_pb2.CompareRequest(items=[pair], options=judge_pb2.JudgingOptions(principle_id="safe"))
    (compared,) = stub.Compare(request, timeout=QUICK * 3)
    assert compared.judgement.failure_kind == kind
    unavailable = kind == types_pb2.FAILURE_KIND_UNAVAILABLE
    outcome = types_pb2.OUTCOME_UNAVAILABLE if unavailable else types_pb2.OUTCOME_INVALID
    assert compared.judgement.outcome == outcome
