"""The machinery proves itself: labels known to be right move the figure where they say, labels of chance do not.

Both labellers speak the real contract of a scorer; labels are stored, a preference model is fitted to them, RL learns
from it, and a judge that is right measures, each through its service.
"""

import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from typer.testing import CliRunner

from tests.support.known_truth import noise, right_judge, right_scores
from tests.support.reward_service import reward_service
from tests.support.study_home import study_home, write_prompts

LETTERS = string.ascii_letters
PAIRS, PROMPTS = 192, 64


@pytest.fixture
def home(tmp_path: Path, tiny_model: Path) -> Iterator[Path]:
    """State folder of a study's services."""
    with study_home(tmp_path, tiny_model):
        yield tmp_path


def study_file(home: Path, model: Path, right: str, chance: str, judge: str) -> Path:
    write_prompts(home, train=PAIRS, held=4, eval=PROMPTS)
    run = {
        "name": "base",
        "policy": {"model": str(model)},
        "judge": {"model": "fake-judge", "engine": "fake", "constitution": "c.yaml", "method": "choice"},
        "prompts": {"train": ["train.jsonl"], "held_out": ["held.jsonl"]},
        "sampling": {"max_new_tokens": 6},
        "preference_model": {"learning_rate": 1e-2, "epochs": 4},
        "ppo": {
            "algorithm": "grpo",
            "steps": 6,
            "episodes_per_step": 64,
            "learning_rate": 1e-2,
            "kl_coefficient": 0.01,
            "missing_eos_penalty": 0,
        },
        "evaluation": {"prompts": 2, "bootstrap_samples": 100},
    }
    study = {
        "name": "controls",
        "run": "run.yaml",
        "seeds": [1, 2, 3],
        "pairs": {"sampled": PAIRS},
        "scorers": [{"name": "right", "address": right}, {"name": "chance", "address": chance}],
        "arms": [{"name": "right", "labels": "right"}, {"name": "noise", "labels": "chance"}],
        "evaluation": {
            "prompts": [{"source": "eval.jsonl"}],
            "judges": [{"name": "truth", "address": judge}],
            "bootstrap_samples": 1000,
        },
    }
    # JSON is YAML.
    (home / "run.yaml").write_text(json.dumps(run))
    (home / "study.yaml").write_text(json.dumps(study))
    return home / "study.yaml"


# Six runs and seven served models, each a process of its own.
@pytest.mark.timeout(1800)
def test_right_labels_move_the_front_and_labels_of_chance_do_not(home: Path, tiny_model: Path) -> None:
    with (
        reward_service(right_scores(LETTERS)) as right,
        reward_service(noise) as chance,
        right_judge(LETTERS) as judge,
    ):
        spec = study_file(home, tiny_model, right, chance, judge)
        result = CliRunner().invoke(app, ["compare", str(spec), "--yes"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((home / "studies" / "controls" / "result.json").read_text())
    front = found["judges"][0]["as_judged"]
    ends = {spot["arm"]: spot for spot in front["spots"]}
    for axis in ("across", "up"):
        moved, still = ends["right"][axis], ends["noise"][axis]
        assert moved["low"] > max(0, still["value"]), (axis, moved, still)
        assert still["low"] < 0 < still["high"], (axis, still)
    assert front["front"] == ["right"]
    assert front["dominates"]["right"]["noise"] > 0.95
