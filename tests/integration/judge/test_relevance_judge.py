"""The demo's second judge, over its contract: it prefers what its encoder finds closer to the request."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from charter.chat import ChatMessage
from charter.rpc.channel import QUICK, connect
from charter.rpc.messages import proto_messages
from charter.v1 import judge_pb2, judge_pb2_grpc, types_pb2
from charter.worker.evaluation.judgements import served_judge
from transformers import AutoModel, AutoTokenizer

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "relevance_judge.py"
REQUEST = "How do I boil an egg?"
ANSWERS = ("Boil the egg in water for eight minutes.", "The moon is far away.", "An egg.")


@pytest.fixture(scope="module")
def judge(tiny_model: Path) -> Iterator[str]:
    module = importlib.util.spec_from_file_location("relevance_judge", EXAMPLE)
    assert module is not None
    assert module.loader is not None
    relevance_judge = importlib.util.module_from_spec(module)
    module.loader.exec_module(relevance_judge)
    server, port = relevance_judge.start(tiny_model, "127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def compare(address: str, pairs: Sequence[tuple[str, str]]) -> list[judge_pb2.Judgement]:
    prompt = proto_messages((ChatMessage("user", REQUEST),))
    items = [
        judge_pb2.ComparisonItem(id=str(place), prompt=prompt, answer_a=a, answer_b=b)
        for place, (a, b) in enumerate(pairs)
    ]
    with connect(address) as channel:
        responses = list(
            judge_pb2_grpc.JudgeServiceStub(channel).Compare(judge_pb2.CompareRequest(items=items), timeout=QUICK)
        )
    assert [one.item_id for one in responses] == [item.id for item in items]
    return [one.judgement for one in responses]


def test_it_prefers_the_closer_answer(judge: str, tiny_model: Path) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModel.from_pretrained(tiny_model).eval()

    def direction(text: str) -> torch.Tensor:
        # One text at a time, so that nothing is padded.
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        found: torch.Tensor = states.mean(dim=0)
        return found / float(found.norm())

    asked = direction(REQUEST)
    one, other, third = (float(asked @ direction(answer)) for answer in ANSWERS)
    found = compare(judge, [(ANSWERS[0], ANSWERS[1]), (ANSWERS[1], ANSWERS[0]), (ANSWERS[1], ANSWERS[2])])
    wanted = [1 / (1 + math.exp(-lead / 0.05)) for lead in (one - other, other - one, other - third)]
    assert [judgement.probability_a for judgement in found] == pytest.approx(wanted, abs=1e-4)
    for judgement, probability in zip(found, wanted, strict=True):
        better = types_pb2.OUTCOME_PREFERRED_A if probability > 0.5 else types_pb2.OUTCOME_PREFERRED_B
        assert judgement.outcome == better
        assert [part.principle_id for part in judgement.principles] == ["keeps-to-the-subject"]


def test_equal_answers_are_a_tie_and_empty_ones_a_failure(judge: str) -> None:
    same, empty = compare(judge, [("An egg.", "An egg."), ("An egg.", "  ")])
    assert (same.outcome, same.probability_a) == (types_pb2.OUTCOME_TIE, 0.5)
    assert (empty.outcome, empty.failure_kind) == (types_pb2.OUTCOME_INVALID, types_pb2.FAILURE_KIND_EMPTY)
    assert not empty.HasField("probability_a")


def test_a_comparison_knows_what_judges_and_by_what(judge: str, tiny_model: Path) -> None:
    served = served_judge(judge)
    assert served.info.model.model == tiny_model.name
    assert [one.id for one in served.constitution.principles] == ["keeps-to-the-subject"]
    assert len(served.constitution.digest) == 64
