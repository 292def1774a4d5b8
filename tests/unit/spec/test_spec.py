"""Run specs: every mistake is named with its field, file and line; defaults are those that the contract states."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.inference.endpoint.engine import OpenAIEngine
from charter.rpc.validation import violations
from charter.spec.defaults import DEFAULTS, MAX_WAIT_SECONDS, OPTIONAL_SECTIONS, fill_defaults
from charter.spec.load import SpecFile, spec_from_json, spec_to_json, spec_to_yaml
from charter.spec.problems import SpecError
from charter.v1 import judge_pb2, run_pb2, validation_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

RUN_PROTO = Path(__file__).resolve().parents[3] / "protos" / "charter" / "v1" / "run.proto"

GOOD = """\
name: my-run
seed: 3
policy:
  model: org/policy
judge:
  model: org/judge
  constitution: rules.yaml
  method: contrast
prompts:
  train: [train.jsonl]
  held_out: [held.jsonl]
ppo:
  learning_rate: 1e-5
  steps: 0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("rules.yaml", "train.jsonl", "held.jsonl"):
        (tmp_path / name).touch()
    return tmp_path


def load(folder: Path, text: str) -> run_pb2.RunSpec:
    file = folder / "spec.yaml"
    file.write_text(text)
    read = SpecFile(file)
    read.raise_if_wrong()
    return read.spec


def problems(folder: Path, text: str) -> list[str]:
    """Problems without the name of the file: ``line: field: text``."""
    with pytest.raises(SpecError) as error:
        load(folder, text)
    return [line.removeprefix(f"{folder / 'spec.yaml'}:") for line in error.value.problems]


def test_a_good_spec_is_read_and_its_files_are_found_from_its_folder(folder: Path) -> None:
    spec = load(folder, GOOD)
    assert spec.name == "my-run"
    assert spec.ppo.learning_rate == 1e-5
    assert spec.ppo.HasField("steps")
    assert spec.ppo.steps == 0
    assert spec.judge.method == judge_pb2.JUDGING_METHOD_CONTRAST
    assert spec.judge.constitution == str(folder / "rules.yaml")
    assert list(spec.prompts.train) == [str(folder / "train.jsonl")]
    assert spec.policy.model == "org/policy"


@pytest.mark.parametrize("value", ["contrast", "CONTRAST", "JUDGING_METHOD_CONTRAST"])
def test_enums_have_short_names(folder: Path, value: str) -> None:
    spec = load(folder, GOOD.replace("contrast", value))
    assert spec.judge.method == judge_pb2.JUDGING_METHOD_CONTRAST


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("steps: 0", "stepz: 0", "14: ppo.stepz: unknown field; did you mean `steps`?"),
        ("ppo:", "pbo:", "12: pbo: unknown field; did you mean `ppo`?"),
        ("steps: 0", "steps: many", "14: ppo.steps: expected a whole number, 0 or more, got `many`"),
        ("steps: 0", "steps: -1", "14: ppo.steps: expected a whole number, 0 or more, got `-1`"),
        ("steps: 0", "steps: 1.5", "14: ppo.steps: expected a whole number, 0 or more, got `1.5`"),
        ("steps: 0", "steps: 4294967296", "14: ppo.steps: must be below 4294967296, got `4294967296`"),
        ("steps: 0", "steps: [1]", "14: ppo.steps: expected a whole number, 0 or more"),
        ("1e-5", "fast", "13: ppo.learning_rate: expected a number, got `fast`"),
        ("1e-5", ".nan", "13: ppo.learning_rate: must be a finite number, got `.nan`"),
        ("1e-5", "-.inf", "13: ppo.learning_rate: must be a finite number, got `-.inf`"),
        ("1e-5", "1e999", "13: ppo.learning_rate: must be a finite number, got `1e999`"),
        ("1e-5", "0", "13: ppo.learning_rate: must be greater than 0, is 0"),
        ("1e-5", '"1e-5"', "13: ppo.learning_rate: expected a number, got `1e-5`"),
        ("name: my-run", "name: 7", "1: name: expected text, got `7`; put it in quotes"),
        (
            "name: my-run",
            "name: My Run",
            "1: name: must be lower-case letters, digits and hyphens inside, at most 62,",
        ),
        ("[train.jsonl]", "train.jsonl", "10: prompts.train: expected a list"),
        ("[train.jsonl]", "[train.jsonl, gone.jsonl]", "10: prompts.train[1]: no such file: "),
        ("rules.yaml", "gone.yaml", "7: judge.constitution: no such file: "),
        ("org/policy", "./gone", "4: policy.model: no such model folder: "),
        ("contrast", "contrats", "8: judge.method: `contrats` is unknown; did you mean `contrast`?"),
        ("contrast", "sorcery", "8: judge.method: `sorcery` is unknown; it can be choice, verdict, contrast, mix"),
        ("  steps: 0", "  learning_rate: 2", "13: ppo.learning_rate: given again on line 14"),
        (
            "policy:\n  model: org/policy",
            "policy: org/policy",
            "3: policy: expected a mapping with fields of PolicySpec",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(folder: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    found = problems(folder, GOOD.replace(old, new))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_all_mistakes_are_told_in_the_order_of_the_file(folder: Path) -> None:
    text = GOOD.replace("seed: 3", "sed: 3").replace("rules.yaml", "gone.yaml").replace("steps: 0", "steps: x")
    assert [line.split(":")[0] for line in problems(folder, text)] == ["2", "7", "14"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "a spec is a mapping"),
        ("- a\n- b\n", "a spec is a mapping"),
        ("name: [unclosed", "not YAML"),
        ("a: \x00", "not YAML"),
    ],
)
def test_what_is_not_a_spec_is_said_so(folder: Path, text: str, expected: str) -> None:
    (line,) = problems(folder, text)
    assert expected in line


