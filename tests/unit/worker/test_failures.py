"""What a stage leaves out is counted by kind; too much of it stops the stage, and no resume meets the same wall."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from charter.runs.artifacts import Artifacts
from charter.runs.results import LeftOut
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.clients.failed import UNAVAILABLE, Failed
from charter.worker.context import Run
from charter.worker.errors import RunError, TooManyFailuresError
from charter.worker.failures import LATEST, Failures, draws

EMPTY = Failed("empty", "the answer is empty")
LONG = Failed("too_long", "needs 9 tokens")
DOWN = Failed(UNAVAILABLE, "no route")


def a_run(folder: Path, **failures: Any) -> Run:
    """All of a run that counting needs."""
    spec = fill_defaults(run_pb2.RunSpec(failures=run_pb2.FailureSpec(**failures)))
    none = cast(Any, None)
    return Run("counted", spec, Artifacts(folder, "counted"), none, none, none, none, none, none)


def test_a_few_are_counted_by_kind(tmp_path: Path) -> None:
    failures = Failures(a_run(tmp_path), "training", 100)
    assert failures.add([0.5, EMPTY, 0.1, LONG]) == LeftOut(4, {"empty": 1, "too_long": 1})
    failures.add([EMPTY] + [0.5] * 5)
    assert failures.so_far == LeftOut(10, {"empty": 2, "too_long": 1})
    assert failures.so_far.in_words() == "3 of 10 left out: 2 empty, 1 too long"
    stored = json.loads((tmp_path / "run.json").read_text())["left_out"]
    assert stored == {"training": {"items": 10, "kinds": {"empty": 2, "too_long": 1}}}


@pytest.mark.parametrize(("share", "most"), [(None, 10), (0.05, 5), (0.0, 0)])
def test_a_larger_share_than_the_spec_allows_stops(tmp_path: Path, share: float | None, most: int) -> None:
    run = a_run(tmp_path) if share is None else a_run(tmp_path, max_share=share)
    failures = Failures(run, "labelling", 100)
    for _ in range(most):
        failures.add([0.5, EMPTY])
    with pytest.raises(TooManyFailuresError, match=f"labelling: {most + 1} of .* {most + 1} empty.*answer is empty"):
        failures.add([EMPTY])


def test_many_good_items_do_not_hide_that_everything_fails_now(tmp_path: Path) -> None:
    failures = Failures(a_run(tmp_path), "training", 1_000_000)
    for _ in range(100):
        failures.add([0.5] * 500)
    failures.add([EMPTY] * (LATEST // 10))
    with pytest.raises(TooManyFailuresError):
        failures.add([EMPTY] * 20)


def test_each_resume_goes_further(tmp_path: Path) -> None:
    """With the same items in every attempt: it stops at twice the share each time, and comes to the end."""
    reached = []
    for _ in range(10):
        failures = Failures(a_run(tmp_path), "evaluation", 50)
        try:
            for _ in range(50):
                failures.add([EMPTY], place=failures.so_far.items)
        except TooManyFailuresError:
            reached.append(failures.so_far.items)
        else:
            break
    else:
        pytest.fail("the same wall for ever")
    assert reached == [6, 11, 21, 41]
    run = a_run(tmp_path)
    assert [draws(run, "evaluation", place) for place in (5, 10, 11)] == [1, 1, 0]
    assert draws(run, "training", 5) == 0


def test_none_allowed_is_no_wall_either(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailuresError):
        Failures(a_run(tmp_path, max_share=0.0), "evaluation", 10).add([EMPTY] + [0.5] * 9)
    Failures(a_run(tmp_path, max_share=0.0), "evaluation", 10).add([EMPTY] + [0.5] * 9)


def test_an_outage_stops_the_attempt_and_changes_nothing(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with pytest.raises(RunError, match=r"the judge's model cannot be reached: no route\. Resume") as caught:
        Failures(run, "labelling", 10).add([DOWN, DOWN, EMPTY] + [0.5] * 7)
    assert not isinstance(caught.value, TooManyFailuresError)
    assert run.artifacts.record["stops"] == []
    with pytest.raises(TooManyFailuresError):
        Failures(run, "labelling", 10).add([DOWN, EMPTY, EMPTY] + [0.5] * 7)


def test_without_any_item_a_step_stops_whatever_is_allowed(tmp_path: Path) -> None:
    failures = Failures(a_run(tmp_path, max_share=1.0), "training", 100)
    failures.add([EMPTY, EMPTY])
    with pytest.raises(TooManyFailuresError, match="nothing is left"):
        failures.stop_without([EMPTY, EMPTY], 7)
    assert draws(a_run(tmp_path), "training", 7) == 1
