"""`charter publish`: into a folder that transformers loads, and to a hub that speaks the protocol of the real one."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from charter.cli.main import app
from charter.evaluation.card.twin import Twin
from charter.evaluation.compare.results import compute, write_results
from typer.testing import CliRunner, Result

from tests.support.evaluation_folder import write_evaluation
from tests.support.model_hub import TOKEN, ModelHub, Repository, running_model_hub
from tests.support.report_fixture import without, write_run_folder


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    folder = write_run_folder(tmp_path / "home" / "runs" / "one")
    shutil.copytree(tiny_model, folder / "policy")
    (folder / "policy" / "README.md").write_text("an older card")
    (folder / "policy" / ".notes").write_text("mine")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    with running_model_hub(monkeypatch) as hub:
        yield hub


def publish(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["publish", *arguments])


def card(folder: Path) -> Twin:
    return Twin.from_json((folder / "charter.json").read_text())


def refused(*arguments: str) -> str:
    found = publish(*arguments)
    assert found.exit_code == 1, found.output
    return " ".join(found.stderr.split())


def test_a_folder_holds_a_model_that_the_cards_own_code_loads(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "published"
    found = publish("one", "--folder", str(target))
    assert found.exit_code == 0, found.output
    assert str(target) in found.stdout.replace("\n", "")
    text = (target / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert code is not None
    monkeypatch.chdir(target)
    namespace: dict[str, object] = {}
    # Of the tiny model nothing sensible comes, but something.
    exec(code.group(1).replace("max_new_tokens=64", "max_new_tokens=4"), namespace)
    assert type(namespace["model"]).__name__ == "LlamaForCausalLM"
    assert (target / "model.safetensors").read_bytes() == (run / "policy" / "model.safetensors").read_bytes()
    twin = Twin.from_json((target / "charter.json").read_text())
    assert [(file.name, file.bytes) for file in twin.weights] == [
        ("model.safetensors", (target / "model.safetensors").stat().st_size)
    ]
    names = {path.name for path in target.iterdir()}
    assert {"README.md", "charter.json", "spec.yaml", "constitution.yaml", "config.json"} <= names
    assert ".notes" not in names


def test_a_dry_run_names_each_file_with_its_size_and_sends_nothing(run: Path, hub: ModelHub) -> None:
    found = publish("one", "org/kind", "--dry-run")
    assert found.exit_code == 0, found.output
    size = (run / "policy" / "model.safetensors").stat().st_size
    assert re.search(rf"model\.safetensors\s+{size:,} bytes", found.stdout)
    assert "org/kind, private" in found.stdout
    as_json = json.loads(publish("one", "org/kind", "--dry-run", "--public", "--json").stdout)
    assert as_json["would_publish"] == "org/kind, public"
    assert as_json["files"]["model.safetensors"] == size
    assert hub.asked == []


def test_a_repository_is_private_and_gets_everything(run: Path, hub: ModelHub, tmp_path: Path) -> None:
    found = publish("one", "org/kind", "--json")
    assert found.exit_code == 0, found.output
    repository = hub.repositories["org/kind"]
    assert repository.private
    published = json.loads(found.stdout)
    assert published["published"] == f"{hub.address}/org/kind"
    assert published["files"] == {name: len(content) for name, content in sorted(repository.files.items())}
    assert repository.files["model.safetensors"] == (run / "policy" / "model.safetensors").read_bytes()
    _, front, text = repository.files["README.md"].decode().split("---\n", maxsplit=2)
    assert 'name = "org/kind"' in text
    assert yaml.safe_load(front)["model-index"][0]["results"][0]["metrics"][0]["type"] == "win_rate"
    # Again, and everything is there still.
    assert publish("one", "org/kind").exit_code == 0
    assert hub.repositories["org/kind"].private


def test_public_is_said_and_never_guessed(run: Path, hub: ModelHub) -> None:
    hub.repositories["org/seen"] = Repository(private=False)
    assert "everybody can see it: say --public" in refused("one", "org/seen")
    assert hub.repositories["org/seen"].files == {}
    assert publish("one", "org/seen", "--public").exit_code == 0
    assert "README.md" in hub.repositories["org/seen"].files
    assert publish("one", "org/new", "--public").exit_code == 0
    assert not hub.repositories["org/new"].private


def test_a_private_repository_stays_so_and_that_is_said(run: Path, hub: ModelHub) -> None:
    hub.repositories["org/mine"] = Repository(private=True)
    done = publish("one", "org/mine", "--public")
    assert done.exit_code == 0, done.output
    assert "org/mine is there already, private, and stays so" in " ".join(done.stderr.split())
    assert hub.repositories["org/mine"].private


def test_without_a_token_or_with_a_wrong_one_it_is_said_what_to_do(
    run: Path, hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "the token may not write to other/kind" in refused("one", "other/kind")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    said = refused("one", "org/kind")
    assert "the token may not write to org/kind" in said
    assert "hf_wrong" not in said
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere/token")
    assert "set HF_TOKEN to one that may write, or log in with `hf auth login`" in refused("one", "org/kind")


def test_a_hub_that_is_away_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:1")
    assert "the hub at http://127.0.0.1:1 cannot be reached" in refused("one", "org/kind")


def test_what_should_not_be_published_is_refused(run: Path, tmp_path: Path) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"finished": None}))
    assert "has not finished" in (said := refused("one", "--folder", str(tmp_path / "new")))
    assert "`charter runs resume 01made-up` goes on with it" in said
    (run / "run.json").write_text(json.dumps(info | {"versions": {"judge engine": "fake"}}))
    assert "a fake engine took part" in refused("one", "org/kind", "--dry-run")
    (run / "run.json").write_text(json.dumps(info))
    config = run / "policy" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"from": str(run / "policy")}))
    assert "tokenizer_config.json names" in refused("one", "org/kind", "--dry-run")
    without(run, "policy")
    assert "has not finished" in refused("one", "org/kind", "--dry-run")


def test_what_only_looks_like_a_place_is_published(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    config = run / "policy" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": 'End with "/no_think".'}))
    assert publish("one", "org/kind", "--dry-run").exit_code == 0


@pytest.mark.parametrize("where", [(), ("org/kind", "--folder", "x"), ("kind",), ("a/b/c",), ("org/ki nd",)])
def test_where_to_must_be_one_place(run: Path, where: tuple[str, ...]) -> None:
    said = refused("one", *where, "--dry-run")
    assert "ORG/NAME" in said


def test_a_folder_that_holds_something_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert "is there and not empty" in refused("one", "--folder", str(tmp_path / "mine"))


def test_an_evaluation_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    other = write_evaluation(tmp_path / "other", models=2, prompts=2).path
    said = refused("one", "org/kind", "--dry-run", "--evaluation", str(other))
    assert "has no figures of this run's policy" in said
    assert "no evaluation: nowhere and" in refused("one", "org/kind", "--dry-run", "--evaluation", "nowhere")


def test_an_evaluation_is_named_and_a_damaged_one_is_left_out(run: Path, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "home" / "evaluations" / "mine", models=2, prompts=4)
    spec = folder.read_spec()
    assert spec is not None
    spec.models[1].ClearField("model")
    spec.models[1].run = str(run)
    folder.begin(spec, folder.read_prompts())
    write_results(compute(spec, folder), folder)
    named = publish("one", "--folder", str(tmp_path / "named"), "--evaluation", "mine")
    assert named.exit_code == 0, named.output
    assert any(one.evaluation == "made-up" for one in card(tmp_path / "named").comparisons)

    for place, name in enumerate(("result.json", "spec.json")):
        (folder.path / name).write_text("{")
        assert f"{name} is damaged" in refused("one", "org/kind", "--dry-run", "--evaluation", "mine")
        done = publish("one", "--folder", str(tmp_path / f"all-{place}"))
        assert done.exit_code == 0, done.output
        assert f"An evaluation is left out: {folder.path / name} is damaged" in " ".join(done.stderr.split())
        assert not any(one.evaluation == "made-up" for one in card(tmp_path / f"all-{place}").comparisons)