def test_a_file_that_cannot_be_read_is_named(folder: Path) -> None:
    with pytest.raises(SpecError, match=r"gone\.yaml: cannot be read"):
        SpecFile(folder / "gone.yaml")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(SpecError, match=r"binary\.yaml: cannot be read"):
        SpecFile(folder / "binary.yaml")


def test_local_model_folders_are_made_absolute(folder: Path) -> None:
    (folder / "model").mkdir()
    spec = load(folder, GOOD.replace("org/policy", "model").replace("org/judge", "./model"))
    assert spec.policy.model == str(folder / "model")
    assert spec.judge.model == str(folder / "model")


def test_the_name_of_an_endpoints_model_is_no_path(folder: Path) -> None:
    (folder / "gpt").mkdir()
    spec = load(folder, GOOD.replace("model: org/judge", "model: gpt\n  engine: openai"))
    assert spec.judge.model == "gpt"


def test_the_limits_of_an_endpoint_are_its_engines_settings(folder: Path) -> None:
    limits = "engine: openai\n  endpoint: http://host/v1\n  limits: {requests_per_minute: 60, token_budget: 9000000000}"
    spec = load(folder, GOOD.replace("model: org/judge", f"model: gpt\n  {limits}"))
    names = [field.name for field in spec.judge.limits.DESCRIPTOR.fields]
    settings = list(inspect.signature(OpenAIEngine).parameters)
    assert set(names) <= set(settings)
    assert spec.judge.limits.token_budget == 9000000000
    assert not spec.judge.limits.HasField("concurrent_calls")


def test_a_spec_survives_yaml_and_json(folder: Path) -> None:
    # More than 2**53, so that a way through a float would be seen.
    spec = fill_defaults(load(folder, GOOD.replace("seed: 3", "seed: 9007199254740993")))
    assert load(folder, spec_to_yaml(spec)) == spec
    assert spec_from_json(spec_to_json(spec)) == spec


def test_defaults_fill_only_what_is_unset(folder: Path) -> None:
    spec = load(folder, GOOD)
    filled = fill_defaults(spec)
    assert spec.sampling.temperature == 0  # the given spec is not changed
    assert filled.ppo.steps == 0
    assert filled.ppo.learning_rate == 1e-5
    assert filled.sampling.temperature == 1
    assert filled.preference_model.model == "org/policy"
    assert filled.services.judge == "127.0.0.1:50052"
    assert not filled.ppo.HasField("kl_target")
    assert fill_defaults(filled) == filled
    assert violations(filled) == []


def test_every_optional_number_has_a_default() -> None:
    spec = run_pb2.RunSpec()
    for name in OPTIONAL_SECTIONS:
        getattr(spec, name).SetInParent()
    filled = fill_defaults(spec)
    unset = [
        f"{section.name}.{field.name}"
        for section in run_pb2.RunSpec.DESCRIPTOR.fields
        if section.message_type is not None
        for field in section.message_type.fields
        if field.has_presence and not getattr(filled, section.name).HasField(field.name)
    ]
    # The engine has the defaults of the limits.
    assert unset == [
        "judge.limits",
        "comparisons.refresh_every_steps",
        "preference_model.lora_rank",
        "ppo.kl_target",
        "ppo.dual_clip",
        "ppo.score_clip",
        "ppo.lora_rank",
        "evaluation.prompts",
        "evaluation.every_steps",
        "evaluation.patience",
        "evaluation.compare",
        "checkpoints.curve_every_steps",
        "pretraining.context_tokens",
        "pretraining.evaluate_every_steps",
        "pretraining.lora_rank",
        "supervised.max_tokens",
        "supervised.evaluate_every_steps",
        "supervised.lora_rank",
        "revision.prompts",
        "revision.gate_prompts",
        "dpo.stored",
        "dpo.max_tokens",
        "dpo.evaluate_every_steps",
        "dpo.lora_rank",
        "kto.stored",
        "kto.max_tokens",
        "kto.evaluate_every_steps",
        "kto.lora_rank",
    ]


