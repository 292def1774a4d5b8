"""Where scores come from, through real services: weighted sums that are right, and failures that never are numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.judge import server as judge
from charter.rpc.channel import connect
from charter.rpc.errors import ServiceError, invalid_fields
from charter.rpc.messages import proto_messages
from charter.rpc.validation import Violation
from charter.runs.artifacts import Artifacts
from charter.v1 import judge_pb2, judge_pb2_grpc, preference_pb2, run_pb2, types_pb2
from charter.worker import reporter
from charter.worker.__main__ import REFUSED
from charter.worker.answer_log import Written
from charter.worker.clients.failed import Failed
from charter.worker.clients.patience import WaitedTooLongError
from charter.worker.clients.policy import Answer
from charter.worker.clients.services import Services
from charter.worker.context import Run
from charter.worker.prompts import PromptSets
from charter.worker.reinforcement.sampling import rewards
from charter.worker.reporter import Reporter
from charter.worker.seeds import derive_seed
from charter.worker.stages.label import LABELLING, Labelling
from charter.worker.stages.sample_pairs import Pair
from charter.worker.training.lead import Leader

from tests.support.harness import running
from tests.support.ports import free_ports
from tests.support.reward_service import Scores, reward_service
from tests.support.worker_services import Stage, tiny_services

PROMPTS = [TaskPrompt(str(n), (ChatMessage("user", f"Say {n}."),), "helpful") for n in range(3)]
ANSWERS = ["one", "a longer answer", "x"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    with tiny_services(tmp_path_factory.mktemp("rewards"), tiny_model) as stage:
        yield stage


@pytest.fixture(scope="module")
def rating(stage: Stage) -> Iterator[Stage]:
    """The same services with a judge that rates every answer; the tiny random model finds no number for any."""
    with running(judge.build(judge.JudgeConfig(str(stage.model), stage.folder / "constitution.yaml", "fake"))) as at:
        yield judged_by(stage, at.main)


def judged_by(stage: Stage, address: str) -> Stage:
    addresses = run_pb2.ServiceAddresses()
    addresses.CopyFrom(stage.addresses)
    addresses.judge = address
    return Stage(stage.folder, stage.model, addresses)


@contextmanager
def a_run(stage: Stage, name: str = "rewards", **sections: dict[str, Any]) -> Iterator[Run]:
    spec = stage.spec(**sections)
    artifacts = Artifacts(stage.run_folder(name), name)
    reporter = Reporter(artifacts, name, 1, "")
    services = Services(spec.services, reporter)
    try:
        prompts = PromptSets(tuple(PROMPTS), (), 0)
        yield Run(
            name,
            spec,
            artifacts,
            services,
            reporter,
            Leader(reporter),
            prompts,
            services.judge.constitution(),
            None,
        )
    finally:
        reporter.close()
        services.close()


def direct_ratings(stage: Stage, seed: int) -> list[float]:
    """The judge's own answers, without the worker's rewards in between."""
    options = judge_pb2.JudgingOptions(seed=derive_seed(seed, "rating"))
    items = [
        judge_pb2.AnswerItem(id=str(n), prompt=proto_messages(p.messages), answer=a, dimension=p.dimension, group=p.key)
        for n, (p, a) in enumerate(zip(PROMPTS, ANSWERS, strict=True))
    ]
    with connect(stage.addresses.judge) as channel:
        request = judge_pb2.JudgeServiceScoreRequest(items=items, options=options)
        found = {one.item_id: one.score for one in judge_pb2_grpc.JudgeServiceStub(channel).Score(request)}
    return [found[item.id] for item in items]


def test_a_weighted_sum_of_judge_and_own_service(rating: Stage) -> None:
    own = [("2", 5.0), ("0", 1.0), ("1", -2.0)]
    with reward_service(lambda asked: own if asked.model == "old" else []) as address:
        reward = {"preference_weight": 0.0, "judge_weight": 0.5, "service_weight": 2.0}
        with a_run(rating, reward=reward | {"service": address, "service_model": "old"}) as run:
            assert not run.needs_preference_model
            got = rewards.score(run, PROMPTS, ANSWERS, seed=3, preference_version=1)
    ratings = direct_ratings(rating, 3)
    assert len(set(ratings)) == 3
    assert all(-1 <= one <= 1 for one in ratings)
    assert got == pytest.approx([0.5 * r + 2 * s for r, s in zip(ratings, [1.0, -2.0, 5.0], strict=True)])


def kinds(results: Sequence[float | Failed]) -> list[float | str]:
    return [one.kind if isinstance(one, Failed) else one for one in results]


def refuses(request: preference_pb2.PreferenceServiceScoreRequest) -> list[tuple[str, float]]:
    """As an old preference service: one item that is too long, and nothing is scored."""
    for place, item in enumerate(request.items):
        if item.answer == "a longer answer":
            raise invalid_fields([Violation(f"items[{place}]", "needs too many tokens", "TOO_LONG")])
        if item.answer == "x":
            raise invalid_fields([Violation(f"items[{place}].answer", "I do not like x")])
    return [(item.id, 1.0) for item in request.items]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (lambda _: [("0", 1.0), ("1", float("nan")), ("2", 1.0)], [1.0, "unclear", 1.0]),
        (lambda _: [("0", 1.0), ("1", float("inf")), ("2", 1.0)], [1.0, "unclear", 1.0]),
        (lambda _: [("0", 1.0), ("2", 1.0)], [1.0, "missing", 1.0]),
        (lambda _: [], ["missing"] * 3),
        (refuses, [1.0, "too_long", "refused"]),
    ],
)
def test_what_a_service_cannot_score_has_no_score(stage: Stage, scores: Scores, expected: list[float | str]) -> None:
    with reward_service(scores) as address:
        reward = {"preference_weight": 0.0, "service_weight": 1.0, "service": address}
        with a_run(stage, reward=reward) as run:
            assert kinds(rewards.score(run, PROMPTS, ANSWERS, seed=0, preference_version=1)) == expected


def test_a_service_that_refuses_the_request_is_an_error(stage: Stage) -> None:
    def refuse(_: object) -> list[tuple[str, float]]:
        raise invalid_fields([Violation("model", "there is no such model")])

    with reward_service(refuse) as address:
        reward = {"preference_weight": 0.0, "service_weight": 1.0, "service": address}
        with a_run(stage, reward=reward) as run, pytest.raises(ServiceError, match="no such model"):
            rewards.score(run, PROMPTS, ANSWERS, seed=0, preference_version=1)


def test_a_service_that_is_not_there_is_waited_for_and_then_an_error(stage: Stage) -> None:
    with reward_service(lambda _: []) as address:
        pass
    reward = {"preference_weight": 0.0, "service_weight": 1.0, "service": address}
    waiting = {"max_wait_seconds": 1}
    error = pytest.raises(WaitedTooLongError, match=r"max_wait_seconds.*reward service at .* cannot be reached")
    with a_run(stage, reward=reward, services=waiting) as run, error:
        rewards.score(run, PROMPTS, ANSWERS, seed=0, preference_version=1)


def test_the_preference_model_must_be_there(stage: Stage) -> None:
    with a_run(stage) as run, pytest.raises(ServiceError, match="preference"):
        rewards.score(run, PROMPTS, ANSWERS, seed=0, preference_version=1)


def test_an_answer_that_the_judge_cannot_rate_has_no_score(stage: Stage) -> None:
    """The tiny model gives no rating; an empty answer is not rated, one that is too long for the contract not sent."""
    by_the_judge = {"preference_weight": 0.0, "judge_weight": 1.0}
    with a_run(stage, reward=by_the_judge) as run:
        got = rewards.score(run, PROMPTS, ["one", " ", "x" * 400_001], seed=0, preference_version=1)
    assert kinds(got) == ["unclear", "empty", "too_long"]


def answer(text: str) -> Answer:
    return Answer(text, (1,), (2,), np.zeros(1, dtype=np.float32), (1,), True)


def test_pairs_are_compared_by_the_judge(stage: Stage) -> None:
    """Turning a pair round turns its probabilities round; equal answers are a tie that costs nothing."""
    pairs = [[answer("yes"), answer("no, never")], [answer("same"), answer("same")], [answer("a"), answer("b")]]
    with a_run(stage, "online", ppo={"algorithm": "ALGORITHM_ONLINE_DPO"}) as run:
        assert not run.needs_preference_model
        got = rewards.compare(run, PROMPTS, pairs, seed=1)
        turned = rewards.compare(run, PROMPTS, [pair[::-1] for pair in pairs], seed=1)
    assert got[2:4] == [0.5, 0.5]
    numbers = [one for one in got if not isinstance(one, Failed)]
    assert [numbers[i] + numbers[i + 1] for i in (0, 2, 4)] == pytest.approx([1, 1, 1])
    assert turned == pytest.approx([p for i in (0, 2, 4) for p in (got[i + 1], got[i])])
    assert got[0] != 0.5


def test_what_the_judge_says_of_online_pairs_is_stored_once(stage: Stage) -> None:
    pairs = [[answer("right"), answer("wrong, no")], [answer("same"), answer("same")], [answer("c"), answer("")]]
    with a_run(stage, "online", ppo={"algorithm": "ALGORITHM_ONLINE_DPO"}) as run:
        before = list(run.services.preference.comparisons(run.id))
        scores = rewards.compare(run, PROMPTS, pairs, seed=3)
        # The step runs again.
        rewards.compare(run, PROMPTS, pairs, seed=3)
        judged, failed = list(run.services.preference.comparisons(run.id))[len(before) :]
    assert (judged.answer_a.text, judged.answer_b.text) == ("right", "wrong, no")
    assert judged.probability_a == pytest.approx(scores[0])
    assert [message.content for message in judged.prompt] == [message.content for message in PROMPTS[0].messages]
    assert (judged.dimension, judged.source) == (PROMPTS[0].dimension, types_pb2.LABEL_SOURCE_AI)
    assert judged.judgements[0].principle_id
    assert judged.constitution_digest
    assert (judged.answer_a.weight_version, judged.answer_a.cut_off) == (1, False)
    assert failed.outcome == types_pb2.OUTCOME_INVALID
    assert failed.judgements[0].failure


def test_a_pair_that_cannot_be_judged_has_no_score(stage: Stage) -> None:
    pairs = [[answer("yes"), answer("")], [answer("yes"), answer("no " * 400)], [answer("a"), answer("b" * 400_001)]]
    with a_run(stage, "online", ppo={"algorithm": "ALGORITHM_ONLINE_DPO"}) as run:
        got = kinds(rewards.compare(run, PROMPTS, pairs, seed=1))
    assert got == ["empty"] * 2 + ["too_long"] * 4


@pytest.mark.parametrize(
    ("ppo", "reward"),
    [
        ({"algorithm": "ALGORITHM_GRPO", "episodes_per_step": 8}, {"preference_weight": 0.0, "judge_weight": 1.0}),
        ({"algorithm": "ALGORITHM_ONLINE_DPO"}, {}),
        ({"algorithm": "ALGORITHM_RLOO", "samples_per_prompt": 3, "normalise_scores": True}, {"judge_weight": 0.5}),
        ({"algorithm": "ALGORITHM_REINFORCE_PLUS_PLUS", "lora_rank": 2}, {}),
        ({"algorithm": "ALGORITHM_PPO", "shared_trunk": True}, {}),
    ],
)
def test_a_whole_run_with_each_algorithm(rating: Stage, ppo: dict[str, Any], reward: dict[str, Any]) -> None:
    name = ppo["algorithm"].removeprefix("ALGORITHM_").lower()
    spec = rating.spec(ppo={"steps": 2, **ppo}, reward=reward, judge={"labelled_pairs": ""})
    assert rating.work(name, spec) == 0
    steps = rating.ppo_steps(name)
    assert set(steps) == {1, 2}
    for numbers in steps.values():
        assert numbers["probe_mismatch_max"] < 1e-3
        assert ("value_loss" in numbers) == (name == "ppo")
    labelled = (rating.run_folder(name) / "preference_fit.json").exists()
    assert labelled == (name in ("rloo", "reinforce_plus_plus", "ppo"))
    assert (rating.run_folder(name) / "report.html").is_file()
    assert (rating.run_folder(name) / "policy" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("ppo", "reward", "error"),
    [
        ({"algorithm": "ALGORITHM_GRPO", "samples_per_prompt": 1}, {}, "compares the answers to a prompt"),
        ({"algorithm": "ALGORITHM_GRPO", "episodes_per_step": 6}, {}, "not a multiple of ppo.samples_per_prompt, 4"),
        ({"algorithm": "ALGORITHM_ONLINE_DPO", "samples_per_prompt": 3}, {}, "learns from pairs"),
        ({"algorithm": "ALGORITHM_ONLINE_DPO", "minibatches": 4}, {}, "too many for ppo.episodes_per_step"),
        (
            {"algorithm": "ALGORITHM_REINFORCE_PLUS_PLUS", "shared_trunk": True},
            {},
            "plus_plus has no critic: leave it out",
        ),
        ({"shared_trunk": True, "critic_warmup_steps": 1}, {}, "only the critic learns"),
        ({}, {"preference_weight": 0.0}, "reward: has every weight 0"),
        ({}, {"service_weight": 1.0}, "belong together"),
    ],
)
def test_numbers_that_do_not_go_together_are_told(
    stage: Stage,
    ppo: dict[str, Any],
    reward: dict[str, Any],
    error: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # With a trainer that is away, the reason is the log's last line nevertheless.
    monkeypatch.setattr(reporter, "_PATIENCE_SECONDS", 0.1)
    spec = stage.spec(ppo=ppo, reward=reward)
    assert stage.work("wrong", spec, trainer=f"127.0.0.1:{free_ports(1)[0]}") == REFUSED
    assert error in caplog.messages[-1]


def test_labels_that_failed_in_an_earlier_attempt_keep_their_kinds(stage: Stage) -> None:
    texts = ("Yes.", "No."), ("Yes.", ""), ("word " * 600, "No."), ("", "No.")
    pairs = [Pair(PROMPTS[place % 3], Written(a, False, 1), Written(b, False, 1)) for place, (a, b) in enumerate(texts)]
    with a_run(stage, failures={"max_share": 1.0}) as run:
        Labelling(run, LABELLING, 5, run.start.version).label("0", pairs)
        first = run.artifacts.record["left_out"][LABELLING]
        assert first == {"items": 4, "kinds": {"empty": 2, "too_long": 1}}
        resumed = Labelling(run, LABELLING, 5, run.start.version)
        resumed.label("0", pairs)
        more = Pair(PROMPTS[2], Written("Perhaps.", False, 1), Written("No.", False, 1))
        resumed.label("1", [more])
        assert run.artifacts.record["left_out"][LABELLING] == {"items": 5, "kinds": {"empty": 2, "too_long": 1}}
