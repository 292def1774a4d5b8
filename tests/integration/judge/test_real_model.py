"""Every method of the judge with the real 135M model: its tokenizer, its chat template and what it knows."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.chat import ChatMessage
from charter.evaluation.judge.labelled_pairs import helpfulness_pairs
from charter.judge.server import JudgeConfig, build
from charter.rpc.channel import BATCH, connect
from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, judge_pb2_grpc, types_pb2

from tests.support.harness import running

pytestmark = pytest.mark.real_model

EXAMPLES = Path(__file__).parents[3] / "examples"
PROMPT = proto_messages([ChatMessage("user", "How do I boil an egg?")])
GOOD, RUDE = "Put the egg into boiling water for eight minutes.", "What a stupid question. Go away."


@pytest.fixture(scope="module")
def stub(real_model: Path) -> Iterator[judge_pb2_grpc.JudgeServiceStub]:
    config = JudgeConfig(str(real_model), EXAMPLES / "constitutions" / "general.yaml")
    with running(build(config)) as addresses, connect(addresses.main) as channel:
        yield judge_pb2_grpc.JudgeServiceStub(channel)


@pytest.mark.parametrize(
    "method", [judge_pb2.JUDGING_METHOD_CHOICE, judge_pb2.JUDGING_METHOD_VERDICT, judge_pb2.JUDGING_METHOD_CONTRAST]
)
def test_swapped_pairs_are_complementary(
    stub: judge_pb2_grpc.JudgeServiceStub, method: judge_pb2.JudgingMethod.ValueType
) -> None:
    items = [
        judge_pb2.ComparisonItem(id="straight", prompt=PROMPT, answer_a=GOOD, answer_b=RUDE),
        judge_pb2.ComparisonItem(id="swapped", prompt=PROMPT, answer_a=RUDE, answer_b=GOOD),
    ]
    options = judge_pb2.JudgingOptions(method=method, principle_id="polite")
    request = judge_pb2.CompareRequest(items=items, options=options)
    judged = {one.item_id: one.judgement for one in stub.Compare(request, timeout=BATCH)}
    assert not judged["straight"].principles[0].failure
    assert abs(judged["straight"].probability_a - (1 - judged["swapped"].probability_a)) < 1e-6
    if method == judge_pb2.JUDGING_METHOD_CONTRAST:
        assert judged["straight"].outcome == types_pb2.OUTCOME_PREFERRED_A


def test_contrast_prefers_good_answers_to_off_topic_and_rude_ones(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    chosen = ("good answer to another prompt", "rude refusal", "needless refusal")
    pairs = [
        pair for pair in helpfulness_pairs(EXAMPLES / "labelled" / "helpful_answers.jsonl") if pair.source in chosen
    ]
    pairs = pairs[:6]
    items = [
        judge_pb2.ComparisonItem(
            id=str(index), prompt=proto_messages(pair.prompt), answer_a=pair.answer_a, answer_b=pair.answer_b
        )
        for index, pair in enumerate(pairs)
    ]
    options = judge_pb2.JudgingOptions(principle_id="answers-the-question")
    request = judge_pb2.CompareRequest(items=items, options=options)
    judged = {one.item_id: one.judgement.probability_a for one in stub.Compare(request, timeout=BATCH)}
    right = sum((judged[str(index)] > 0.5) == (pair.label == 1.0) for index, pair in enumerate(pairs))
    assert right >= 5


def test_a_rating_has_ten_probabilities_though_ten_is_two_tokens(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    request = judge_pb2.JudgeServiceScoreRequest(
        items=[judge_pb2.AnswerItem(id="x", prompt=PROMPT, answer=GOOD)],
        options=judge_pb2.JudgingOptions(principle_id="polite"),
    )
    (found,) = stub.Score(request, timeout=BATCH)
    assert found.rated, found.failure
    assert len(found.distribution) == 10
    assert sum(found.distribution) == pytest.approx(1)
    assert all(probability > 0 for probability in found.distribution)
    assert -1 <= found.score <= 1


def test_a_critique_is_written(stub: judge_pb2_grpc.JudgeServiceStub) -> None:
    request = judge_pb2.CritiqueRequest(
        items=[judge_pb2.AnswerItem(id="x", prompt=PROMPT, answer=RUDE)],
        options=judge_pb2.JudgingOptions(principle_id="polite"),
        limits=judge_pb2.SamplingLimits(max_new_tokens=8, temperature=0),
    )
    (found,) = stub.Critique(request, timeout=BATCH)
    assert (found.failure, bool(found.critique)) == ("", True)
    assert found.usage.completion_tokens > 0
