"""Several preference models in one service, called by name through real gRPC."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch
from charter.chat import ChatMessage
from charter.cli.main import app
from charter.inference.preference_model import PreferenceModel, encode
from charter.preference import metrics, scorer
from charter.preference.server import PreferenceConfig, build
from charter.rpc.channel import QUICK, connect
from charter.rpc.lifecycle import Addresses
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2
from charter.weights.sender import send_weights
from charter.worker.clients.sleeper import send_to_sleep, wake_up
from typer.testing import CliRunner

from tests.support.harness import running
from tests.support.tiny import CHAT_TEMPLATE, make_tiny_model

CHAT = (ChatMessage("user", "How are you?"),)
ANSWERS = ["Fine", "Very well, thank you", "ugh", "leave me alone, " * 4]


@dataclass(frozen=True)
class Served:
    """A service with two models of different size, template and weights, and the two themselves."""

    stub: preference_pb2_grpc.PreferenceServiceStub
    at: Addresses
    models: dict[str, PreferenceModel]

    def request(
        self, answers: Sequence[str], model: str = "", version: int = 0
    ) -> preference_pb2.PreferenceServiceScoreRequest:
        prompt = [types_pb2.Message(role=types_pb2.ROLE_USER, content=CHAT[0].content)]
        return preference_pb2.PreferenceServiceScoreRequest(
            items=[
                preference_pb2.ScoreItem(id=str(place), prompt=prompt, answer=answer)
                for place, answer in enumerate(answers)
            ],
            model=model,
            required_weight_version=version,
        )

    def score(self, answers: Sequence[str], model: str = "", version: int = 0) -> list[float]:
        found = {
            int(one.item_id): one.score for one in self.stub.Score(self.request(answers, model, version), timeout=QUICK)
        }
        return [found[place] for place in range(len(answers))]

    def direct(self, answers: Sequence[str], model: str) -> list[float]:
        """Scores without the service, one answer at a time."""
        own = self.models[model]
        with torch.no_grad():
            return [own.scores([encode(own.tokenizer, CHAT, answer)]).item() for answer in answers]

    def info(self) -> preference_pb2.PreferenceServiceGetModelInfoResponse:
        return self.stub.GetModelInfo(preference_pb2.PreferenceServiceGetModelInfoRequest(), timeout=QUICK)


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Saved preference models: one of the tiny model, an ensemble of another one with a template of its own."""
    folder = tmp_path_factory.mktemp("preference-models")
    other = make_tiny_model(folder / "other", seed=3)
    (other / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("<|im_start|>", "<|im_start|>>"), encoding="utf-8")
    PreferenceModel.from_causal_lm(tiny_model, seed=5).save(folder / "new")
    PreferenceModel.from_causal_lm(other, seed=6, members=2).save(folder / "old")
    return {name: folder / name for name in ("new", "old")}


@pytest.fixture
def served(folders: dict[str, Path], tmp_path: Path) -> Iterator[Served]:
    config = PreferenceConfig(
        {name: str(folder) for name, folder in folders.items()},
        f"sqlite:///{tmp_path}/charter.db",
        tmp_path / "staging",
    )
    models = {name: PreferenceModel.load(folder).eval() for name, folder in folders.items()}
    with running(build(config)) as addresses, connect(addresses.main) as channel:
        yield Served(preference_pb2_grpc.PreferenceServiceStub(channel), addresses, models)


def test_each_model_scores_what_it_is_asked_by_name(served: Served) -> None:
    new, old = served.direct(ANSWERS, "new"), served.direct(ANSWERS, "old")
    assert min(abs(one - other) for one, other in zip(new, old, strict=True)) > 0.01
    assert served.score(ANSWERS, "new") == pytest.approx(new, abs=1e-5)
    assert served.score(ANSWERS, "old") == pytest.approx(old, abs=1e-5)
    assert served.score(ANSWERS) == pytest.approx(new, abs=1e-5)


