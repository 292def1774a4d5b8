"""What a card says was done, for each algorithm, reward and source of labels."""

import json
from pathlib import Path
from typing import Any

import pytest
from charter.evaluation.card.join import twin_of
from charter.evaluation.card.twin import Twin
from charter.evaluation.card.words import how, tags
from charter.runs.folder import read_run_folder
from charter.runs.results import Learned, LearnedSource, LeftOut, write_result
from charter.spec.facts import ALGORITHM_TITLES
from charter.v1 import run_pb2

from tests.support.report_fixture import without, write_run_folder


def twin(tmp_path: Path, **spec: Any) -> Twin:
    """Of a run without a fitted preference model, whose spec has these sections."""
    folder = without(write_run_folder(tmp_path / "run"), "preference_fit.json")
    known = json.loads((folder / "spec.json").read_text())
    sections = {name: known.get(name, {}) | section for name, section in spec.items()}
    (folder / "spec.json").write_text(json.dumps(known | sections))
    return twin_of(read_run_folder(folder))


def test_every_algorithm_has_a_name() -> None:
    names = {name.removeprefix("ALGORITHM_").lower() for name in run_pb2.Algorithm.DESCRIPTOR.values_by_name}
    assert set(ALGORITHM_TITLES) == names - {"unspecified"}


@pytest.mark.parametrize(
    ("algorithm", "tag", "pull"),
    [
        ("PPO", "ppo", "a KL penalty in the reward"),
        ("GRPO", "grpo", "a KL penalty in the loss"),
        ("RLOO", "rloo", "a KL penalty in the reward"),
        ("REINFORCE_PLUS_PLUS", "reinforce-pp", "a KL penalty in the reward"),
    ],
)
def test_the_algorithm_is_the_one_of_the_spec(tmp_path: Path, algorithm: str, tag: str, pull: str) -> None:
    found = twin(tmp_path, ppo={"algorithm": f"ALGORITHM_{algorithm}"})
    assert f"{ALGORITHM_TITLES[algorithm.lower()]} trained the policy against that model while {pull} held it" in how(
        found
    )
    assert tag in tags(found)
    assert ("ppo" in tags(found)) is (algorithm == "PPO")


def test_online_dpo_has_no_preference_model_and_no_reward(tmp_path: Path) -> None:
    found = twin(tmp_path, ppo={"algorithm": "ALGORITHM_ONLINE_DPO"})
    assert "online DPO let it learn from pairs of its answers that a judge model compared" in how(found)
    assert "preference model" not in how(found)
    assert {"online-dpo", "rlaif", "constitutional-ai"} <= set(tags(found))
    assert found.judge is not None
    assert found.judge.did == ("comparisons",)


@pytest.mark.parametrize(
    ("reward", "words", "did", "judged"),
    [
        ({"preference_weight": 0, "judge_weight": 1}, "the judge model's ratings of its answers", ("ratings",), True),
        ({"preference_weight": 0, "service_weight": 2}, "a scoring service of the user's", (), False),
        (
            {"judge_weight": 0.5, "service_weight": 1},
            "that model, the judge model's ratings of its answers by the constitution and a scoring service",
            ("labels", "ratings"),
            True,
        ),
    ],
)
def test_the_rewards_are_those_of_the_spec(
    tmp_path: Path, reward: dict[str, float], words: str, did: tuple[str, ...], judged: bool
) -> None:
    found = twin(tmp_path, reward=reward)
    assert f"trained the policy against {words}" in how(found)
    assert ("a preference model was fitted" in how(found)) is (reward.get("preference_weight") != 0)
    assert found.judge is not None
    assert found.judge.did == did
    assert how(found).startswith("aligned to a written constitution with Charter: ") is judged
    assert ("rlaif" in tags(found), "constitutional-ai" in tags(found)) == (judged, judged)
    assert bool(found.remarks) is judged


@pytest.mark.parametrize(
    ("sources", "words", "expected"),
    [
        (["AI"], "a judge model's labels, by the constitution, of pairs of its answers;", {"rlaif"}),
        (["HUMAN"], "labels of people;", {"rlhf"}),
        (["IMPORTED"], "labels from files;", set()),
        (["HUMAN", "IMPORTED"], "labels of people and labels from files;", {"rlhf"}),
    ],
)
def test_the_labels_are_those_that_were_fitted(
    tmp_path: Path, sources: list[str], words: str, expected: set[str]
) -> None:
    folder = write_run_folder(tmp_path / "run")
    fit = json.loads((folder / "preference_fit.json").read_text())
    part = fit["mix"][0]
    fit["mix"] = [part | {"source": source} for source in sources]
    (folder / "preference_fit.json").write_text(json.dumps(fit))
    found = twin_of(read_run_folder(folder))
    assert f"a preference model was fitted to {words}" in how(found)
    assert set(tags(found)) & {"rlaif", "rlhf"} == expected


def test_a_run_that_stopped_before_rl_claims_none(tmp_path: Path) -> None:
    found = twin_of(read_run_folder(without(write_run_folder(tmp_path / "run"), "events.jsonl")))
    assert "no step of reinforcement learning was done" in how(found)
    assert "ppo" not in tags(found)


@pytest.mark.parametrize(("labels", "part"), [({"AI": 3}, "Labels of a judge model"), ({"HUMAN": 3}, "No judge model")])
def test_a_run_without_rl_tells_of_what_it_learned(tmp_path: Path, labels: dict[str, int], part: str) -> None:
    spec = {"name": "kept", "policy": {"model": "org/base"}, "kto": {"data": [{"source": "/data/thumbs.jsonl"}]}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    source = LearnedSource(3, 0, 9, 1.0, LeftOut(3), labels=labels, verdicts={"up": 2, "down": 1})
    write_result(tmp_path, "kto", Learned("org/base", {"/data/thumbs.jsonl": source}, 1, 1, 1, "", ()))
    found = twin_of(read_run_folder(tmp_path))
    whose = "the judge" if "AI" in labels else "people"
    learned = f"it learned from answers with a thumb up or down (KTO), with labels of {whose}"
    assert how(found).startswith(f"trained with Charter: {learned}. {part}")
    assert tags(found) == ["charter", "kto"]
    assert found.reinforcement is None
    assert found.judge is None
    assert "ppo" not in found.spec
