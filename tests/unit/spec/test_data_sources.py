"""Data that a spec names: files with a column, data sets of the hub, and what happens to bad rows in them."""

import json
from pathlib import Path

import pytest
from charter.cli.runs.run import _files_of
from charter.data.sources import Source
from charter.runs.artifacts import Artifacts
from charter.spec import checks
from charter.spec.chat_form import ChatForm
from charter.spec.defaults import fill_defaults
from charter.trainer.artifact_files import with_absolute_files, with_relative_files, with_stored_files
from charter.v1 import run_pb2
from charter.worker.errors import SpecError
from charter.worker.stages.start import with_pinned_data

from tests.support.hub import running_hub

SPEC = """\
name: my-run
policy: {model: org/policy}
judge: {model: org/judge, constitution: rules.yaml, labelled_pairs: "pairs.csv#verdict"}
prompts:
  train: [TRAIN]
  held_out: ["held.jsonl#question"]
"""
CONSTITUTION = """\
name: tiny
version: "1"
principles:
  - {id: kind, dimension: helpful, compare: "Which?", critique: Why., revise: Do., follow: Yes., oppose: No.}
"""


def lines(column: str, texts: list[str]) -> str:
    return "".join(json.dumps({column: text}) + "\n" for text in texts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(CONSTITUTION)
    (tmp_path / "train.jsonl").write_text(lines("prompt", [f"train {n}" for n in range(40)]))
    (tmp_path / "held.jsonl").write_text(lines("question", [f"held {n}" for n in range(40)]))
    (tmp_path / "pairs.csv").write_text("prompt,answer_a,answer_b,verdict\nq,yes,no,a\n")
    return tmp_path


def found(folder: Path, train: str = '"train.jsonl"', more: str = "") -> tuple[run_pb2.RunSpec, list[str]]:
    (folder / "spec.yaml").write_text(SPEC.replace("TRAIN", train) + more)
    checked = checks.check_file(folder / "spec.yaml").file
    return checked.spec, [str(one) for one in checked.problems]


def test_a_column_stays_with_its_file(folder: Path, tmp_path: Path) -> None:
    spec, problems = found(folder)
    assert problems == []
    assert list(spec.prompts.held_out) == [f"{folder}/held.jsonl#question"]
    assert spec.judge.labelled_pairs == f"{folder}/pairs.csv#verdict"
    # On its way to another machine, and when its folder moves.
    runs = tmp_path / "runs"
    stored = with_stored_files(spec, _files_of(spec), runs)
    assert stored.prompts.held_out[0].startswith(f"{runs}/inputs/")
    assert stored.prompts.held_out[0].endswith("/held.jsonl#question")
    relative = with_relative_files(stored, runs)
    assert relative.prompts.held_out[0].startswith("inputs/")
    assert with_absolute_files(relative, runs) == stored


def test_compared_prompts_are_read_and_travel_as_the_others(folder: Path, tmp_path: Path) -> None:
    (folder / "other.jsonl").write_text(lines("prompt", ["other", "train 3"]))
    compare = "evaluation: {compare: {prompts: [{source: other.jsonl, count: 3}]}}\n"
    spec, problems = found(folder, more=compare)
    assert [one.partition(" ")[0] for one in problems] == [
        f"evaluation.compare.prompts[0].{name}:" for name in ("source", "count")
    ]
    assert "1 of its prompts are also in prompts.train" in problems[0]
    assert "is 3, and" in problems[1]
    runs = tmp_path / "runs"
    (prompts,) = with_stored_files(spec, _files_of(spec), runs).evaluation.compare.prompts
    assert prompts.source.startswith(f"{runs}/inputs/")


def test_a_template_file_travels_as_the_others(folder: Path, tmp_path: Path) -> None:
    (folder / "mine.jinja").write_text("{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}")
    spec, _ = found(folder, more="")
    spec.policy.chat_template, spec.policy.eos_token = str(folder / "mine.jinja"), "</s>"
    runs = tmp_path / "runs"
    stored = with_stored_files(spec, _files_of(spec), runs)
    assert stored.policy.chat_template.startswith(f"{runs}/inputs/")
    # Services compare forms by what the file says, wherever it lies.
    forms = {ChatForm(one.policy.chat_template, "</s>").digest for one in (spec, stored)}
    assert len(forms) == 1
    relative = with_relative_files(stored, runs)
    assert relative.policy.chat_template.startswith("inputs/")
    assert with_absolute_files(relative, runs) == stored
    # Names of no file stay as they are.
    spec.policy.chat_template = "chatml"
    assert with_stored_files(spec, _files_of(spec), runs).policy.chat_template == "chatml"


def test_a_wrong_column_and_a_missing_file_are_named(folder: Path) -> None:
    _, problems = found(folder, '"train.jsonl#goal", "none.jsonl#goal"')
    assert len(problems) == 2
    assert problems[0] == f"prompts.train[1]: no such file: {folder}/none.jsonl"
    assert problems[1].startswith("prompts.train[0]: ")
    assert "train.jsonl, line 1: has no column goal; it has prompt" in problems[1]
    assert problems[1].endswith("(the same: line 2, line 3, line 4 and 36 more)")


def test_bad_rows_stop_a_spec_or_are_skipped(folder: Path) -> None:
    with (folder / "train.jsonl").open("a") as file:
        file.write("7\n")
    assert "train.jsonl, line 41: must be a JSON object" in found(folder)[1][0]
    assert found(folder, more="failures: {on_bad_row: skip}\n")[1] == []


def test_a_set_of_the_hub_is_looked_at_where_it_is_in_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(folder, '"hub:a:b:c:d"')[1] == [
        "prompts.train[0]: hub:a:b:c:d is no hub data set: write hub:ORG/NAME[@REVISION][:CONFIG][:SPLIT]"
    ]
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        commit = hub.put("org/set", {"train.jsonl": lines("prompt", ["held 3"]).encode()})
        spec, problems = found(folder, '"hub:org/set"')
        assert (problems, hub.asked) == ([], [])
        artifacts = Artifacts(tmp_path / "run", "r")
        pinned = with_pinned_data(fill_defaults(spec), artifacts)
        assert list(pinned.prompts.train) == [f"hub:org/set@{commit}"]
        assert list(pinned.prompts.held_out) == list(spec.prompts.held_out)
        # What a later attempt reads does not depend on what came to the hub meanwhile.
        hub.put("org/set", {"train.jsonl": b""})
        again = with_pinned_data(fill_defaults(spec), Artifacts(tmp_path / "run", "r"))
        assert list(again.prompts.train) == [f"hub:org/set@{commit}"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "other cache"))
    with pytest.raises(SpecError, match="the hub cannot be reached for hub:org/set"):
        with_pinned_data(fill_defaults(spec), Artifacts(tmp_path / "other run", "r"))


def test_a_set_in_the_cache_is_checked_with_the_rest(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        hub.put("org/set", {"train.jsonl": lines("question", ["held 3", "other"]).encode()})
        Source.parse("hub:org/set").files()
    (problem,) = found(folder, '"hub:org/set"')[1]
    assert "1 of its prompts are also in prompts.train" in problem
