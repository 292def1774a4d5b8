"""Every mistake in a spec and in its files, found at once and without a model."""

import json
from pathlib import Path

import pytest
from charter.spec import checks, facts
from charter.spec.defaults import fill_defaults
from charter.spec.problems import SpecError
from charter.v1 import run_pb2
from charter.worker.reinforcement.algorithms import ALGORITHMS

GOOD = """\
name: my-run
policy:
  model: org/policy
judge:
  model: org/judge
  constitution: rules.yaml
prompts:
  train: [train.jsonl]
  held_out: [held.jsonl]
"""
CONSTITUTION = """\
name: tiny
version: "1"
principles:
  - {id: kind, dimension: helpful, compare: "Which?", critique: Why., revise: Do., follow: Yes., oppose: No.}
  - {id: safe, dimension: harmless, compare: "Which?", critique: Why., revise: Do., follow: Yes., oppose: No.}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 prompts to train on and 20 held out, half of them of a dimension, and a constitution."""
    (tmp_path / "rules.yaml").write_text(CONSTITUTION)
    for name, count in (("train", 40), ("held", 20)):
        write(tmp_path / f"{name}.jsonl", [f"{name} {number}" for number in range(count)])
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    write(tmp_path / "bad.jsonl", ["no answer"])
    (tmp_path / "empty.jsonl").touch()
    return tmp_path


