"""Whole runs in which some answers cannot be scored, or all: what is left out, what stops, and how it goes on."""

import json
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from charter.v1 import preference_pb2
from charter.worker.__main__ import FAILED, REFUSED

from tests.support.reward_service import reward_service
from tests.support.worker_services import Stage, tiny_services


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("failures"), tiny_model) as stage:
        yield stage


def left_out(stage: Stage, run: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((stage.run_folder(run) / "run.json").read_text())["left_out"]
    return found


def scored_by(address: str) -> dict[str, Any]:
    return {"preference_weight": 0.0, "service_weight": 1.0, "service": address}


@pytest.mark.parametrize("algorithm", ["PPO", "GRPO", "RLOO", "REINFORCE_PLUS_PLUS"])
def test_answers_without_a_score_are_left_out(stage: Stage, algorithm: str) -> None:
    """Of each step's 8 answers one has no score and one has none that is a number."""

    def scores(request: preference_pb2.PreferenceServiceScoreRequest) -> list[tuple[str, float]]:
        return [(item.id, math.nan if item.id == "6" else len(item.answer)) for item in request.items if item.id != "1"]

    run = f"some-{algorithm.lower()}"
    with reward_service(scores) as address:
        ppo = {"steps": 2, "episodes_per_step": 8, "minibatches": 4, "algorithm": f"ALGORITHM_{algorithm}"}
        spec = stage.spec(
            ppo=ppo, reward=scored_by(address), judge={"labelled_pairs": ""}, failures={"max_share": 0.25}
        )
        assert stage.work(run, spec) == 0
    for numbers in stage.ppo_steps(run).values():
        assert numbers["left_out_share"] == 0.25
        assert (numbers["left_out.missing"], numbers["left_out.unclear"]) == (1, 1)
    assert left_out(stage, run)["training"] == {"items": 16, "kinds": {"missing": 2, "unclear": 2}}
    assert "2 of 8 left out: 1 missing, 1 unclear" in [event.text for event in stage.events(run)]
    assert "<td>training</td><td>missing</td>" in (stage.run_folder(run) / "report.html").read_text()


def test_a_step_that_stops_the_run_is_drawn_anew(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """It has no score at all, or scores whose squares float32 does not hold: the gradient is not finite."""
    later, asked = [math.nan], list[list[str]]()

    def scores(request: preference_pb2.PreferenceServiceScoreRequest) -> list[tuple[str, float]]:
        asked.append([item.answer for item in request.items])
        return [(item.id, later[0] if len(asked) > 1 else 1.0) for item in request.items]

    with reward_service(scores) as address:
        spec = stage.spec(ppo={"steps": 3}, reward=scored_by(address), judge={"labelled_pairs": ""})
        # A cluster does not start it again by itself.
        assert stage.work("broken", spec) == REFUSED
        assert "training: 6 of 12 left out: 6 unclear, and failures.max_share allows 10%" in caplog.messages[-1]
        assert stage.work("broken", spec, attempt=2) == REFUSED
        later[0] = 1e30
        assert stage.work("broken", spec, attempt=3) == FAILED
        assert "gradient is not finite" in caplog.messages[-1]
        assert "Resume the run: it draws anew what it stopped at" in caplog.messages[-1]
        later[0] = 1.0
        assert stage.work("broken", spec, attempt=4) == 0
    # The first step, and the second in four attempts.
    assert all(one != other for one, other in combinations(asked[:5], 2))
    assert set(stage.ppo_steps("broken")) == {1, 2, 3}
    stops = json.loads((stage.run_folder("broken") / "run.json").read_text())["stops"]
    assert [(stop["stage"], stop["place"]) for stop in stops] == [("training", 1), ("training", 1), ("updating", 1)]


def test_the_context_holds_the_eos_of_an_answer_that_was_cut_off(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """448 and 64 tokens fill the tiny model's 512; the preference model reads one more."""
    spec = stage.spec(prompts={"max_prompt_tokens": 448}, sampling={"max_new_tokens": 64})
    assert stage.work("context", spec) == REFUSED
    assert "sampling.max_new_tokens + 1 for EOS is 513" in caplog.messages[-1]


def test_a_fit_that_is_not_finite_takes_another_order(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    broken = stage.spec(preference_model={"learning_rate": 1e30, "epochs": 3}, judge={"labelled_pairs": ""})
    assert stage.work("steep", broken) == FAILED
    assert "the preference model's gradient is not finite" in caplog.messages[-1]
    assert "lower preference_model.learning_rate: `charter runs resume RUN --spec SPEC`" in caplog.messages[-1]
    assert stage.work("steep", broken, attempt=2) == FAILED
    stops = json.loads((stage.run_folder("steep") / "run.json").read_text())["stops"]
    assert stops == [{"stage": "fitting", "place": 0, "share": 0.0}] * 2
