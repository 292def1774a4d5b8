"""A run whose judge is an endpoint: what a spent budget and an outage do to it, and how it goes on."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from charter.judge import server as judge
from charter.rpc.channel import QUICK, connect
from charter.v1 import preference_pb2, preference_pb2_grpc, run_pb2, types_pb2

from tests.support.endpoint import MODEL, Answer, Body, Endpoint, Failure, endpoint
from tests.support.harness import running
from tests.support.worker_services import Stage, tiny_services


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("worker"), tiny_model) as stage:
        yield stage


def prefers_the_longer(body: Body) -> Answer:
    first, _, second = str(body["messages"][0]["content"]).partition("(B)")
    p = 1 / (1 + math.exp(-(len(first) - len(second)) / 100))
    return Answer("A", {"A": p, "B": 1 - p})


@contextmanager
def judged_by(stage: Stage, served: Endpoint, **settings: int) -> Iterator[run_pb2.RunSpec]:
    """The spec of a run that is judged by the endpoint, in batches of 32 pairs."""
    config = judge.JudgeConfig(
        MODEL, stage.folder / "constitution.yaml", "openai", "choice", None, {"endpoint": served.url, **settings}
    )
    with running(judge.build(config)) as addresses:
        spec = stage.spec(
            judge={"model": MODEL, "engine": "openai", "endpoint": served.url, "method": 1, "labelled_pairs": ""},
            comparisons={"pairs": 64},
            preference_model={"epochs": 1, "batch_size": 32},
            ppo={"steps": 1},
        )
        spec.services.judge = addresses.main
        yield spec


def stored_comparisons(stage: Stage, run: str) -> list[types_pb2.Comparison]:
    chosen = preference_pb2.ComparisonFilter(run_id=run)
    with connect(stage.addresses.preference) as channel:
        pages = preference_pb2_grpc.PreferenceServiceStub(channel).StreamComparisons(
            preference_pb2.StreamComparisonsRequest(filter=chosen), timeout=QUICK
        )
        return [one for page in pages for one in page.comparisons]


def stored(stage: Stage, run: str) -> int:
    return len(stored_comparisons(stage, run))


def test_a_spent_budget_stops_the_run_which_goes_on_with_a_larger_one(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    run = "budget"
    with endpoint(prefers_the_longer) as served:
        # Enough for the first batch of at most 32 pairs in both orders, at 8 tokens a call, not for the second.
        with judged_by(stage, served, token_budget=8 * 80) as spec:
            assert stage.work(run, spec) == 1
        assert "token budget of 640 is spent" in caplog.text
        (outcomes,) = map(json.loads, (stage.run_folder(run) / "labels.jsonl").read_text().splitlines())
        assert stored(stage, run) == sum(outcomes.values()) > 0
        paid = {f"(A) {one.answer_a.text}\n\n(B) {one.answer_b.text}" for one in stored_comparisons(stage, run)}
        served.requests.clear()
        with judged_by(stage, served) as spec:
            assert stage.work(run, spec, attempt=2) == 0
    assert stored(stage, run) > len(paid)
    again = [body for body in served.requests if any(pair in str(body["messages"][0]["content"]) for pair in paid)]
    assert not again


def test_an_outage_stops_the_run_and_costs_no_pair(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    run = "outage"
    down = [True]

    def reply(body: Body) -> Answer | Failure:
        return Failure(503) if down[0] and "Say the number" in str(body["messages"]) else prefers_the_longer(body)

    with endpoint(reply) as served, judged_by(stage, served) as spec:
        assert stage.work(run, spec) == 1
        assert "the judge's model cannot be reached" in caplog.text
        assert stored(stage, run) == 0
        down[0] = False
    with endpoint(reply) as served, judged_by(stage, served) as spec:
        assert stage.work(run, spec, attempt=2) == 0
        assert stored(stage, run) > 0


def test_pairs_that_an_outage_left_are_asked_about_again(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """One prompt of seven cannot be judged at first: nothing of it is stored, and the others are not judged twice."""
    run = "partial"
    down = [True]

    def reply(body: Body) -> Answer | Failure:
        return Failure(503) if down[0] and "Say the number 3" in str(body["messages"]) else prefers_the_longer(body)

    with endpoint(reply) as served, judged_by(stage, served) as spec:
        assert stage.work(run, spec) == 1
        assert "the judge's model cannot be reached" in caplog.messages[-1]
        before = stored_comparisons(stage, run)
        assert {one.prompt[0].content for one in before} > {"Say the number 1."}
        assert "Say the number 3." not in {one.prompt[0].content for one in before}
        down[0] = False
        served.requests.clear()
        assert stage.work(run, spec, attempt=2) == 0
        asked = {str(body["messages"][0]["content"]) for body in served.requests}
    paid = [f"(A) {one.answer_a.text}\n\n(B) {one.answer_b.text}" for one in before]
    assert not [pair for pair in paid if any(pair in text for text in asked)]
    after = stored_comparisons(stage, run)
    assert "Say the number 3." in {one.prompt[0].content for one in after}
    assert types_pb2.OUTCOME_UNAVAILABLE not in {one.outcome for one in after}
    counts = json.loads((stage.run_folder(run) / "run.json").read_text())["counts"]
    assert len(after) == counts["pairs_sampled"] - counts["pairs_identical"]


def test_online_dpo_leaves_out_pairs_that_cannot_be_judged(stage: Stage) -> None:
    """Those to one of the seven prompts, of which each step has six."""

    def reply(body: Body) -> Answer | Failure:
        unclear = "Say the number 3" in str(body["messages"])
        return Answer("Well", {"Well": 1.0}) if unclear else prefers_the_longer(body)

    with endpoint(reply) as served, judged_by(stage, served) as spec:
        spec.ppo.algorithm, spec.ppo.samples_per_prompt = run_pb2.ALGORITHM_ONLINE_DPO, 2
        spec.ppo.steps, spec.ppo.episodes_per_step, spec.failures.max_share = 2, 12, 0.5
        assert stage.work("pairs", spec) == 0
    steps = stage.ppo_steps("pairs")
    shares = [steps[step].get("left_out.unclear", 0) for step in (1, 2)]
    assert max(shares) == 1
    assert [steps[step]["left_out_share"] for step in (1, 2)] == [share / 6 for share in shares]
    assert all(0.5 < steps[step]["judge_certainty"] < 1 and "score_mean" not in steps[step] for step in (1, 2))
