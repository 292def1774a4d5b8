"""Specs of an evaluation: their mistakes, each with its line, and which prompts are taken."""

import json
from pathlib import Path

import pytest
from charter.evaluation.compare.prompts import choose_prompts
from charter.evaluation.compare.spec import (
    EvaluateSpec,
    changes,
    load_evaluation,
    pairs_of,
    spec_from_json,
    spec_to_json,
)
from charter.spec.load import spec_to_json as run_spec_to_json
from charter.spec.problems import SpecError
from charter.v1 import run_pb2

GOOD = """\
name: my-evaluation
models:
  - {name: base, model: org/model}
  - {name: ppo, run: my-run}
  - {name: remote, model: big, engine: openai, endpoint: "http://127.0.0.1:1/v1"}
prompts:
  - {source: held.jsonl, dimension: helpful, count: 4}
judges:
  - {name: other, model: org/judge, constitution: rules.yaml}
  - {name: running, address: "127.0.0.1:1", method: choice}
"""
# Of whom answers and judgements are there.
STORED = {"models": {"base", "ppo", "remote"}, "judges": {"other", "running"}}
CONSTITUTION = """\
name: tiny
version: "1"
principles:
  - {id: kind, dimension: helpful, compare: "Which?", critique: Why., revise: Do., follow: Yes., oppose: No.}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Prompts, a constitution, and a run that has made a policy."""
    (tmp_path / "rules.yaml").write_text(CONSTITUTION)
    (tmp_path / "held.jsonl").write_text("".join(json.dumps({"prompt": f"Prompt {i}"}) + "\n" for i in range(10)))
    (tmp_path / "runs/my-run/policy").mkdir(parents=True)
    (tmp_path / "runs/my-run/run.json").write_text("{}")
    (tmp_path / "runs/young").mkdir()
    (tmp_path / "runs/young/run.json").write_text("{}")
    return tmp_path


def load(folder: Path, text: str = GOOD) -> EvaluateSpec:
    (folder / "evaluation.yaml").write_text(text)
    return load_evaluation(folder / "evaluation.yaml", folder).spec


def test_a_good_spec_is_filled_and_its_files_found(folder: Path) -> None:
    spec = load(folder)
    assert (spec.start, spec.pairs, spec.answers_per_prompt) == ("base", "all", 1)
    assert spec.models[1].run == str(folder / "runs/my-run")
    assert spec.judges[0].constitution == str(folder / "rules.yaml")
    assert spec.judges[0].engine == "transformers"
    assert pairs_of(spec) == [("ppo", "base"), ("remote", "base"), ("ppo", "remote")]
    spec.pairs = "start"
    assert pairs_of(spec) == [("ppo", "base"), ("remote", "base")]
    assert spec_from_json(spec_to_json(spec)) == spec


