"""Runs that learn from labels that are there, DPO then KTO: what they leave behind, and killed on the way."""

import hashlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.spec.defaults import fill_defaults
from charter.v1 import preference_pb2, preference_pb2_grpc, run_pb2, types_pb2
from charter.worker.supervised.progress import newest
from grpc import insecure_channel
from safetensors.torch import load_file

from tests.support.comparisons import comparison
from tests.support.worker_services import Stage, exit_status, tiny_services, write_jsonl

STAGES = ("dpo", "kto")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("offline")
    with tiny_services(folder, tiny_model) as stage:
        pairs: list[dict[str, Any]] = [
            {"prompt": f"Greet guest {n}.", "chosen": "Hello, welcome!", "rejected": f"Go {n}."} for n in range(12)
        ]
        pairs[0] |= {"score_chosen": 3, "score_rejected": 3}
        pairs[1]["rejected"] = pairs[1]["chosen"]
        pairs[2]["rejected"] = "Go away. " * 40
        write_jsonl(folder / "pairs.jsonl", pairs)
        rows = [
            {"prompt": f"Greet guest {n}.", "completion": ("Hello!", "Go!")[n % 2], "label": n % 2 == 0}
            for n in range(12)
        ]
        write_jsonl(folder / "thumbs.jsonl", rows)
        store(stage)
        yield stage


def store(stage: Stage) -> None:
    """Labels of people and of a judge, two of them held out, some with thumbs."""
    labels = [rated_comparison(number) for number in range(8)]
    labels[0].source = types_pb2.LABEL_SOURCE_AI
    labels[6].dimension = labels[7].dimension = "harmless"
    for number in (1, 2):
        labels[number].split = types_pb2.SPLIT_HELD_OUT
    for number in (0, 2, 4, 6):
        labels[number].answer_a.rating = labels[number].answer_b.rating = types_pb2.RATING_UNSPECIFIED
    add(stage, "labels", labels)


def rated_comparison(number: int) -> types_pb2.Comparison:
    one = comparison(f"Yes, {number}", method="feedback", dimension="helpful", source=types_pb2.LABEL_SOURCE_HUMAN)
    one.prompt[0].content = f"Is water wet, {number}?"
    one.answer_a.rating, one.answer_b.rating = types_pb2.RATING_UP, types_pb2.RATING_DOWN
    return one


def add(stage: Stage, request_id: str, labels: list[types_pb2.Comparison]) -> None:
    request = preference_pb2.AddComparisonsRequest(request_id=request_id, comparisons=labels)
    with insecure_channel(stage.addresses.preference) as channel:
        preference_pb2_grpc.PreferenceServiceStub(channel).AddComparisons(request)


def spec_of(stage: Stage, **sections: dict[str, Any]) -> run_pb2.RunSpec:
    """Both stages and nothing else."""
    common = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "max_tokens": 200, "checkpoint_every_steps": 1}
    common |= {"held_out_fraction": 0.2, "evaluate_every_steps": 2}
    wanted: dict[str, dict[str, Any]] = {
        "dpo": {
            "data": [{"source": str(stage.folder / "pairs.jsonl")}],
            "stored": {"dimension": "helpful", "source": "LABEL_SOURCE_HUMAN", "method": "feedback"},
        },
        "kto": {"data": [{"source": str(stage.folder / "thumbs.jsonl")}], "stored": {}},
    }
    wanted = sections or wanted
    spec = stage.spec(**{name: common | section for name, section in wanted.items()})
    for name in ("prompts", "judge"):
        spec.ClearField(name)  # type: ignore[arg-type]
    # Without RL nobody but the store is asked.
    spec.services.policy[:] = spec.services.policy_control[:] = ["127.0.0.1:1"]
    spec.services.judge = "127.0.0.1:1"
    return fill_defaults(spec)


@pytest.fixture(scope="module")
def unbroken(stage: Stage) -> Path:
    """Folder of a run that nobody disturbed."""
    assert stage.work("unbroken", spec_of(stage)) == 0
    return stage.run_folder("unbroken")


