"""``charter preferences score-file`` against real preference models, through real services."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.chat import ChatMessage
from charter.cli.main import app
from charter.inference.preference_model import PreferenceModel, encode
from charter.preference.server import PreferenceConfig, build
from typer.testing import CliRunner, Result

from tests.support.harness import running

ROOT = Path(__file__).resolve().parents[3]
ROWS: list[dict[str, Any]] = [
    {
        "id": f"{place}",
        "subset": "Math" if place % 2 else "Focus",
        "prompt": f"Question {place}?",
        "chosen": [f"It is {place}"],
        "rejected": [f"no {place}", "who knows", f"x{place}" * 3],
    }
    for place in range(12)
] + [
    {"id": "ref:1", "subset": "Ties", "prompt": "A colour?", "chosen": ["red"], "rejected": ["seven"]},
    {"id": "tied:1", "subset": "Ties", "prompt": "Any colour?", "chosen": ["red", "blue"], "rejected": ["six"]},
]


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder, whose preference model was fitted again after a refresh."""
    run = tmp_path_factory.mktemp("run")
    (run / "run.json").write_text("{}")
    for name, seed in (("preference_model", 4), ("preference_model-2", 5)):
        PreferenceModel.from_causal_lm(tiny_model, seed=seed).save(run / name)
        (run / f"{name.replace('model', 'fit')}.json").write_text("{}")
    # Not whole: its fit was interrupted.
    (run / "preference_model-3").mkdir()
    return run / "preference_model-2"


@pytest.fixture(scope="module")
def address(model: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("service")
    models = {"first": str(tiny_model), "fitted": str(model)}
    with running(build(PreferenceConfig(models, f"sqlite:///{folder}/charter.db", folder / "staging"))) as addresses:
        yield addresses.main


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHARTER_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "best.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.write("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def score(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["preferences", "score-file", *map(str, arguments)])


def found(*arguments: object) -> Any:
    done = score(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def direct(model: Path, row: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Scores without a service, of the chosen and of the rejected answers."""
    own = PreferenceModel.load(model)
    prompt = (ChatMessage("user", row["prompt"]),)
    with torch.no_grad():
        chosen, rejected = (
            [own.scores([encode(own.tokenizer, prompt, answer)]).item() for answer in row[name]]
            for name in ("chosen", "rejected")
        )
    return chosen, rejected


def right(model: Path, subset: str) -> float:
    rows = [direct(model, row) for row in ROWS if row["subset"] == subset]
    return sum(chosen[0] > max(rejected) for chosen, rejected in rows) / len(rows)


def test_accuracy_is_that_of_the_models_own_scores(address: str, model: Path, file: Path) -> None:
    result = found(file, "--address", address, "--served", "fitted")
    assert result["model"] == str(model)
    assert {name: one["value"] for name, one in result["subsets"].items()} == {
        name: pytest.approx(right(model, name)) for name in ("Math", "Focus")
    }
    assert {one["chance"] for one in result["subsets"].values()} == {0.25}
    chosen, rejected = direct(model, ROWS[-1])
    assert result["ties"]["tied_accuracy"] == float(min(chosen) > max(rejected))
    assert result["left_out"] == {}
    kept = [json.loads(line) for line in Path(result["scores"]).read_text().splitlines()]
    assert kept[0]["chosen"] == pytest.approx(direct(model, ROWS[0])[0], abs=1e-5)

    shown = score(file, "--address", address, "--served", "fitted")
    assert shown.exit_code == 0, shown.output
    for words in ("Math", "Focus", "Ties", "mean", "25.0%"):
        assert words in shown.stdout


def test_what_is_stored_is_not_scored_again(address: str, file: Path) -> None:
    before = found(file, "--address", address, "--served", "fitted")
    log = Path(before["scores"])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    # Scores that the model would not give, of all Math prompts; two others are lost, one in the middle of its line.
    for one in lines:
        if one["subset"] == "Math":
            one["chosen"] = [1e6]
    kept = "".join(json.dumps(one) + "\n" for one in lines[:-2])
    log.write_text(kept + '{"place": 1')
    again = found(file, "--address", address, "--served", "fitted")
    assert again["subsets"]["Math"]["value"] == 1
    assert again["subsets"]["Focus"] == before["subsets"]["Focus"]
    assert again["ties"] == before["ties"]
    # What the service left out is asked for again, and what it refused is not.
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for one, failure in zip(lines[2:4], ("missing", "too_long"), strict=True):
        one |= {"chosen": [], "rejected": [], "failure": failure}
    log.write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert found(file, "--address", address, "--served", "fitted")["left_out"] == {"too_long": 1}
    # Another file has scores of its own.
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + b"\n"))
    assert found(file, "--address", address, "--served", "fitted")["subsets"] == before["subsets"]


def test_a_run_is_served_by_its_newest_model(
    address: str, model: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "services"))
    result = found(file, "--model", model.parent)
    assert result["model"] == str(model)
    assert result["subsets"] == found(file, "--address", address, "--served", "fitted")["subsets"]
    assert not (Path(result["scores"]).parent / "serving.json").exists()


def test_an_answer_that_has_no_score_leaves_its_prompt_out(address: str, file: Path) -> None:
    rows = [dict(row) for row in ROWS]
    rows[0]["rejected"] = ["very long " * 5000]
    rows[-1]["chosen"] = ["red", "blue " * 5000]
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    result = found(file, "--address", address, "--served", "fitted")
    assert result["left_out"] == {"too_long": 2, "sibling_without_score": 1}
    assert result["subsets"]["Focus"]["prompts"] == 5
    assert result["ties"] is None


def test_mistakes_are_said(address: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    for arguments, words in (
        ((file, "--model", "x", "--served", "y"), "leave one out"),
        ((file, "--address", address, "--served", "none"), "no preference model `none` is loaded"),
        ((file, "--address", address), "no preference model was fitted yet"),
        (("bad.jsonl", "--address", address), "needs prompt, chosen and rejected"),
        (("empty.jsonl", "--address", address), "holds no prompts"),
        ((file, "--model", tmp_path / "other"), "has no preference model"),
    ):
        done = score(*arguments)
        assert done.exit_code == 1, done.output
        assert words in done.output.replace("\n", " "), done.output
