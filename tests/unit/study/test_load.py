"""A study's file: what its arms are told, and every mistake with its place."""

from pathlib import Path

import pytest
from charter.spec.facts import needs_preference_model, needs_reinforcement
from charter.spec.problems import SpecError
from charter.study.load import load_study
from charter.study.spec import labellers, spec_from_json, spec_to_json

from tests.support.study_file import ARMS, RUN, checked_study, study_file


def mistakes(folder: Path, arms: str = ARMS, more: str = "", run: str = RUN) -> str:
    with pytest.raises(SpecError) as error:
        load_study(study_file(folder, arms, more, run), folder / "home")
    return str(error.value)


def test_arms_share_the_run_spec_and_differ_as_they_say(tmp_path: Path) -> None:
    arms = f"{ARMS}  - {{name: hot, labels: judge, run: {{ppo: {{learning_rate: 1e-4, steps: null}}}}}}\n"
    study = checked_study(tmp_path, arms)
    rlhf, hot, sft = (study.arms[name] for name in ("rlhf", "hot", "sft"))
    # A field of a mapping is replaced, others stay, and null takes one out: the default comes back.
    assert (hot.ppo.learning_rate, hot.ppo.steps, hot.ppo.episodes_per_step) == (1e-4, 8, 4)
    assert rlhf.ppo.steps == 4
    assert [one.run_id for one in rlhf.comparisons.stored] == ["study-small-imported"]
    assert needs_preference_model(rlhf)
    # Without RL nothing of it is left, and its data is found from the study's file.
    assert not needs_reinforcement(sft)
    assert sft.supervised.data[0].source == str(tmp_path / "chat.jsonl")
    assert rlhf.prompts.train == [str(tmp_path / "below" / "train.jsonl")]
    # Where services are is not known yet.
    assert not rlhf.services.policy
    assert labellers(study.spec) == ["imported", "judge"]
    assert spec_from_json(spec_to_json(study.spec)) == study.spec


def test_defaults_are_said(tmp_path: Path) -> None:
    file = study_file(tmp_path)
    file.write_text(file.read_text().replace("seeds: [1, 2]\n", ""))
    spec = load_study(file, tmp_path / "home").spec
    assert list(spec.seeds) == [1, 2, 3]
    assert list(spec.evaluation.axes) == ["helpful", "harmless"]
    assert spec.evaluation.sampling.max_new_tokens == 64


def test_a_list_is_replaced_whole_and_false_is_a_value(tmp_path: Path) -> None:
    run = f"{RUN}preference_model: {{length_debiased: true}}\nsinks: [tensorboard, wandb]\n"
    arms = "  - {name: a, labels: judge, run: {preference_model: {length_debiased: false}, sinks: [mlflow]}}\n"
    arm = checked_study(tmp_path, arms, run=run).arms["a"]
    assert not arm.preference_model.length_debiased
    assert len(arm.sinks) == 1


def test_dpo_learns_from_the_labels_of_its_arm(tmp_path: Path) -> None:
    arms = "  - {name: dpo, labels: judge, run: {dpo: {}, ppo: null}}\n"
    spec = checked_study(tmp_path, arms).arms["dpo"]
    assert spec.dpo.stored.run_id == "study-small-judge"
    assert not needs_reinforcement(spec)


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ("{name: a, labels: nobody}", "study.yaml:8: arms[0].labels: nobody is named `nobody`"),
        ("{name: start, labels: judge}", "arms[0].name: `start` is the name of what all arms start from"),
        ("{name: a, after: b, labels: judge}", "arms[0].after: there is no arm `b`"),
        ("{name: a, after: a, labels: judge}", "arms[0].after: goes in a circle: a after a"),
        ("{name: a, labels: judge, labels_by_dimension: {helpful: judge}}", "leave one out"),
        ("{name: a, labels: judge, run: {ppo: null}}", "arms[0].run.ppo (arm a): takes RL out of this arm"),
        ("{name: a, labels: judge, run: {seed: 3}}", "arms[0].run.seed (arm a): is one of seeds"),
        ("{name: a, labels: judge, run: {policy: {model: org/x}}}", "arms[0].run.policy.model (arm a): is that of the"),
        ("{name: a, labels: judge, run: {ppo: {steps: x}}}", "arms[0].run.ppo.steps (arm a): expected a whole number"),
        ("{name: a, labels: judge, run: {ppos: null}}", "arms[0].run.ppos (arm a): unknown field; did you mean `ppo`?"),
        (
            "{name: a, labels: judge, run: {ppo: {minibatches: 9}}}",
            "arms[0].run.ppo.minibatches (arm a): is 9, too many",
        ),
        (
            "{name: a, labels: judge, run: {reward: {preference_weight: 0, judge_weight: 1}}}",
            "this arm learns from none",
        ),
        ("{name: a, labels: judge, run: 3}", "arms[0].run: expected a mapping of fields"),
    ],
)
def test_a_mistake_of_an_arm_is_said_with_its_place(tmp_path: Path, arm: str, said: str) -> None:
    assert said in mistakes(tmp_path, f"  - {arm}\n")


