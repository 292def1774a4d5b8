"""What is shown of a spec: only what its run uses."""

from typing import Any

import pytest
from charter.spec.defaults import fill_defaults
from charter.spec.facts import used_parts
from charter.v1 import run_pb2
from google.protobuf import json_format

_PLAIN: dict[str, Any] = {"policy": {"model": "m"}, "judge": {"model": "j"}, "prompts": {"train": ["t"]}}


def used(**sections: Any) -> run_pb2.RunSpec:
    """Of a spec with these sections and every default."""
    return used_parts(fill_defaults(json_format.ParseDict({"name": "n", **sections}, run_pb2.RunSpec())))


def names(spec: run_pb2.RunSpec) -> set[str]:
    return {field.name for field, _ in spec.ListFields()}


@pytest.mark.parametrize(
    "section",
    [
        {"supervised": {"data": [{"source": "s"}]}},
        {"pretraining": {"data": [{"source": "s"}]}},
        {"dpo": {"data": [{"source": "s"}]}},
        {"kto": {"data": [{"source": "s"}]}},
    ],
)
def test_a_run_that_only_learns_from_what_is_written_shows_nothing_of_rl(section: dict[str, Any]) -> None:
    found = used(policy={"model": "m"}, **section)
    assert names(found) == {"name", "policy", "sampling", *section}
    assert json_format.MessageToDict(found.policy) == {"model": "m"}


def test_what_it_takes_from_the_store_and_what_it_does_with_bad_rows_is_shown() -> None:
    stored = {"kto": {"stored": {"run_id": "own"}}}
    found = used(policy={"model": "m"}, services={"preference": "p:1"}, failures={"on_bad_row": 2}, **stored)
    assert names(found) == {"name", "policy", "sampling", "kto", "services", "failures"}
    assert found.services.preference == "p:1"
    assert not found.services.judge
    assert json_format.MessageToDict(found.failures) == {"onBadRow": "ON_BAD_ROW_SKIP"}


def test_a_run_with_rl_shows_all_but_the_other_algorithms() -> None:
    found = used(**_PLAIN)
    assert names(found) >= {"judge", "prompts", "ppo", "reward", "comparisons", "preference_model", "feedback"}
    assert found.ppo.HasField("critic_learning_rate")
    assert not found.ppo.HasField("dpo_beta")


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO", "REINFORCE_PLUS_PLUS"])
def test_without_a_critic_nothing_of_it_is_shown(algorithm: str) -> None:
    found = used(**_PLAIN, ppo={"algorithm": f"ALGORITHM_{algorithm}"})
    assert not any(found.ppo.HasField(name) for name in ("critic_learning_rate", "value_clip", "gae_lambda"))
    assert found.ppo.HasField("kl_coefficient")


def test_without_a_preference_model_nothing_of_it_is_shown() -> None:
    rated = used(**_PLAIN, reward={"preference_weight": 0, "judge_weight": 1})
    assert names(rated).isdisjoint({"comparisons", "preference_model", "feedback"})
    assert rated.reward.judge_weight == 1
    compared = used(**_PLAIN, ppo={"algorithm": "ALGORITHM_ONLINE_DPO"})
    assert names(compared).isdisjoint({"comparisons", "preference_model", "feedback", "reward"})
    assert compared.ppo.dpo_beta == pytest.approx(0.1)