def write(path: Path, prompts: list[str]) -> None:
    records = [{"prompt": prompt, "dimension": "helpful" if place % 2 else ""} for place, prompt in enumerate(prompts)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def found(folder: Path, text: str = GOOD, remote: bool = False) -> list[str]:
    """The mistakes as ``line: field: text``."""
    file = folder / "spec.yaml"
    file.write_text(text)
    checked = checks.check_file(file, remote, to_serve=not remote).file
    return [f"{checked.line(one)}: {one}" for one in checked.problems]


def test_a_good_spec_has_no_mistake(folder: Path) -> None:
    assert found(folder) == []
    assert checks.load_checked(folder / "spec.yaml").name == "my-run"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("  train_weights: [3, 1]", "10: prompts.train_weights: has 2 weights for 1 sources: give one for each"),
        ("  train_weights: [0]", "10: prompts.train_weights[0]: must be"),
        ("ppo: {minibatches: 17}", "10: ppo.minibatches: is 17, too many for ppo.episodes_per_step, 16"),
        ("ppo: {samples_per_prompt: 3}", "10: ppo.episodes_per_step: is 16, not a multiple of ppo.samples_per_prompt"),
        ("ppo: {algorithm: grpo, samples_per_prompt: 1}", "10: ppo.samples_per_prompt: is 1, but grpo compares"),
        ("ppo: {algorithm: online_dpo, samples_per_prompt: 4}", "10: ppo.samples_per_prompt: is 4, but online_dpo"),
        ("ppo: {algorithm: online_dpo, minibatches: 9}", "10: ppo.minibatches: is 9, too many"),
        ("ppo: {algorithm: online_dpo, dual_clip: 3}", "10: ppo.dual_clip: has no meaning for online_dpo"),
        ("ppo: {algorithm: online_dpo, normalise_scores: true}", "10: ppo.normalise_scores: has no meaning"),
        ("ppo: {algorithm: rloo, shared_trunk: true}", "10: ppo.shared_trunk: makes the critic a head"),
        ("ppo: {shared_trunk: true, critic_warmup_steps: 1}", "10: ppo.shared_trunk: makes the critic a part"),
        ("ppo: {kl_target: 6, kl_coefficient: 0}", "10: ppo.kl_target: adapts ppo.kl_coefficient"),
        ("reward: {preference_weight: 0}", "10: reward: has every weight 0"),
        ("reward: {service: 'host:1'}", "10: reward.service: reward.service and reward.service_weight belong"),
        ("reward: {service_weight: 1}", "10: reward.service_weight: reward.service and"),
        ("reward: {service_model: x}", "10: reward.service_model: names a model"),
        ("feedback: {ai: 0}", "10: feedback: must give at least one"),
        ("feedback: {by_dimension: {helpful: {ai: 0}}}", "10: feedback.by_dimension.helpful: must give"),
        ("feedback: {by_dimension: {honest: {ai: 1}}}", "10: feedback.by_dimension.honest: gives ai a share"),
        ("comparisons: {refresh_every_steps: 1}\nfeedback: {human: 1}", "10: comparisons.refresh_every_steps: adds"),
        ("comparisons: {refresh_every_steps: 1}\nppo: {algorithm: online_dpo}", "10: comparisons.refresh_every_steps:"),
        ("preference_model: {separate_members: true}", "10: preference_model.separate_members: needs an ensemble"),
        ("evaluation: {patience: 2}", "10: evaluation.patience: counts"),
        ("evaluation: {prompts: 4000}", "10: evaluation.prompts: is 4000, and prompts.held_out holds 20"),
        ("evaluation: {prompts: 5, every_steps: 1}", "10: evaluation.watched_prompts: is 16"),
        ("evaluation: {every_steps: 1}", "10: evaluation.watched_prompts: is 16"),
        ("comparisons: {pairs: 4000000000}", "10: comparisons.pairs: "),
        ("comparisons: {pairs: 4001}", "10: comparisons.pairs: takes each prompt 100 times"),
        ("comparisons: {refresh_every_steps: 1, refresh_pairs: 9000}", "10: comparisons.refresh_pairs: takes each"),
        ("ppo: {episodes_per_step: 8002}", "10: ppo.episodes_per_step: takes each prompt 200 times"),
        ("services: {policy: ['a:1', 'b:1'], policy_control: ['a:2']}", "10: services.policy_control: names 1"),
        (
            "services: {gpu_sharing: take_turns, judge_replicas: ['a:1']}",
            "10: services.gpu_sharing: is for one GPU",
        ),
        ("services: {weights_nccl: true}\nppo: {lora_rank: 4}", "10: services.weights_nccl: sends whole weights"),
        ("services: {weights_nccl: true, gpu_sharing: take_turns}", "10: services.weights_nccl: is for worker"),
        ("supervised: {epochs: 2}", "10: supervised.data: "),
        ("supervised: {data: [none.jsonl]}", "10: supervised.data[0]: expected a mapping"),
        ("supervised: {data: [{source: none.jsonl}]}", "10: supervised.data[0].source: no such file"),
        ("supervised: {data: [{source: bad.jsonl}]}", "10: supervised.data[0].source: "),
        ("supervised: {data: [{source: chat.jsonl}, {source: chat.jsonl#messages}]}", ""),
        (
            "supervised: {data: [{source: chat.jsonl}, {source: chat.jsonl#messages, weight: 2}]}",
            "10: supervised.data: gives some sources a weight",
        ),
        ("supervised: {data: [{source: chat.jsonl}, {source: chat.jsonl}]}", "10: supervised.data[1].source: is named"),
        ("pretraining: {data: [{source: empty.jsonl}]}", "10: pretraining.data[0].source: holds nothing"),
    ],
)
def test_what_does_not_go_together_is_named(folder: Path, more: str, expected: str) -> None:
    problems = found(folder, GOOD + more)
    assert len(problems) == bool(expected)
    assert not expected or problems[0].startswith(expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("judge:\n  model: org/judge", "judge:", "judge.model: is required"),
        ("[train.jsonl]", "[]", "prompts.train: needs at least one file"),
        ("constitution: rules.yaml", "engine: transformers", "judge.constitution: is required to start a judge"),
        ("constitution:", "endpoint: x\n  constitution:", "judge.endpoint: is for judge.engine openai"),
        ("constitution:", "engine: openai\n  constitution:", "judge.endpoint: is required by judge.engine openai"),
        ("constitution:", "limits: {token_budget: 1}\n  constitution:", "judge.limits: are for judge.engine openai"),
        (
            "constitution:",
            "engine: openai\n  endpoint: x\n  method: contrast\n  constitution:",
            "judge.method: contrast reads log-likelihoods",
        ),
        ("constitution:", "ensemble_size: 2\n  constitution:", "judge.ensemble_size: is 2, and the constitution has 1"),
        ("constitution:", "ensemble_size: 9\n  constitution:", "judge.ensemble_size: is 9, and the constitution has 2"),
    ],
)
def test_what_a_judge_needs_is_named(folder: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    (problem,) = found(folder, GOOD.replace(old, new))
    assert problem.partition(": ")[2].startswith(expected)


def test_all_mistakes_are_told_together(folder: Path) -> None:
    (folder / "rules.yaml").write_text(CONSTITUTION.replace("name: tiny\n", "").replace("id: safe", "id: kind"))
    (folder / "train.jsonl").write_text('{"prompt": "fine"}\nno json\n{"promt": "misspelled"}\n')
    (folder / "held.jsonl").write_text("\n")
    text = GOOD + "ppo: {minibatches: 99, stepz: 3}\nreward: {preference_weight: 0}\ncomparisons: {pairs: many}\n"
    problems = found(folder, text)
    fields = [problem.split(": ")[1] for problem in problems]
    assert fields == [
        "judge.constitution",
        "judge.constitution",
        "prompts.train[0]",
        "prompts.train[0]",
        "prompts.held_out[0]",
        "ppo.stepz",
        "ppo.minibatches",
        "reward",
        "comparisons.pairs",
    ]
    assert "line 2" in problems[2]
    assert "line 3" in problems[3]


def test_many_bad_lines_of_a_file_do_not_hide_the_rest(folder: Path) -> None:
    (folder / "train.jsonl").write_text("no json\n" * 5000)
    problems = found(folder, GOOD + "ppo: {minibatches: 99}")
    assert len(problems) < 20
    assert "4996 more" in "\n".join(problems)
    assert problems[-1].startswith("10: ppo.minibatches")


def test_labelled_pairs_are_looked_at(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text('{"prompt": "p", "answer_a": "x", "answer_b": "y", "label": "c"}\nno json\n')
    problems = found(folder, GOOD.replace("  constitution", "  labelled_pairs: pairs.jsonl\n  constitution"))
    assert [problem.partition(", line")[2][:2] for problem in problems] == [" 1", " 2"]
    assert all(problem.startswith("6: judge.labelled_pairs: ") for problem in problems)


def test_one_prompt_alone_teaches_no_preference_model(folder: Path) -> None:
    write(folder / "train.jsonl", ["one", " one "])
    assert [problem.split(": ")[1] for problem in found(folder)] == ["prompts.train"]
    assert found(folder, GOOD + "feedback: {ai: 1, human: 1}\ncomparisons: {pairs: 64}") == []


def test_a_prompt_of_both_files_is_named(folder: Path) -> None:
    write(folder / "held.jsonl", [*(f"held {number}" for number in range(18)), "train 3", " train  5 "])
    (problem,) = found(folder)
    assert problem.startswith("9: prompts.held_out: 2 of its prompts are also in prompts.train, for example 'tra…'")


def test_what_could_not_be_read_causes_no_further_mistake(folder: Path) -> None:
    """`16 episodes` are the default of a field that the file misspells: 24 minibatches may be right."""
    (problem,) = found(folder, GOOD + "ppo: {episodes_per_stp: 64, minibatches: 24}")
    assert "did you mean `episodes_per_step`?" in problem
    (problem,) = found(folder, GOOD + "rewrd: {judge_weight: 1}\n" + "reward: {preference_weight: 0}\n")
    assert "rewrd: unknown field; did you mean `reward`?" in problem


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 300}, "is 320, and the context of policy.model holds 300 tokens"),
        ({"n_positions": 300}, "holds 300 tokens"),
        ({"text_config": {"max_position_embeddings": 300}}, "holds 300 tokens"),
        ({"max_position_embeddings": 320}, ""),
        ({}, ""),
    ],
)
def test_prompt_and_answer_must_fit_a_model_that_is_at_hand(
    folder: Path, config: dict[str, object], expected: str
) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(config))
    other = GOOD.replace("org/policy", "./model") + "preference_model: {model: org/other}\n"
    problems = found(folder, other)
    assert len(problems) == (1 if expected else 0)
    assert expected in "".join(problems)