def test_a_name_of_runs_is_the_newest_run(folder: Path) -> None:
    for run in ("aligned-20261129-235959-ffff", "aligned-20261130-080000-0a1b", "aligned-again-20261201-080000-0a1b"):
        (folder / "runs" / run / "policy").mkdir(parents=True)
        (folder / "runs" / run / "run.json").write_text("{}")
    spec = load(folder, GOOD.replace("run: my-run", "run: aligned"))
    assert spec.models[1].run == str(folder / "runs/aligned-20261130-080000-0a1b")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("name: ppo", "name: base", "4: models[1].name: `base` is the name of models[0] too"),
        ("run: my-run", "run: nobody", "4: models[1].run: no run: "),
        ("run: my-run", "run: young", "4: models[1].run: the run in "),
        ("run: my-run", "", "4: models[1]: needs one of run, model and address"),
        ("run: my-run", "run: my-run, model: org/model", "4: models[1]: has run and model: leave all but one out"),
        ("run: my-run", "run: my-run, engine: fake", "4: models[1].engine: fake cannot serve the policy of a run"),
        ("run: my-run", "run: my-run, step: 3", "4: models[1].step: the run in "),
        ("model: org/model", "model: org/model, step: 3", "3: models[0].step: is that of a run's checkpoint"),
        ("run: my-run", "model: ./nothing", "4: models[1].model: no such model folder: "),
        ("run: my-run", "address: 'a:1', engine: vllm", "4: models[1].engine: is for a model that is started here"),
        ("model: org/model", "modl: org/model", "3: models[0].modl: unknown field; did you mean `model`?"),
        ("name: my-evaluation", "name: My Evaluation", "1: name: must be lower-case letters"),
        (
            "name: my-evaluation",
            "name: my-evaluation\nstart: nobody",
            "2: start: names no model: `nobody` is not among",
        ),
        ("engine: openai, ", "", "5: models[2].endpoint: is for engine openai"),
        (', endpoint: "http://127.0.0.1:1/v1"', "", "5: models[2].endpoint: is required by engine openai"),
        ("held.jsonl", "nothing.jsonl", "7: prompts[0].source: no such file: "),
        ("held.jsonl", "rules.yaml", "7: prompts[0].source: "),
        ("count: 4", "count: 11", "7: prompts[0].count: is 11, and "),
        ("count: 4", "kind: harmful", "7: prompts[0].kind: needs prompts of kind look_alike beside it"),
        ("count: 4", "kind: harmless", "7: prompts[0].kind: "),
        ("count: 4", "count: 0", "7: prompts[0].count: must be at least 1, is 0"),
        ("model: org/judge, ", "", "9: judges[0].model: is required, or address"),
        ("rules.yaml", "held.jsonl", "9: judges[0].constitution: "),
        (
            '"127.0.0.1:1", method',
            '"127.0.0.1:1", model: m, method',
            "10: judges[1].model: is for a judge that is started",
        ),
        (
            "dimension: helpful",
            "dimension: all",
            "7: prompts[0].dimension: makes prompts of dimension `all`, which figures of all prompts stand under",
        ),
        ("name: running", "name: people", "10: judges[1].name: `people` is what votes of people stand under"),
        ("method: choice", "method: guess", "10: judges[1].method: `guess` is unknown"),
    ],
)
def test_a_mistake_is_said_with_its_line_and_alone(folder: Path, old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(SpecError) as error:
        load(folder, GOOD.replace(old, new, 1))
    (problem,) = error.value.problems
    assert problem.removeprefix(f"{folder / 'evaluation.yaml'}:").startswith(words), problem


def test_a_checkpoint_is_a_model_of_a_run_that_has_made_no_policy(folder: Path) -> None:
    checkpoint = folder / "runs/young/checkpoints/step-000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "COMPLETE").touch()
    (folder / "runs/young/spec.json").write_text('{"policy": {"model": "org/model"}}')
    spec = load(folder, GOOD.replace("run: my-run", "run: young, step: 3"))
    assert (spec.models[1].run, spec.models[1].step) == (str(folder / "runs/young"), 3)
    assert changes(spec, load(folder, GOOD), STORED) == ["models `ppo`"]


def test_prompts_that_trained_a_model_are_no_measure_of_it(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"prompt": "Prompt 3"}\n{"prompt": "Prompt  4"}\n{"prompt": "Another"}\n')
    trained = run_pb2.RunSpec(prompts=run_pb2.PromptSpec(train=[str(folder / "train.jsonl"), "gone.jsonl"]))
    (folder / "runs/my-run/spec.json").write_text(run_spec_to_json(trained))
    with pytest.raises(SpecError) as error:
        load(folder)
    (problem,) = error.value.problems
    assert problem.endswith("7: prompts[0].source: 2 of its prompts trained ppo: take them out")


def test_too_few_models_and_nothing_to_ask_them(folder: Path) -> None:
    with pytest.raises(SpecError) as error:
        load(folder, "name: a\nmodels: [{name: base, model: org/model}]\n")
    found = "\n".join(error.value.problems)
    for words in ("models: needs at least 2", "prompts: needs at least 1", "judges: needs at least 1"):
        assert words in found


def test_prompts_are_drawn_by_their_content_and_a_larger_count_adds_some(folder: Path) -> None:
    spec = load(folder)
    few = choose_prompts(spec)
    assert len({prompt.key for prompt in few}) == 4
    assert {prompt.dimension for prompt in few} == {"helpful"}
    spec.prompts[0].count = 7
    assert choose_prompts(spec)[:4] == few
    lines = (folder / "held.jsonl").read_text().splitlines()
    (folder / "held.jsonl").write_text("\n".join(reversed(lines)))
    assert choose_prompts(spec)[:4] == few
    spec.seed = 1
    assert choose_prompts(spec)[:4] != few


def test_what_may_change_and_what_may_not(folder: Path) -> None:
    old = load(folder)
    more = "  - {name: new, model: org/new}\nprompts:"
    assert changes(old, load(folder, GOOD.replace("prompts:", more, 1)), STORED) == []
    assert (
        changes(old, load(folder, GOOD + "bootstrap_samples: 500\nfailures: {max_share: 1}\nstart: ppo\n"), STORED)
        == []
    )
    limited = GOOD.replace("engine: openai", "engine: openai, limits: {concurrent_calls: 2}")
    assert changes(old, load(folder, limited), STORED) == []
    assert changes(old, load(folder, GOOD + "seed: 1\nsampling: {max_new_tokens: 8}\n"), STORED) == ["seed", "sampling"]
    assert changes(old, load(folder, GOOD.replace("org/model", "org/other")), STORED) == ["models `base`"]
    assert changes(old, load(folder, GOOD.replace("method: choice", "method: verdict")), STORED) == ["judges `running`"]
    # A model that never answered, under a path that was wrong, binds nothing.
    unbound = {"models": {"ppo"}, "judges": set[str]()}
    assert changes(old, load(folder, GOOD.replace("org/model", "org/other")), unbound) == []
    assert changes(old, load(folder, GOOD + "seed: 1\n"), {"models": set(), "judges": set()}) == []


def test_rows_of_the_dimension_that_all_prompts_stand_under_are_a_mistake(folder: Path) -> None:
    (folder / "held.jsonl").write_text('{"prompt": "One?"}\n{"prompt": "Two?", "dimension": "all"}\n')
    with pytest.raises(SpecError, match=r"7: prompts\[0\].source: has prompts of dimension `all`"):
        load(folder, GOOD.replace("count: 4", "count: 2"))