def test_requests_for_both_at_once_do_not_mix(served: Served) -> None:
    """Sixteen callers, every other one of the other model, each with answers of its own."""
    callers = [(["new", "old"][caller % 2], [f"{caller} {answer}" for answer in ANSWERS * 3]) for caller in range(16)]
    together = threading.Barrier(len(callers))

    def call(model: str, answers: list[str]) -> list[float]:
        together.wait()
        return served.score(answers, model)

    with ThreadPoolExecutor(len(callers)) as pool:
        found = list(pool.map(lambda caller: call(*caller), callers))
    for (model, answers), scores in zip(callers, found, strict=True):
        assert scores == pytest.approx(served.direct(answers, model), abs=1e-5)


def test_an_unknown_name_is_not_found_and_those_that_are_loaded_are_listed(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.score(ANSWERS, "newest")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "no preference model `newest` is loaded here; loaded: `new`, `old`"


def test_all_models_are_listed(served: Served, folders: dict[str, Path]) -> None:
    info = served.info()
    assert [(one.name, one.model.model, one.fitted) for one in info.models] == [
        (name, str(folder), True) for name, folder in folders.items()
    ]
    assert info.model == info.models[0].model


def test_new_weights_replace_the_first_and_leave_the_others(served: Served, tiny_model: Path) -> None:
    """As a run does when it refreshes its preference model; what it had before can stay loaded beside it."""
    old = served.score(ANSWERS, "old")
    refreshed = PreferenceModel.from_causal_lm(tiny_model, seed=9).eval()
    send_weights(served.at.control, refreshed.state_tensors(), 2, service="preference")
    served.models["new"] = refreshed
    assert served.score(ANSWERS, version=2) == pytest.approx(served.direct(ANSWERS, "new"), abs=1e-5)
    assert served.score(ANSWERS, "old") == old
    assert [one.model.weight_version for one in served.info().models] == [2, 0]
    with pytest.raises(grpc.RpcError) as caught:
        served.score(ANSWERS, "old", version=2)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_all_sleep_and_wake_together(served: Served) -> None:
    before = served.score(ANSWERS, "old")
    send_to_sleep("preference", served.at.control)
    for model in ("new", "old"):
        with pytest.raises(grpc.RpcError) as caught:
            served.score(ANSWERS, model)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    wake_up("preference", served.at.control)
    assert served.score(ANSWERS, "old") == before


def test_answers_are_counted_by_model(served: Served) -> None:
    counted = {name: metrics.SCORES.labels(name)._value.get() for name in ("new", "old")}
    served.score(ANSWERS, "old")
    served.score(ANSWERS[:1])
    assert metrics.SCORES.labels("old")._value.get() == counted["old"] + len(ANSWERS)
    assert metrics.SCORES.labels("new")._value.get() == counted["new"] + 1


def test_status_shows_all(served: Served, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARTER_PREFERENCE_ADDRESS", served.at.main)
    shown = CliRunner().invoke(app, ["status"]).output
    assert "old as old" in shown


def test_only_the_first_may_wait_for_weights(folders: dict[str, Path], tiny_model: Path, tmp_path: Path) -> None:
    models = {"new": str(folders["new"]), "base": str(tiny_model)}
    with pytest.raises(ValueError, match=r"the model `base`, .* is no preference_model folder"):
        build(PreferenceConfig(models, f"sqlite:///{tmp_path}/charter.db", tmp_path / "staging"))


def test_a_failure_to_choose_a_batch_is_an_error_and_nobody_waits_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next call is served again, also by the model that failed."""

    def broken(waiting: object, budget: int) -> list[int]:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(scorer, "choose_batch", broken)
        with pytest.raises(grpc.RpcError) as caught:
            served.score(ANSWERS)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "ZeroDivisionError" in str(caught.value.details())
    assert served.score(ANSWERS) == pytest.approx(served.direct(ANSWERS, "new"), abs=1e-5)
