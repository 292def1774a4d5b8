"""``samples.jsonl``: what is kept of a step, and what is read of a run that was resumed or is under way."""

from dataclasses import replace
from pathlib import Path

import pytest
from charter.runs.samples import FILE, KEPT, Sample, extremes, read_samples, step_to_line

ONE = Sample("1.0", [{"role": "user", "content": "Hi"}], "", "\u2028 Hello", 3, True, 0.5, 1, 1, "")


def of_step(step: int, *scores: float) -> list[Sample]:
    return [replace(ONE, id=f"{step}.{number}", score=score) for number, score in enumerate(scores)]


def test_the_ends_of_a_step_are_kept() -> None:
    many = of_step(1, *(float((7 * number) % 20) for number in range(20)))
    kept = [one.score for one in extremes(many)]
    assert kept == [*map(float, range(KEPT)), *map(float, range(20 - KEPT, 20))]
    few = of_step(1, *map(float, range(2 * KEPT)))
    assert extremes(few) == few


def test_a_step_that_ran_again_replaces_the_first_and_an_unfinished_line_waits(tmp_path: Path) -> None:
    lines = [step_to_line(of_step(step, float(step))) for step in (1, 2, 3)]
    again = step_to_line(of_step(2, 7.0))
    (tmp_path / FILE).write_text("\n".join([*lines, again, again[:20]]), encoding="utf-8")
    found = read_samples(tmp_path)
    assert [(one.step, one.score) for one in found] == [(1, 1.0), (2, 7.0), (3, 3.0)]
    assert found[0].answer == ONE.answer


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(f"{step_to_line([ONE])}\n[{{}}]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read_samples(tmp_path)