def test_the_preference_model_needs_room_for_eos(folder: Path) -> None:
    """Behind an answer that the limit cut off; the policy does not read it."""
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps({"max_position_embeddings": 320}))
    (problem,) = found(folder, GOOD + "preference_model: {model: ./model}\n")
    assert "+ 1 for EOS is 321, and the context of preference_model.model holds 320" in problem


def test_a_folder_that_is_no_model_is_named(folder: Path) -> None:
    (folder / "model").mkdir()
    problems = found(folder, GOOD.replace("org/policy", "./model") + "preference_model: {model: org/other}\n")
    assert problems == [f"3: policy.model: the folder {folder / 'model'} holds no config.json: it is no model"]


def test_a_model_in_the_hubs_cache_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    cached = folder / "models--org--policy"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text('{"max_position_embeddings": 128}')
    problems = found(folder)
    assert len(problems) == 2  # the preference model's base is the policy's
    assert all("holds 128 tokens (org/policy)" in problem for problem in problems)


@pytest.mark.parametrize("name", ["x" * 500, "a\\0b", "~nobody-has-this-name/x", ".", "loop"])
def test_a_name_that_is_no_file_is_a_mistake_and_no_crash(folder: Path, name: str) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    for field, old in (("judge.constitution", "rules.yaml"), ("prompts.train[0]", "train.jsonl")):
        problems = found(folder, GOOD.replace(old, f'"{name}"'))
        assert [problem.split(": ")[1] for problem in problems] == [field]
    if name not in (".", "loop"):
        (problem,) = found(folder, GOOD.replace("org/policy", f'"./{name}"'))
        assert ": policy.model: no such model folder" in problem


