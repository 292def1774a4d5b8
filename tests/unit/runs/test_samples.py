"""``samples.jsonl``: what is read of a run that was resumed or is under way, and what a resumed run takes out."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from charter.runs.samples import FILE, Sample, forget_after, read_samples, step_to_line
from charter.state_files import StateFileError

ONE = Sample("1.0", [{"role": "user", "content": "Hi"}], "", "\u2028 Hello", 3, True, 0.5, 1, 1, "")


def of_step(step: int, *scores: float) -> list[Sample]:
    return [replace(ONE, id=f"{step}.{number}", score=score) for number, score in enumerate(scores)]


def test_a_step_that_ran_again_replaces_the_first_and_an_unfinished_line_waits(tmp_path: Path) -> None:
    lines = [step_to_line(of_step(step, float(step))) for step in (1, 2, 3)]
    again = step_to_line(of_step(2, 7.0))
    (tmp_path / FILE).write_text("\n".join([*lines, again, again[:20]]), encoding="utf-8")
    found = read_samples(tmp_path)
    assert [(one.step, one.score) for one in found] == [(1, 1.0), (2, 7.0), (3, 3.0)]
    assert found[0].answer == ONE.answer


def test_a_resumed_run_takes_out_the_steps_that_run_again(tmp_path: Path) -> None:
    file = tmp_path / FILE
    forget_after(file, 0)
    assert not file.exists()
    lines = [f"{step_to_line(of_step(step, float(step)))}\n" for step in (1, 2, 3)]
    file.write_text("".join([*lines, lines[2][:20]]), encoding="utf-8")
    forget_after(file, 2)
    assert file.read_text(encoding="utf-8") == "".join(lines[:2])
    file.write_text("[{}]\n", encoding="utf-8")
    with pytest.raises(StateFileError, match=r"line 1, is damaged: .* Delete it, and resume the run"):
        forget_after(file, 2)


def test_answers_of_earlier_versions_have_no_tokens_and_figures_fit_theirs(tmp_path: Path) -> None:
    record = asdict(ONE)
    for name in ("group", "extreme", "random", "failure", "pieces", "log_ratios", "advantages", "values"):
        del record[name]
    (tmp_path / FILE).write_text(json.dumps([record]) + "\n", encoding="utf-8")
    assert read_samples(tmp_path) == [ONE]
    (tmp_path / FILE).write_text(
        step_to_line([replace(ONE, pieces=["a", "b"], log_ratios=[0.5])]) + "\n", encoding="utf-8"
    )
    with pytest.raises(ValueError, match="figures of more or fewer tokens than it has"):
        read_samples(tmp_path)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(f"{step_to_line([ONE])}\n[{{}}]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read_samples(tmp_path)
