"""What an attempt notes of its machine and of what it reads."""

import hashlib
import json
from pathlib import Path

import pytest
from charter.environment import EnvironmentVariableError, Price, price_per_hour
from charter.runs.artifacts import Artifacts
from charter.spec.models import revision_of, weights_digest
from charter.v1 import run_pb2
from charter.worker.leg import begin_leg, note_inputs


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_weights_of_one_file_and_of_several_have_a_digest(tmp_path: Path) -> None:
    assert weights_digest(str(tmp_path)) == ""
    (tmp_path / "b.safetensors").write_bytes(b"2")
    assert weights_digest(str(tmp_path)) == sha256(b"2")
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not counted")
    assert weights_digest(str(tmp_path)) == sha256((sha256(b"1") + sha256(b"2")).encode())
    assert weights_digest("org/nowhere") == ""
    assert revision_of(str(tmp_path)) == ""


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, commit = tmp_path / "models--org--kind", "e" * 40
    for folder in ("refs", "blobs", f"snapshots/{commit}"):
        (model / folder).mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    # Large files are named by their sha256 in the cache, and are not read again.
    (model / "blobs" / ("d" * 64)).write_bytes(b"weights")
    (model / "snapshots" / commit / "model.safetensors").symlink_to(model / "blobs" / ("d" * 64))
    assert (revision_of("org/kind"), weights_digest("org/kind")) == (commit, "d" * 64)


def test_data_and_models_are_noted_by_name_and_digest(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"1")
    model = str(tmp_path / "model")
    spec = run_pb2.RunSpec(
        policy=run_pb2.PolicySpec(model=model),
        judge=run_pb2.JudgeSpec(model="gpt"),
        preference_model=run_pb2.PreferenceModelSpec(model=model),
        prompts=run_pb2.PromptSpec(train=[str(tmp_path / "train.jsonl")]),
    )
    artifacts = Artifacts(tmp_path / "run", "r")
    begin_leg(artifacts, 1)
    note_inputs(spec, artifacts)
    (leg,) = json.loads((tmp_path / "run" / "run.json").read_text())["legs"]
    assert leg["hardware"]["cores"] >= 1
    assert leg["inputs"] == {
        "prompts.train[0]": {"name": "train.jsonl", "sha256": sha256(b'{"prompt": "a"}\n'), "revision": ""},
        "policy.model": {"name": model, "sha256": sha256(b"1"), "revision": ""},
        "judge.model": {"name": "gpt", "sha256": "", "revision": ""},
    }


def test_a_price_is_an_amount_and_a_currency(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHARTER_PRICE_PER_HOUR", raising=False)
    assert price_per_hour() is None
    monkeypatch.setenv("CHARTER_PRICE_PER_HOUR", "2.50 EUR")
    assert price_per_hour() == Price(2.5, "EUR")


@pytest.mark.parametrize("text", ["2.50", "EUR", "2,50 EUR", "-1 EUR", "nan EUR", "inf EUR", "2 euros and more"])
def test_what_is_no_price_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CHARTER_PRICE_PER_HOUR", text)
    with pytest.raises(EnvironmentVariableError, match=r"CHARTER_PRICE_PER_HOUR must be .* as 2\.50 EUR"):
        price_per_hour()
