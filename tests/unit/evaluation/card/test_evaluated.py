"""Evaluations of a run are found and told of, with the judge that made them and what must be said of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from charter.chat import ChatMessage
from charter.evaluation.card.evaluated import find_evaluations, is_evaluated
from charter.evaluation.card.join import twin_of
from charter.evaluation.card.markdown import markdown
from charter.evaluation.compare.folder import Answer, Compared, EvaluationFolder, StoredReply
from charter.evaluation.compare.prompts import EvaluatedPrompt
from charter.evaluation.compare.results import compute, write_results
from charter.evaluation.compare.spec import fill_defaults
from charter.evaluation.compare.trained import training_of
from charter.runs.folder import read_run_folder
from charter.spec.comparison_checks import HARMFUL, LOOK_ALIKE
from charter.state_files import StateFileError
from charter.v1 import evaluation_pb2, judge_pb2

from tests.support.report_fixture import write_run_folder


def evaluate(
    folder: Path,
    model: evaluation_pb2.EvaluatedModel,
    about: dict[str, dict[str, Any]],
    said: tuple[float, ...] = (),
) -> Path:
    """Store an evaluation of a model against another, by judges of which is known what served, on six prompts.

    With ``said`` four of the prompts are harmful and two look so, and it is what judges say of each answer's kind.
    """
    judges = [evaluation_pb2.EvaluationJudge(name=name, address="host:1") for name in about]
    models = [evaluation_pb2.EvaluatedModel(name="base", model="org/base"), model]
    spec = fill_defaults(
        evaluation_pb2.EvaluateSpec(
            name=folder.name,
            models=models,
            judges=judges,
            prompts=[evaluation_pb2.EvaluatedPrompts(source="p.jsonl")],
            bootstrap_samples=100,
        )
    )
    store = EvaluationFolder(folder)
    folder.mkdir(parents=True)
    kinds = [HARMFUL, HARMFUL, LOOK_ALIKE] * 2 if said else [""] * 6
    prompts = [
        EvaluatedPrompt(f"p{place}", (ChatMessage("user", f"Question {place}?"),), "helpful", kind)
        for place, kind in enumerate(kinds)
    ]
    store.begin(spec, prompts)
    store.note_served("models", model.name, {"trained": training_of(model)})
    for name, served in about.items():
        store.note_served("judges", name, served)
    for place, prompt in enumerate(prompts):
        for name in ("base", model.name):
            store.add_answer(Answer(name, prompt.key, 0, 1, "helpful", text=name, tokens=3 + place % 2))
        for judge in about:
            judgement = judge_pb2.Judgement(probability_a=0.9 if place else 0.2)
            store.add_judgement(Compared(judge, model.name, "base", prompt.key, 0, "helpful", judgement))
            for name in ("base", model.name) if said else ():
                store.add_reply(StoredReply(judge, name, prompt.key, 0, "helpful", said))
    write_results(compute(spec, store), store)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run_folder(tmp_path / "runs" / "one")


def test_figures_judges_and_remarks_are_those_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    same = json.loads((run / "spec.json").read_text())["judge"]["model"]
    other = {"model": "org/other-judge", "constitution_digest": "0" * 64}
    about = {"same": {"model": same, "constitution_digest": ""}, "other": other}
    folder = evaluate(
        tmp_path / "evaluations" / "wide", evaluation_pb2.EvaluatedModel(name="tuned", run=str(run)), about
    )
    evaluate(tmp_path / "evaluations" / "alien", evaluation_pb2.EvaluatedModel(name="x", model="org/x"), about)
    assert find_evaluations(run, tmp_path / "evaluations") == ([folder], [])
    twin = twin_of(read_run_folder(run), [folder])
    found = {one.judge: one for one in twin.comparisons if one.evaluation == "wide"}
    assert list(found) == ["same", "other"]
    standing = json.loads((folder / "result.json").read_text())["standings"]
    (rate,) = (one["win_rate"] for one in standing if (one["judge"], one["model"]) == ("other", "tuned"))
    assert (found["other"].wins, found["other"].losses, found["other"].prompts) == (5, 1, 6)
    assert found["other"].win_rate.value == rate["win_rate"]["value"] == 5 / 6
    assert found["other"].judge_model == "org/other-judge"
    remark = "Measured by what it was trained on: same is the judge that trained tuned, by other principles."
    assert twin.remarks["wide"] == [remark]
    text = markdown(twin)
    assert f"**wide:** {remark}" in text
    spread = f"{100 * rate['win_rate']['low']:.1f}% to {100 * rate['win_rate']['high']:.1f}%"
    assert f"| wide | other (org/other-judge) | helpful | base | 83.3% ({spread}) | 5, 0, 1, 0 |" in text
    assert "win rate against base, by other" in text.partition("\n---\n")[0]


def test_the_comparison_in_a_runs_folder_is_its_own_wherever_that_lies_now(run: Path, tmp_path: Path) -> None:
    model = evaluation_pb2.EvaluatedModel(name="policy", model="/elsewhere/runs/one/policy")
    folder = evaluate(run / "comparison", model, {"judge": {"model": "org/j"}})
    assert find_evaluations(run, tmp_path / "evaluations") == ([folder], [])
    assert "win rate against base, by judge" in markdown(twin_of(read_run_folder(run), [folder]))


def test_how_often_it_declines_is_told_with_what_the_judge_can_tell(run: Path, tmp_path: Path) -> None:
    model = evaluation_pb2.EvaluatedModel(name="tuned", run=str(run))
    sure = evaluate(tmp_path / "sure", model, {"judge": {"model": "org/j"}}, (0.0, 0.1, 0.7, 0.2))
    twin = twin_of(read_run_folder(run), [sure])
    (found,) = twin.declines
    assert (found.harmful_answers, found.look_alike_answers) == (4, 2)
    assert (found.harmful.value, found.harmful_evaded.value) == pytest.approx((0.9, 0.2))
    assert (found.look_alike.value, found.look_alike_evaded.value) == pytest.approx((0.9, 0.2))
    stored = next(one for one in json.loads((sure / "result.json").read_text())["refusals"] if one["model"] == "tuned")
    assert found.harmful.low == stored["refusals"]["harmful"]["declined"]["low"] < 0.9
    assert "| sure | judge (org/j) | 90.0% (" in markdown(twin)
    assert twin.remarks.get("sure") == []
    unsure = evaluate(tmp_path / "unsure", model, {"judge": {"model": "org/j"}}, (0.26, 0.25, 0.25, 0.24))
    remark = (
        "judge: This judge hardly tells the kinds of answers apart: the mean entropy of its four probabilities is 1.39"
    )
    assert remark in markdown(twin_of(read_run_folder(run), [unsure]))


def test_of_two_evaluations_of_one_name_both_remarks_are_said(run: Path, tmp_path: Path) -> None:
    model = evaluation_pb2.EvaluatedModel(name="tuned", run=str(run))
    judge = json.loads((run / "spec.json").read_text())["judge"]["model"]
    folders = [
        evaluate(tmp_path / place / "one", model, {"judge": {"model": named, "constitution_digest": ""}})
        for place, named in (("a", judge), ("b", "org/other"))
    ]
    (remark,) = twin_of(read_run_folder(run), folders).remarks["one"]
    assert "is the judge that trained tuned" in remark


def test_a_policy_that_is_named_by_its_folder_is_found_too(run: Path, tmp_path: Path) -> None:
    (run / "policy").mkdir()
    model = evaluation_pb2.EvaluatedModel(name="tuned", model=str(run / "policy"))
    assert is_evaluated(run, evaluate(tmp_path / "e" / "one", model, {"judge": {"model": "org/j"}}))


def test_a_checkpoint_of_the_run_is_not_its_policy(run: Path, tmp_path: Path) -> None:
    model = evaluation_pb2.EvaluatedModel(name="early", run=str(run), step=3)
    assert not is_evaluated(run, evaluate(tmp_path / "e" / "one", model, {"judge": {"model": "org/j"}}))


def test_people_are_a_judge_without_a_model(run: Path, tmp_path: Path) -> None:
    model = evaluation_pb2.EvaluatedModel(name="tuned", run=str(run))
    folder = evaluate(tmp_path / "e" / "one", model, {"people": {}})
    assert "| one | people | helpful | base | 83.3%" in markdown(twin_of(read_run_folder(run), [folder]))


def test_a_damaged_result_is_named(run: Path, tmp_path: Path) -> None:
    model = evaluation_pb2.EvaluatedModel(name="tuned", run=str(run))
    folder = evaluate(tmp_path / "e" / "one", model, {"judge": {"model": "org/j"}})
    (folder / "result.json").write_text('{"name": "one"}')
    with pytest.raises(StateFileError, match=r"result\.json is damaged"):
        twin_of(read_run_folder(run), [folder])
