"""`charter init`: files that pass every check as they are, and are never written over others."""

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml
from charter.cli.main import app
from charter.spec import checks
from charter.spec.defaults import fill_defaults, with_engines
from charter.spec.starter import FILES, SCHEMAS
from typer.testing import CliRunner


@pytest.mark.parametrize("model", ["org/Some_Model.7B", "gpt2", "folder", "Über: a folder"])
def test_what_is_written_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    if "/" not in model and model != "gpt2":
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text(json.dumps({"max_position_embeddings": 96}))
    made = CliRunner().invoke(app, ["init", "--model", model, "new/run", "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["files"] == [f"new/run/{name}" for name in FILES]
    spec = tmp_path / "new" / "run" / "run.yaml"
    checked = CliRunner().invoke(app, ["check", str(spec), "--json"])
    assert checked.exit_code == 0, checked.output
    said = json.loads(checked.stdout)
    assert (said["valid"], said["problems"], said["remarks"]) == (True, [], [])
    loaded = checks.load_checked(spec)
    assert loaded.policy.model == (str(tmp_path / model) if (tmp_path / model).is_dir() else model)
    constitution = spec.with_name("constitution.yaml")
    assert CliRunner().invoke(app, ["constitution", "check", str(constitution)]).exit_code == 0
    for path, schema in ((spec, "run"), (constitution, "constitution")):
        text = path.read_text()
        assert text.startswith(f"# yaml-language-server: $schema={SCHEMAS / schema}.schema.json\n")
        jsonschema.validate(yaml.safe_load(text), json.loads((SCHEMAS / f"{schema}.schema.json").read_text()))


def test_fields_behind_a_comment_have_the_default_that_stands_there(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["init", "--model", "org/m", str(tmp_path)]).exit_code == 0
    spec = tmp_path / "run.yaml"
    before = with_engines(fill_defaults(checks.load_checked(spec)))
    text = spec.read_text()
    for line in ("engine: auto", "temperature: 1.0", "epochs: 1", "kl_coefficient: 0.05"):
        assert f"  # {line}\n" in text
        text = text.replace(f"  # {line}\n", f"  {line}\n", 1)
    spec.write_text(text)
    assert with_engines(fill_defaults(checks.load_checked(spec))) == before


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    there = tmp_path / name
    there.parent.mkdir(exist_ok=True)
    there.write_text("mine")
    result = CliRunner().invoke(app, ["init", "--model", "org/m", str(tmp_path)])
    assert result.exit_code == 1
    assert name in result.stderr.replace("\n", "")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [there]
    assert there.read_text() == "mine"


@pytest.mark.parametrize("model", ["./gone", "/gone", "", "empty"])
def test_a_model_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(app, ["init", "--model", model, "new"])
    assert result.exit_code == 1
    assert "no such model folder" in result.stderr or "holds no config.json" in result.stderr
    assert not (tmp_path / "new").exists()
