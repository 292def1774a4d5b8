"""The gate: which held-out prompts it asks about, what it compares, and when revising counts as a gain."""

from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.runs.artifacts import Artifacts
from charter.runs.revisions import RevisionRow
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.prompts import PromptSets
from charter.worker.stages.answers import held_out_prompts, watched_prompts
from charter.worker.stages.gate import _clean, _measured, _verdicts, prompts_of_gate
from google.protobuf import json_format

HELD_OUT = tuple(
    TaskPrompt(f"key{n}", (ChatMessage("user", f"Ask {n}."),), "harmless" if n < 10 else "helpful") for n in range(14)
)


def a_run(folder: Path, gate_prompts: int, *dimensions: str) -> Run:
    """All of a run that the gate's choice needs: 3 prompts are evaluated and 2 watched."""
    values = {
        "revision": {"gate_prompts": gate_prompts, "dimensions": dimensions},
        "evaluation": {"prompts": 3, "every_steps": 1, "watched_prompts": 2},
    }
    spec = fill_defaults(json_format.ParseDict(values, run_pb2.RunSpec()))
    none = cast(Any, None)
    return Run("gated", spec, Artifacts(folder, "gated"), none, none, none, PromptSets((), HELD_OUT, 0), none, none)


def test_prompts_that_nothing_else_asks_about_come_first(tmp_path: Path) -> None:
    few, more, all_of_them = (prompts_of_gate(a_run(tmp_path, count)) for count in (9, 11, 100))
    run = a_run(tmp_path, 1)
    evaluated, watched = ({one.key for one in chosen(run)} for chosen in (held_out_prompts, watched_prompts))
    assert not {one.key for one in few} & (evaluated | watched)
    assert {one.key for one in more} - {one.key for one in few} == watched
    assert {one.key for one in all_of_them} == {one.key for one in HELD_OUT}
    assert [_measured(run, prompts, 0, []).also_evaluated for prompts in (few, more, all_of_them)] == [0, 0, 3]
    # Not simply the first ones of the file.
    assert few != sorted(few, key=HELD_OUT.index)


def test_only_dimensions_that_are_revised_are_asked_about(tmp_path: Path) -> None:
    found = prompts_of_gate(a_run(tmp_path, 100, "harmless"))
    assert {one.key for one in found} == {one.key for one in HELD_OUT[:10]}
    with pytest.raises(RunError, match="no held-out prompt has one of revision"):
        prompts_of_gate(a_run(tmp_path, 100, "honest"))


def row(prompt: TaskPrompt, revision: str, verdict: str = "clean") -> RevisionRow:
    return RevisionRow(
        prompt_key=prompt.key,
        prompt=prompt.messages,
        dimension=prompt.dimension,
        round=1,
        parent="",
        answer="An answer.",
        principle="safe",
        critique="It is rude.",
        revision=revision,
        policy="policy",
        policy_version=1,
        judge="judge",
        constitution_digest="d1",
        verdict=verdict,
    )


def test_only_clean_revisions_are_compared() -> None:
    shared = [row(one, f"{n} and n. Have a very nice day, friend") for n, one in enumerate(HELD_OUT[2:6])]
    rows = [row(HELD_OUT[0], "No."), row(HELD_OUT[1], "Here it is", "scaffolding"), *shared]
    verdicts = _verdicts(rows)
    assert [one.row for one in _clean(HELD_OUT, rows, verdicts)] == [rows[0]]
    assert Counter(verdicts.values()) == {"clean": 1, "scaffolding": 1, "common_ending": 4}


@pytest.mark.parametrize(
    ("preferred", "gain"), [([0.9] * 8, True), ([0.9, 0.8, 0.1, 0.7], False), ([0.1] * 8, False), ([0.9], False)]
)
def test_a_gain_is_an_interval_above_one_half(tmp_path: Path, preferred: list[float], gain: bool) -> None:
    found = _measured(a_run(tmp_path, 4), HELD_OUT[:4], 4, preferred)
    assert found.gain == gain
    assert found.compared == len(preferred)