def result(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


@pytest.mark.parametrize("name", STAGES)
def test_what_is_preferred_gains(unbroken: Path, name: str) -> None:
    found = result(unbroken, name)
    first, last = found["measured"][0], found["measured"][-1]
    assert last["loss"] < first["loss"] - 0.02
    accuracy = last["figures"]["reward_accuracy"]
    assert first["figures"]["reward_accuracy"]["mean"] == 0.5
    assert accuracy["mean"] > 0.8
    assert 0 <= accuracy["low"] <= accuracy["mean"] <= accuracy["high"] <= 1
    gained, lost = ("chosen", "rejected") if name == "dpo" else ("desirable", "undesirable")
    assert last["figures"][f"reward_{gained}"]["mean"] > last["figures"][f"reward_{lost}"]["mean"] + 0.1
    assert first["figures"][f"reward_{gained}"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert name == "dpo" or last["figures"]["kl"]["low"] < last["figures"]["kl"]["high"]


def test_every_label_is_accounted_for(stage: Stage, unbroken: Path) -> None:
    sources = result(unbroken, "dpo")["sources"]
    file, stored = sources["pairs.jsonl"], sources["stored comparisons"]
    assert file["left_out"] == {"items": 12, "kinds": {"tie": 1, "identical": 1, "too_long": 1}}
    assert file["train"] + file["held_out"] == 9
    assert file["digest"] == hashlib.sha256((stage.folder / "pairs.jsonl").read_bytes()).hexdigest()
    # Five of people about helpful prompts, of which the labels hold out two.
    assert stored["labels"] == {"HUMAN": 5}
    assert (stored["train"], stored["held_out"]) == (3, 2)
    sources = result(unbroken, "kto")["sources"]
    assert sources["thumbs.jsonl"]["verdicts"] == {"up": 6, "down": 6}
    assert sources["stored comparisons"]["verdicts"] == {"up": 4, "down": 4}
    assert sources["stored comparisons"]["labels"] == {"HUMAN": 8}


def test_the_report_and_the_card_say_it(stage: Stage, unbroken: Path) -> None:
    assert json.loads((unbroken / "run.json").read_text())["learned"] == list(STAGES)
    assert result(unbroken, "kto")["model"] == str(unbroken / "dpo")
    learned, policy = (load_file(unbroken / name / "model.safetensors") for name in ("kto", "policy"))
    assert all(torch.equal(learned[name], policy[name]) for name in learned)
    html = (unbroken / "report.html").read_text()
    assert 'data-figure="dpo-reward_accuracy"' in html
    assert "Rewards of learning from thumbs (kto) by step" in html
    card = (unbroken / "policy" / "README.md").read_text()
    assert re.search(r"\| dpo \| held-out loss, nats per comparison \| 0\.693 → \d\.\d{3}", card)
    assert re.search(r"\| kto \| Reward on the label's side \| 50\.0% → \d+\.\d% \(\d", card)
    assert f"{hashlib.sha256((stage.folder / 'thumbs.jsonl').read_bytes()).hexdigest()}" in card
    assert "8 of people; 4 thumbs up, 4 down" in card
    assert str(stage.folder) not in card


# What is broken off, where the worker kills itself, at which call, and the newest checkpoint of which stage is left.
INSTANTS = [
    ("the reference is half asked for", "charter.worker.offline.reference:save_file", 1, "dpo", None),
    ("half of a step", "charter.worker.supervised.learner:optimiser_step", 3, "dpo", 2),
    ("measured and not saved", "charter.worker.supervised.loop:_measured", 4, "kto", 1),
    ("the last step is half done", "charter.worker.supervised.learner:optimiser_step", 7, "kto", 7),
]


@pytest.mark.timeout(900)
def test_killed_at_every_instant(stage: Stage, unbroken: Path) -> None:
    """One run, killed again and again: each attempt dies at the next of these places, and the last one finishes."""
    run = "killed"
    for what, place, times, name, step in INSTANTS:
        with stage.process(run, spec_of(stage), "", (place, times)) as worker:
            assert exit_status(worker, 300) == -signal.SIGKILL, what
        found = newest(stage.run_folder(run) / "checkpoints" / name)
        assert (found[1].step if found else None) == step, what
    # What comes to the store meanwhile changes nothing.
    add(stage, "later", [rated_comparison(number) for number in range(20, 30)])
    assert stage.work(run, spec_of(stage), attempt=len(INSTANTS) + 1) == 0
    folder = stage.run_folder(run)
    for name in STAGES:
        expected, got = (load_file(one / name / "model.safetensors") for one in (unbroken, folder))
        assert expected.keys() == got.keys()
        assert all(torch.equal(tensor, got[key]) for key, tensor in expected.items()), name
        mine, theirs = result(folder, name), result(unbroken, name)
        assert mine["measured"] == theirs["measured"]
