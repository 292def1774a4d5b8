"""The preference service through real gRPC: store, scores, weights, refusals."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch
from charter.chat import ChatMessage
from charter.inference.preference_model import Aggregation, PreferenceModel, encode, soft_label_loss
from charter.preference.scorer import Scorer
from charter.preference.server import PreferenceConfig, build
from charter.rpc.channel import QUICK, connect
from charter.rpc.errors import ServiceError, StatusError
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2
from charter.weights.sender import send_weights

from tests.support.harness import running
from tests.support.tiny import CONTEXT_TOKENS

Stub = preference_pb2_grpc.PreferenceServiceStub
USER = types_pb2.Message(role=types_pb2.ROLE_USER, content="How are you?")
CHAT = (ChatMessage("user", "How are you?"),)


@pytest.fixture
def service(tiny_model: Path, tmp_path: Path) -> Iterator[tuple[Stub, str]]:
    """Stub of a running service that has no fitted weights yet, and its control address."""
    config = PreferenceConfig({"default": str(tiny_model)}, f"sqlite:///{tmp_path}/charter.db", tmp_path / "staging")
    with running(build(config)) as addresses, connect(addresses.main) as channel:
        yield Stub(channel), addresses.control


def test_while_the_model_is_loading_callers_are_asked_to_wait(tiny_model: Path) -> None:
    """A run that finds the service like this goes on waiting; any other error would end it."""
    with ThreadPoolExecutor(1) as pool, pytest.raises(StatusError) as caught:
        Scorer(str(tiny_model), "default", pool).info()
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def fitted(tiny_model: Path) -> PreferenceModel:
    return PreferenceModel.from_causal_lm(tiny_model, seed=5).eval()


def comparison(text: str, probability: float = 0.8) -> types_pb2.Comparison:
    return types_pb2.Comparison(
        prompt=[USER],
        answer_a=types_pb2.Answer(text=text),
        answer_b=types_pb2.Answer(text="No"),
        source=types_pb2.LABEL_SOURCE_AI,
        outcome=types_pb2.OUTCOME_PREFERRED_A,
        probability_a=probability,
        split=types_pb2.SPLIT_TRAIN,
    )


def score(stub: Stub, answers: list[str], required: int = 0) -> dict[str, tuple[float, int]]:
    items = [
        preference_pb2.ScoreItem(id=f"item {index}", prompt=[USER], answer=text) for index, text in enumerate(answers)
    ]
    request = preference_pb2.PreferenceServiceScoreRequest(items=items, required_weight_version=required)
    return {one.item_id: (one.score, one.weight_version) for one in stub.Score(request, timeout=QUICK)}


@contextmanager
def refused(code: grpc.StatusCode, words: str) -> Iterator[None]:
    """The call inside must fail with this code and these words."""
    with pytest.raises(grpc.RpcError) as error:
        yield
    assert error.value.code() is code
    assert words in str(error.value.details())


def local_scores(model: PreferenceModel, answers: list[str]) -> list[float]:
    with torch.no_grad():
        rows = [model.scores([encode(model.tokenizer, CHAT, answer)]).item() for answer in answers]
    return rows


def test_comparisons_are_stored_counted_and_streamed(service: tuple[Stub, str]) -> None:
    stub, _ = service
    sent = [comparison(f"answer {number}") for number in range(5)]
    request = preference_pb2.AddComparisonsRequest(request_id="r", comparisons=sent)
    first = stub.AddComparisons(request, timeout=QUICK)
    assert (first.added, first.duplicates, len(first.ids)) == (5, 0, 5)
    assert stub.AddComparisons(request, timeout=QUICK) == first

    pages = list(stub.StreamComparisons(preference_pb2.StreamComparisonsRequest(), timeout=QUICK))
    stored = [one for page in pages for one in page.comparisons]
    assert [one.answer_a.text for one in stored] == [f"answer {number}" for number in range(5)]
    assert [one.id for one in stored] == list(first.ids)

    stub.AddComparisons(
        preference_pb2.AddComparisonsRequest(request_id="r2", comparisons=[comparison("late")]), timeout=QUICK
    )
    behind = preference_pb2.StreamComparisonsRequest(after_cursor=pages[-1].cursor)
    assert [one.answer_a.text for page in stub.StreamComparisons(behind) for one in page.comparisons] == ["late"]
    assert stub.GetStats(preference_pb2.GetStatsRequest(), timeout=QUICK).total == 6


def test_contradicting_label_is_refused_and_nothing_is_stored(service: tuple[Stub, str]) -> None:
    stub, _ = service
    request = preference_pb2.AddComparisonsRequest(
        request_id="r", comparisons=[comparison("good"), comparison("bad", 0.2)]
    )
    problem = "comparisons[1]: probability_a 0.2 contradicts the outcome PREFERRED_A"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, problem):
        stub.AddComparisons(request, timeout=QUICK)
    assert stub.GetStats(preference_pb2.GetStatsRequest(), timeout=QUICK).total == 0


@pytest.mark.parametrize("cursor", ["x", "-1", "1.5", "9" * 40, "٣"])
def test_bad_cursor_is_refused(service: tuple[Stub, str], cursor: str) -> None:
    stub, _ = service
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "after_cursor"):
        list(stub.StreamComparisons(preference_pb2.StreamComparisonsRequest(after_cursor=cursor), timeout=QUICK))


def test_nothing_is_scored_before_the_first_weights(service: tuple[Stub, str], fitted: PreferenceModel) -> None:
    stub, control = service
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "charter run"):
        score(stub, ["Fine"])
    send_weights(control, fitted.state_tensors(), 3, service="preference")
    assert score(stub, ["Fine"])["item 0"][1] == 3


def test_members_of_an_ensemble_are_given_on_request(service: tuple[Stub, str], tiny_model: Path) -> None:
    """The service was started for one head; an ensemble of three arrives, worst case, and replaces it."""
    stub, control = service
    ensemble = PreferenceModel.from_causal_lm(tiny_model, seed=5, members=3).eval()
    ensemble.aggregate_by(Aggregation.WORST, 1.0)
    send_weights(control, ensemble.state_tensors(), 1, service="preference")
    items = [preference_pb2.ScoreItem(id="a", prompt=[USER], answer="Fine")]
    request = preference_pb2.PreferenceServiceScoreRequest(items=items, member_scores=True)
    (answer,) = stub.Score(request, timeout=QUICK)
    with torch.no_grad():
        expected = ensemble.member_scores([encode(ensemble.tokenizer, CHAT, "Fine")])[0].tolist()
    assert list(answer.member_scores) == pytest.approx(expected, abs=1e-5)
    assert answer.score == pytest.approx(min(expected), abs=1e-5)
    request.member_scores = False
    (answer,) = stub.Score(request, timeout=QUICK)
    assert not answer.member_scores


def test_served_scores_are_those_of_the_trainer(service: tuple[Stub, str], fitted: PreferenceModel) -> None:
    """Fit on toy pairs that an honest fit separates, centre, send: the service gives the same numbers."""
    stub, control = service
    good = [f"Very well, thank you {number}" for number in range(4)]
    bad = ["ugh"] * 2 + ["leave me alone, " * 8] * 2
    optimizer = torch.optim.AdamW(fitted.parameters(), lr=3e-3)
    for _ in range(20):
        batch = [encode(fitted.tokenizer, CHAT, answer) for answer in (*good, *bad)]
        scores = fitted.scores(batch)
        optimizer.zero_grad()
        soft_label_loss(scores[:4] - scores[4:], torch.ones(4)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    fitted.centre(torch.tensor(local_scores(fitted, good + bad)))
    update = send_weights(control, fitted.state_tensors(), 1, service="preference")

    served = score(stub, good + bad, required=1)
    expected = local_scores(fitted, good + bad)
    assert [served[f"item {index}"][0] for index in range(8)] == pytest.approx(expected, abs=1e-5)
    assert min(expected[:4]) > max(expected[4:])
    assert sum(expected) == pytest.approx(0, abs=1e-5)

    info = stub.GetModelInfo(preference_pb2.PreferenceServiceGetModelInfoRequest(), timeout=QUICK).model
    assert (info.weight_version, info.weight_digest) == (1, update.sha256)
    assert info.max_context_tokens == CONTEXT_TOKENS


def test_many_requests_at_once_each_get_their_own(service: tuple[Stub, str], fitted: PreferenceModel) -> None:
    stub, control = service
    send_weights(control, fitted.state_tensors(), 1, service="preference")
    requests = [
        [f"caller {caller} answer {'long ' * (index % 7)}{index}" for index in range(25)] for caller in range(6)
    ]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda texts: score(stub, texts), requests))
    for texts, served in zip(requests, answers, strict=True):
        assert len(served) == 25
        assert [served[f"item {index}"][0] for index in range(25)] == pytest.approx(
            local_scores(fitted, texts), abs=1e-5
        )


def test_new_weights_change_scores_and_old_versions_are_refused(
    service: tuple[Stub, str], fitted: PreferenceModel, tiny_model: Path
) -> None:
    stub, control = service
    send_weights(control, fitted.state_tensors(), 1, service="preference")
    before = score(stub, ["Fine"])["item 0"][0]
    other = PreferenceModel.from_causal_lm(tiny_model, seed=6).eval()
    with refused(grpc.StatusCode.FAILED_PRECONDITION, "weight version 2 is required, 1 is served"):
        score(stub, ["Fine"], required=2)
    send_weights(control, other.state_tensors(), 2, service="preference")
    after, version = score(stub, ["Fine"], required=2)["item 0"]
    assert version == 2
    assert after == pytest.approx(local_scores(other, ["Fine"])[0], abs=1e-5)
    assert after != pytest.approx(before, abs=1e-3)


def test_weights_that_do_not_fit_change_nothing(service: tuple[Stub, str], fitted: PreferenceModel) -> None:
    stub, control = service
    send_weights(control, fitted.state_tensors(), 1, service="preference")
    before = score(stub, ["Fine"])
    wrong = fitted.state_tensors()
    wrong["head.weight"] = torch.zeros(1, 7)
    with pytest.raises(ServiceError, match=r"head\.weight has shape \(1, 7\)"):
        send_weights(control, wrong, 2, service="preference")
    assert score(stub, ["Fine"]) == before


def test_too_long_answer_is_named_and_nothing_is_scored(service: tuple[Stub, str], fitted: PreferenceModel) -> None:
    stub, control = service
    send_weights(control, fitted.state_tensors(), 1, service="preference")
    tokens = len(encode(fitted.tokenizer, CHAT, "x" * CONTEXT_TOKENS))
    problem = f"items[1]: 'item 1' needs {tokens} tokens, the model's context holds {CONTEXT_TOKENS}"
    with refused(grpc.StatusCode.INVALID_ARGUMENT, problem):
        score(stub, ["Fine", "x" * CONTEXT_TOKENS])


def test_repeated_item_id_is_refused(service: tuple[Stub, str], fitted: PreferenceModel) -> None:
    stub, control = service
    send_weights(control, fitted.state_tensors(), 1, service="preference")
    item = preference_pb2.ScoreItem(id="same", prompt=[USER], answer="Fine")
    with refused(grpc.StatusCode.INVALID_ARGUMENT, "items[1].id: 'same' is also the id of items[0]"):
        list(stub.Score(preference_pb2.PreferenceServiceScoreRequest(items=[item, item]), timeout=QUICK))


def test_broken_weights_give_an_error_and_no_number(service: tuple[Stub, str], fitted: PreferenceModel) -> None:
    stub, control = service
    broken = fitted.state_tensors()
    broken["head.bias"] = torch.tensor([float("nan")])
    send_weights(control, broken, 1, service="preference")
    with refused(grpc.StatusCode.INTERNAL, "weight version 1 is broken"):
        score(stub, ["Fine"])


def test_a_saved_preference_model_is_served_at_once(fitted: PreferenceModel, tmp_path: Path) -> None:
    fitted.centre(torch.tensor([0.3]))
    fitted.save(tmp_path / "preference_model")
    config = PreferenceConfig(
        {"default": str(tmp_path / "preference_model")}, f"sqlite:///{tmp_path}/charter.db", tmp_path / "staging"
    )
    with running(build(config)) as addresses, connect(addresses.main) as channel:
        value, version = score(Stub(channel), ["Fine"])["item 0"]
    assert version == 0
    assert value == pytest.approx(local_scores(fitted, ["Fine"])[0], abs=1e-5)
