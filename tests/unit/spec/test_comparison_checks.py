"""What is said of a comparison that a run cannot make."""

import pytest
from charter.spec.comparison_checks import compared
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from google.protobuf import json_format

DPO = {"dpo": {"data": [{"source": "pairs.jsonl"}]}}
JUDGED = {"judge": {"model": "j"}}


def service(name: str) -> dict[str, str]:
    return {"name": name, "address": "host:1"}


def said(compare: dict[str, object], **sections: object) -> list[str]:
    values = {"name": "x", "policy": {"model": "m"}, "evaluation": {"compare": compare}, **sections}
    spec = fill_defaults(json_format.ParseDict(values, run_pb2.RunSpec()))
    return [str(problem) for problem in compared(spec)]


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ({"stages": ["start", "kto"]}, "stages[1]: the run has no stage kto; it has start, dpo and policy"),
        ({"stages": ["dpo", "policy", "dpo"]}, "stages[2]: names dpo again"),
        ({"stages": ["policy"]}, "stages: is one model"),
        ({"models": [service("dpo")]}, "models[0].name: `dpo` is the name of another"),
        ({"judges": [service("a"), service("a")]}, "judges[1].name: `a` is the name of another"),
        ({"judges": [service("own")]}, "judges[0].name: `own` is the name of another"),
        (
            {"prompts": [{"source": "p.jsonl"}, {"source": "q.jsonl", "kind": "harmful"}]},
            "prompts[1].kind: needs prompts of kind look_alike",
        ),
        (
            {"prompts": [{"source": "p.jsonl", "dimension": "all"}]},
            "prompts[0].dimension: makes prompts of dimension `all`",
        ),
        ({"judges": [service("people")]}, "judges[0].name: `people` is the name of another"),
    ],
)
def test_what_cannot_be_compared_is_named(compare: dict[str, object], words: str) -> None:
    (problem,) = said(compare, **DPO, **JUDGED)
    assert words in problem


def test_what_can_be_compared_is_no_mistake() -> None:
    both: list[dict[str, object]] = [{"source": f"{kind}.jsonl", "kind": kind} for kind in ("harmful", "look_alike")]
    right: list[dict[str, object]] = [
        {},
        {"stages": ["policy", "dpo"]},
        {"stages": ["policy"], "models": [service("other")]},
        {"prompts": both},
    ]
    for compare in right:
        assert said(compare, **DPO, **JUDGED) == []


def test_a_run_that_only_learns_is_told_what_to_do() -> None:
    (problem,) = said({}, **DPO)
    assert "only learns from data" in problem
    assert "charter evaluate" in problem
