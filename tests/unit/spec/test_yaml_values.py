"""Numbers of YAML files: the same value wherever they stand."""

import math
from pathlib import Path

import pytest
import yaml
from charter.spec.constitution import ConstitutionError, parse_constitution
from charter.spec.load import SpecFile
from charter.spec.problems import SpecError
from charter.spec.yaml_values import Loader

PRINCIPLE = """\
name: short
version: "1"
principles:
  - {id: kind, dimension: helpful, compare: a, critique: b, revise: c, follow: d, oppose: e, weight: WEIGHT}
"""
SPEC = """\
name: short
policy: {model: org/policy}
judge: {model: org/judge}
prompts: {train: [prompts.jsonl], held_out: [others.jsonl]}
ppo: {kl_coefficient: WEIGHT}
"""
NUMBERS = {"1e3": 1000.0, "1e-5": 1e-5, "2.5E+1": 25.0, ".5": 0.5, "3": 3.0, "010": 10.0, "+4.": 4.0, "1.5e2": 150.0}
NO_NUMBERS = ["1:30", "0x10", "1_000", '"3"', "true", "e3", ".inf", ".nan", "1e"]


def in_spec(folder: Path, text: str) -> float:
    for name in ("prompts.jsonl", "others.jsonl"):
        (folder / name).write_text('{"prompt": "' + name + '"}\n')
    (folder / "spec.yaml").write_text(SPEC.replace("WEIGHT", text))
    read = SpecFile(folder / "spec.yaml")
    read.raise_if_wrong()
    return read.spec.ppo.kl_coefficient


@pytest.mark.parametrize("text", list(NUMBERS))
def test_a_number_is_the_same_in_specs_constitutions_and_settings(tmp_path: Path, text: str) -> None:
    expected = NUMBERS[text]
    assert in_spec(tmp_path, text) == expected
    assert parse_constitution(PRINCIPLE.replace("WEIGHT", text), "c.yaml").principles[0].weight == expected
    setting = yaml.load(text, Loader=Loader)
    assert setting == expected
    assert isinstance(setting, int) == text.isdecimal()


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_number_is_none_in_either(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConstitutionError, match=r"weight: must be a number above 0"):
        parse_constitution(PRINCIPLE.replace("WEIGHT", text), "c.yaml")
    with pytest.raises(SpecError, match=r"ppo.kl_coefficient: (expected a number|must be a finite number)"):
        in_spec(tmp_path, text)
    setting = yaml.load(text, Loader=Loader)
    assert not isinstance(setting, int | float) or isinstance(setting, bool) or not math.isfinite(setting)
