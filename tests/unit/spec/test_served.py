"""A run is served by what its spec asks for, or refused."""

from hashlib import sha256
from pathlib import Path

import pytest
from charter.spec.defaults import fill_defaults, with_engines
from charter.spec.load import spec_to_json
from charter.spec.served import judge_problems, policy_problems, preference_problems
from charter.v1 import judge_pb2, run_pb2, types_pb2


def spec_of(engine: str = "", calibration: str = "") -> run_pb2.RunSpec:
    return run_pb2.RunSpec(
        policy=run_pb2.PolicySpec(model="org/policy", engine="" if engine in ("openai", "external") else engine),
        judge=run_pb2.JudgeSpec(model="org/judge", engine=engine, calibration=calibration),
    )


def served(model: str, engine: str, digest: str = "") -> judge_pb2.JudgeServiceGetModelInfoResponse:
    info = judge_pb2.JudgeServiceGetModelInfoResponse(model=types_pb2.ModelInfo(model=model, engine=engine))
    if digest:
        info.calibration.digest = digest
    return info


@pytest.mark.parametrize("asked", ["transformers", "vllm", "fake", "openai"])
@pytest.mark.parametrize("runs", ["transformers", "vllm", "fake", "openai", ""])
def test_another_engine_than_the_one_asked_for_is_refused(asked: str, runs: str) -> None:
    found = list(judge_problems(spec_of(asked), "host:1", served("org/judge", runs)))
    assert bool(found) == (asked != runs)
    if found:
        assert f"the judge service at host:1 runs on engine {runs or '(it names none)'}" in found[0]
        assert f"the spec says {asked} (judge.engine): start the services with this spec (`charter up`)" in found[0]


@pytest.mark.parametrize("asked", ["", "external"])
def test_a_spec_that_leaves_the_engine_open_takes_what_is_up(asked: str) -> None:
    for spec in (spec_of(asked), fill_defaults(spec_of(asked))):
        assert list(judge_problems(spec, "host:1", served("org/judge", "vllm"))) == []
    assert with_engines(spec_of(asked)).judge.engine == (asked or "transformers")


def test_models_and_engines_of_every_service_are_named_together() -> None:
    spec = fill_defaults(spec_of("vllm"))
    other = types_pb2.ModelInfo(model="org/other", engine="fake")
    assert len(list(policy_problems(spec, "host:1", other))) == 2
    assert len(list(judge_problems(spec, "host:1", served("org/other", "fake")))) == 2
    (problem,) = preference_problems(spec, "host:1", other)
    assert "serves org/other, the spec says org/policy (preference_model.model)" in problem
    spec.policy.engine = "auto"
    assert list(policy_problems(spec, "host:1", types_pb2.ModelInfo(model="org/policy", engine="fake"))) == []


def test_the_policy_of_a_run_goes_on_on_the_service_that_the_run_had(tmp_path: Path) -> None:
    model = "org/policy"
    for run in ("first", "second"):
        (tmp_path / run).mkdir()
        made = run_pb2.RunSpec(policy=run_pb2.PolicySpec(model=model))
        (tmp_path / run / "spec.json").write_text(spec_to_json(made))
        model = str(tmp_path / run / "policy")
    spec = fill_defaults(run_pb2.RunSpec(policy=run_pb2.PolicySpec(model=model), judge=run_pb2.JudgeSpec(model=model)))
    assert list(policy_problems(spec, "host:1", types_pb2.ModelInfo(model="org/policy"))) == []
    assert len(list(policy_problems(spec, "host:1", types_pb2.ModelInfo(model="org/other")))) == 1
    # A judge is sent no weights.
    assert len(list(judge_problems(spec, "host:1", served("org/policy", "transformers")))) == 1


def test_the_calibration_that_a_spec_names_must_be_the_one_applied(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text("{}")
    spec, digest = spec_of(calibration=str(file)), sha256(b"{}").hexdigest()
    assert list(judge_problems(spec, "host:1", served("org/judge", "vllm", digest))) == []
    (none,) = judge_problems(spec, "host:1", served("org/judge", "vllm"))
    assert "applies no calibration, and not the spec's judge.calibration" in none
    (another,) = judge_problems(spec, "host:1", served("org/judge", "vllm", "f" * 64))
    assert "applies another calibration than" in another


def test_a_template_file_of_another_machine_is_compared_there(tmp_path: Path) -> None:
    spec, file = spec_of(), tmp_path / "mine.jinja"
    spec.policy.chat_template, spec.policy.eos_token = str(file), "</s>"
    info = types_pb2.ModelInfo(model="org/policy", chat_form="of-another-form")
    assert list(policy_problems(spec, "host:1", info)) == []
    file.write_text("{{ messages }}")
    assert "serves another chat template" in next(policy_problems(spec, "host:1", info))