def test_a_mistake_of_the_run_spec_is_said_once_there(tmp_path: Path) -> None:
    said = mistakes(tmp_path, run=RUN.replace("minibatches: 1", "minibatches: 9"))
    assert said.count("minibatches") == 1
    assert "below/run.yaml:5: ppo.minibatches: is 9, too many" in said
    # The arm without RL has none.
    assert "(of arms rlhf, rlaif and sft-rlaif)" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("  every_steps: 4\n", "evaluation.every_steps: is 4, and the longest arm has 4 steps"),
        (
            "  axes: [helpful, honest]\n",
            "evaluation.axes[1]: no prompt of evaluation.prompts is of the dimension `honest`",
        ),
        ("  axes: [helpful]\n", "evaluation.axes: are two different dimensions"),
        ("hours: 0\n", "hours: must be greater than 0"),
        (
            "slots: [{policy: ['h:1'], preference: 'h:2'}, {policy: ['h:1'], preference: 'h:2'}]\n",
            "slots[1].policy: h:1",
        ),
    ],
)
def test_a_mistake_of_the_measurement_is_said(tmp_path: Path, more: str, said: str) -> None:
    assert said in mistakes(tmp_path, more=more)


def test_no_prompt_is_both_trained_on_and_measured(tmp_path: Path) -> None:
    file = study_file(tmp_path)
    file.write_text(file.read_text().replace("source: eval.jsonl", "source: below/train.jsonl, count: 99"))
    with pytest.raises(SpecError) as error:
        load_study(file, tmp_path / "home")
    assert "12 of its prompts are in prompts.train of arms rlaif, rlhf and sft-rlaif" in str(error.value)
    assert "evaluation.prompts[0].count: is 99" in str(error.value)


def test_a_judge_that_taught_an_arm_is_no_mistake_and_said(tmp_path: Path) -> None:
    file = study_file(tmp_path)
    assert "third judges by the principles that trained rlaif and sft-rlaif" in str(load_study(file, tmp_path).remarks)
    file.write_text(file.read_text().replace("org/third", "org/judge"))
    (remark,) = load_study(file, tmp_path / "home").remarks
    assert "third is the judge that trained rlaif and sft-rlaif, by the same principles" in remark.text


@pytest.mark.parametrize(("feedback", "remarks"), [("{human: 1}", 0), ("{ai: 1, human: 1}", 1)])
def test_a_judge_that_labels_nothing_of_an_arm_taught_it_nothing(tmp_path: Path, feedback: str, remarks: int) -> None:
    file = study_file(tmp_path, f"  - {{name: own, run: {{feedback: {feedback}}}}}\n")
    text = file.read_text().replace("org/third", "org/judge")
    file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("pairs:")) + "\n")
    assert len(load_study(file, tmp_path / "home").remarks) == remarks


def test_a_base_model_has_no_arm_that_fits_after_another(tmp_path: Path) -> None:
    run = RUN.replace("{model: org/start}", "{model: org/start, chat_template: chatml}")
    assert "arms[3].after: starts from a policy that has policy.chat_template in it" in mistakes(tmp_path, run=run)


def test_a_run_whose_name_would_be_too_long_is_said(tmp_path: Path) -> None:
    file = study_file(tmp_path, f"  - {{name: {'a' * 20}, labels: judge}}\n")
    file.write_text(file.read_text().replace("name: small", f"name: {'s' * 32}").replace("[1, 2]", "[1, 123456789]"))
    with pytest.raises(SpecError, match="which has 63 characters: at most 62 can be"):
        load_study(file, tmp_path / "home")
