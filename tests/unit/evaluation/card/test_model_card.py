"""The model card: front matter that Hugging Face reads, the run's figures, and nothing of the machine."""

import json
from pathlib import Path

import pytest
import yaml
from charter.evaluation.card.join import twin_of
from charter.evaluation.card.markdown import markdown
from charter.runs.folder import RunFolderError, read_run_folder
from huggingface_hub import ModelCard

from tests.support.report_fixture import without, write_run_folder


def model_card(folder: Path) -> str:
    return markdown(twin_of(read_run_folder(folder)))


def test_front_matter_and_figures(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    text = model_card(folder)
    card = ModelCard(text)
    front = {name: value for name, value in vars(card.data).items() if value is not None}
    assert front["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["library_name"] == "transformers"
    assert "license" not in front
    evaluation = json.loads((folder / "evaluation.json").read_text())
    judge = json.loads((folder / "judge_check.json").read_text())["calibration"]
    for figure in (
        evaluation["win_rate"],
        evaluation["win_rate_low"],
        evaluation["win_rate_high"],
        judge["accuracy"],
        judge["accuracy_low"],
    ):
        assert f"{100 * figure:.1f}%" in card.text
    for principle in yaml.safe_load((folder / "constitution.yaml").read_text())["principles"]:
        assert f"**{principle['id']}**" in card.text
    assert json.loads((folder / "run.json").read_text())["constitution_digest"] in card.text


def test_a_local_base_model_gives_its_name_and_license_but_not_its_path(tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run")
    base = tmp_path / "private place" / "small-model"
    base.mkdir(parents=True)
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Small\n")
    spec = json.loads((folder / "spec.json").read_text())
    spec["policy"]["model"] = spec["judge"]["model"] = str(base)
    spec["preference_model"] = {"model": str(base)}
    spec["policy"] |= {"chat_template": str(tmp_path / "private place" / "turns.jinja"), "eos_token": "<|end|>"}
    spec["prompts"]["train"] = [str(tmp_path / "private place" / "train.jsonl")]
    (folder / "spec.json").write_text(json.dumps(spec))
    text = model_card(folder)
    card = ModelCard(text)
    front = {name: value for name, value in vars(card.data).items() if value is not None}
    assert front["license"] == "apache-2.0"
    assert "base_model" not in front
    assert "small-model, aligned to" in card.text
    assert "private place" not in text
    assert "chat_template: turns.jinja\n  eos_token: <|end|>" in text
    for broken in ("---\nlicense: [mit\n---\n", "---\n- mit\n---\n"):
        (base / "README.md").write_text(broken)
        assert vars(ModelCard(model_card(folder)).data)["license"] is None


def test_a_weak_judge_and_what_is_missing_are_said(tmp_path: Path) -> None:
    weak = model_card(write_run_folder(tmp_path / "weak", weak_judge=True))
    assert "A weak judge preferred" in weak
    assert "cannot be told from a coin" in weak
    partial = model_card(without(write_run_folder(tmp_path / "run"), "judge_check.json", "evaluation.json", "run.json"))
    assert "No verdict" in partial
    assert "not measured on labelled pairs" in partial


def test_without_a_spec_there_is_no_card(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"spec\.json"):
        model_card(without(write_run_folder(tmp_path / "run"), "spec.json"))