@pytest.mark.parametrize("name", ["x" * 500, "\0", "~nobody-has-this-name", ".", ""])
def test_a_stored_spec_with_such_a_name_is_a_mistake_too(folder: Path, name: str) -> None:
    """The trainer and the worker see what a client sent, which no file was resolved for."""
    spec = run_pb2.RunSpec(name="x", policy=run_pb2.PolicySpec(model="m"), judge=run_pb2.JudgeSpec(model="j"))
    spec.prompts.train.append(name)
    spec.prompts.held_out.append(str(folder / "held.jsonl"))
    (problem,) = checks.problems(fill_defaults(spec))
    assert problem.field == "prompts.train[0]"
    assert checks.problems(fill_defaults(spec), absent_files=True) == []


def test_files_of_another_machine_are_left_to_it(folder: Path) -> None:
    elsewhere = GOOD.replace("train.jsonl", "/there/train.jsonl").replace("rules.yaml", "/there/rules.yaml")
    assert found(folder, elsewhere, remote=True) == []
    assert len(found(folder, elsewhere)) == 2


def test_a_file_that_is_no_spec_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="not YAML"):
        checks.load_checked(_written(tmp_path, "a: ["))
    with pytest.raises(SpecError, match="Is a directory"):
        checks.load_checked(tmp_path)
    with pytest.raises(SpecError, match="File name too long"):
        checks.load_checked(tmp_path / ("x" * 500))
    with pytest.raises(SpecError, match="not YAML"):
        checks.load_checked(_written(tmp_path, "[" * 5000))


def _written(folder: Path, text: str) -> Path:
    (folder / "spec.yaml").write_text(text)
    return folder / "spec.yaml"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_facts_of_the_algorithms_are_those_of_their_classes(algorithm: run_pb2.Algorithm.ValueType) -> None:
    ppo = run_pb2.PpoSpec(algorithm=algorithm)
    assert facts.needs_critic(ppo) == ALGORITHMS[algorithm].needs_critic
    assert facts.episodes_together(ppo) == ALGORITHMS[algorithm].episodes_together