def test_defaults_are_those_that_the_contract_states() -> None:
    """Reads ``Default VALUE`` from the comment above each field of run.proto."""
    sections = {
        field.message_type.name: field.name for field in run_pb2.RunSpec.DESCRIPTOR.fields if field.message_type
    }
    stated: dict[str, dict[str, str]] = {}
    message, comment = "", ""
    for line in RUN_PROTO.read_text().splitlines():
        if opened := re.match(r"message (\w+)", line):
            message = opened[1]
        elif line.strip().startswith("//"):
            comment += line
        elif field := re.match(r"\s+.*?(\w+) = \d+", line):
            if message in sections and (default := re.search(r"Default ([\w.-]+?)[.:,]?(\s|$)", comment)):
                stated.setdefault(sections[message], {})[field[1]] = default[1]
            comment = ""
        else:
            comment = ""
    ours = {section: dict(fields) for section, fields in DEFAULTS.items()}
    # Addresses are not stated.
    ours["services"] = {"max_wait_seconds": MAX_WAIT_SECONDS}
    assert {section: set(fields) for section, fields in stated.items()} == {
        section: set(fields) for section, fields in ours.items()
    }
    for section, fields in stated.items():
        for name, text in fields.items():
            value = ours[section][name]
            assert value == (text if isinstance(value, str) else float(text)), f"{section}.{name}"


def test_shares_of_a_dimension_are_read_and_their_mistakes_named(folder: Path) -> None:
    begin = GOOD + "feedback:\n  by_dimension:\n"
    spec = load(folder, begin + "    helpful: {human: 1}\n")
    assert spec.feedback.by_dimension["helpful"].human == 1.0
    assert spec_from_json(spec_to_json(spec)) == spec
    for wrong, words in (
        ("    helpful: {people: 1}\n", "feedback.by_dimension.helpful.people: unknown field"),
        ("    helpful: 1\n", "feedback.by_dimension.helpful: expected a mapping"),
        ("    helpful: {ai: 1}\n    helpful: {ai: 2}\n", "feedback.by_dimension.helpful: given again"),
    ):
        (problem,) = problems(folder, begin + wrong)
        assert words in problem


# Whole numbers without an upper bound: nothing is as large as they are. Limits, intervals, and a seed.
UNBOUNDED = {
    "seed",
    "judge.labelled_pairs_limit",
    "judge.limits.requests_per_minute",
    "judge.limits.tokens_per_minute",
    "judge.limits.token_budget",
    "prompts.max_prompt_tokens",
    "comparisons.refresh_every_steps",
    "preference_model.patience",
    "ppo.critic_warmup_steps",
    "evaluation.every_steps",
    "evaluation.patience",
    "checkpoints.every_steps",
    "checkpoints.curve_every_steps",
    "checkpoints.keep",
    "pretraining.evaluate_every_steps",
    "pretraining.patience",
    "pretraining.checkpoint_every_steps",
    "supervised.evaluate_every_steps",
    "supervised.patience",
    "supervised.checkpoint_every_steps",
    "dpo.evaluate_every_steps",
    "dpo.patience",
    "dpo.checkpoint_every_steps",
    "kto.evaluate_every_steps",
    "kto.patience",
    "kto.checkpoint_every_steps",
    "revision.learning.evaluate_every_steps",
    "revision.learning.patience",
    "revision.learning.checkpoint_every_steps",
}


def whole_numbers(message: Descriptor, path: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    for field in message.fields:
        if field.message_type and not field.message_type.GetOptions().map_entry:
            yield from whole_numbers(field.message_type, f"{path}{field.name}.")
        elif field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
            yield path + field.name, field


def test_whatever_is_counted_out_in_memory_or_calls_has_an_upper_bound(folder: Path) -> None:
    """Four billion of anything is a slip, told at once and not when memory is full."""
    without = {
        name
        for name, field in whole_numbers(run_pb2.RunSpec.DESCRIPTOR)
        if not field.GetOptions().Extensions[validation_pb2.constraint].HasField("maximum")
    }
    assert without == UNBOUNDED
    (problem,) = problems(folder, GOOD + "comparisons: {pairs: 4000000000}\n")
    assert "comparisons.pairs: must be at most 10000000" in problem
