"""The JSON schemas that editors use say what our own readers say."""

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from charter.spec.constitution import ConstitutionError, parse_constitution
from charter.spec.load import SpecFile
from charter.spec.problems import SpecError
from charter.spec.starter import SCHEMAS

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = [*(ROOT / "examples").glob("*.yaml"), *(ROOT / "examples" / "constitutions").glob("[cg]*.yaml")]

SPEC = """\
name: my-run
policy: {model: org/policy}
judge: {model: org/judge, method: contrast}
ppo: {learning_rate: 1.0e-5, steps: 0, algorithm: ALGORITHM_GRPO}
sinks: [tensorboard]
feedback: {by_dimension: {helpful: {human: 1}}}
preference_model: {}
"""
CONSTITUTION = """\
name: short
version: "1"
principles:
  - {id: kind, dimension: helpful, weight: 2, compare: a, critique: b, revise: c, follow: d, oppose: e,
     examples: [{prompt: p, better: x, worse: y}],
     revisions: [{prompt: p, answer: x, critique: y, revision: z}]}
"""


def schema(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    return content


def by_schema(name: str, text: str) -> bool:
    return bool(jsonschema.Draft7Validator(schema(name)).is_valid(yaml.safe_load(text)))


def by_reader(name: str, text: str, tmp_path: Path) -> bool:
    try:
        if name == "run":
            (tmp_path / "spec.yaml").write_text(text)
            SpecFile(tmp_path / "spec.yaml").raise_if_wrong()
        else:
            parse_constitution(text, "c.yaml")
    except (SpecError, ConstitutionError):
        return False
    return True


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("run", "steps: 0", "stepz: 0"),
        ("run", "steps: 0", "steps: -1"),
        ("run", "steps: 0", "steps: 1.5"),
        ("run", "steps: 0", "steps: many"),
        ("run", "steps: 0", "steps: 4294967296"),
        ("run", "1.0e-5", "0"),
        ("run", "contrast", "sorcery"),
        ("run", "preference_model: {}", "preference_model:"),
        ("run", "my-run", "My Run"),
        ("run", "tensorboard", "paper"),
        ("run", "human: 1", "people: 1"),
        ("run", "{model: org/policy}", "{}"),
        ("run", "{model: org/policy}", "{model: x, engine: steam}"),
        ("run", "sinks: [tensorboard]", "sinks: tensorboard"),
        ("constitution", "weight: 2", "wieght: 2"),
        ("constitution", "weight: 2", "weight: 0"),
        ("constitution", "id: kind", "id: Not An Id"),
        ("constitution", "compare: a, ", ""),
        ("constitution", "worse: y", "worst: y"),
        ("constitution", "examples: [{prompt: p, better: x, worse: y}]", "examples: []"),
        ("constitution", "revision: z", "revised: z"),
        ("constitution", "short", "7"),
    ],
)
def test_schema_and_reader_agree(tmp_path: Path, name: str, old: str, new: str) -> None:
    good = SPEC if name == "run" else CONSTITUTION
    assert old in good
    assert by_schema(name, good)
    assert by_reader(name, good, tmp_path)
    assert not by_schema(name, good.replace(old, new, 1))
    assert not by_reader(name, good.replace(old, new, 1), tmp_path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_name_their_schema_and_keep_to_it(path: Path) -> None:
    first, text = path.read_text().split("\n", 1)
    named = path.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert named.resolve().parent == SCHEMAS
    jsonschema.validate(yaml.safe_load(text), json.loads(named.read_text()), jsonschema.Draft7Validator)


@pytest.mark.parametrize("name", ["run", "constitution"])
def test_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft7Validator.check_schema(schema(name))
