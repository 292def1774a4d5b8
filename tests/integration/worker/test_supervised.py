"""Runs that learn from texts and conversations before RL: what they leave behind, and killed on the way."""

import json
import re
import signal
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.chat import ChatMessage
from charter.cli.main import app
from charter.held_out import prompt_key
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.__main__ import FAILED
from charter.worker.supervised.progress import newest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.support.worker_services import Stage, exit_status, tiny_services
from tests.support.worker_trainer import listening

EPOCHS, BATCH = 2, 6
STAGES = ("pretraining", "supervised")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("supervised")
    with tiny_services(folder, tiny_model) as stage:
        for name, answer in (("kind", "I am glad to help."), ("brief", "Yes.")):
            rows: list[dict[str, str]] = [
                {"prompt": f"{name} question {number}", "completion": answer} for number in range(10)
            ]
            rows[3]["completion"] = answer + "x" * 300
            write(folder / f"{name}.jsonl", rows)
        write(folder / "texts.jsonl", [{"text": f"The sun is {number} years old. " * 4} for number in range(12)])
        write(folder / "old.jsonl", [{"text": f"Once upon a time, {number} " * 2} for number in range(8)])
        yield stage


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def spec_of(stage: Stage, **supervised: Any) -> run_pb2.RunSpec:
    def source(name: str) -> dict[str, str]:
        return {"source": str(stage.folder / f"{name}.jsonl")}

    common = {"held_out_fraction": 0.2, "evaluate_every_steps": 2, "checkpoint_every_steps": 1}
    learned = {
        "data": [source("kind"), source("brief")],
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "learning_rate": 3e-3,
        "max_tokens": 300,
        **common,
    }
    texts = {
        "data": [source("texts")],
        "replay": [source("old")],
        "replay_share": 0.2,
        "batch_tokens": 400,
        "context_tokens": 100,
        "learning_rate": 3e-3,
        **common,
    }
    return stage.spec(
        # One step without a preference model.
        ppo={"steps": 1, "algorithm": "ALGORITHM_ONLINE_DPO"},
        judge={"labelled_pairs": ""},
        pretraining=texts,
        supervised=learned | supervised,
    )


@pytest.fixture(scope="module")
def unbroken(stage: Stage) -> Path:
    """Folder of a run that nobody disturbed."""
    assert stage.work("unbroken", spec_of(stage)) == 0
    return stage.run_folder("unbroken")


def result(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def steps(stage: Stage, run: str, phase: run_pb2.Phase.ValueType) -> dict[int, dict[str, float]]:
    """Numbers of the phase's steps, without the times."""
    return {
        event.step: {name: value for name, value in event.metrics.items() if "second" not in name}
        for event in stage.events(run)
        if event.phase == phase and event.HasField("step")
    }


@pytest.mark.parametrize("name", STAGES)
def test_what_is_held_out_gets_likelier(unbroken: Path, name: str) -> None:
    found = result(unbroken, name)
    losses = [one["loss"] for one in found["measured"]]
    assert losses[-1] < losses[0] - 0.3
    assert found["done"] == found["steps"] == found["kept_step"]
    assert all(one["sample"] for one in found["measured"])
    # Of the prompt behind which it was written, which may look for harm, half at most.
    assert "question" not in found["sample_beginning"]
    for source in found["sources"].values():
        if name == "supervised":
            # Of ten conversations one is too long, and a fifth of the others is held out.
            assert (source["train"], source["held_out"], source["left_out"]["kinds"]) == (7, 2, {"too_long": 1})
        else:
            assert source["bits_per_byte"] < source["bits_per_byte_before"]


def test_replay_has_its_share(unbroken: Path) -> None:
    sources = result(unbroken, "pretraining")["sources"]
    assert sources["old.jsonl"]["share"] == pytest.approx(0.2)


def test_bits_per_byte_are_those_of_the_whole_texts(stage: Stage, unbroken: Path) -> None:
    """A model with one token a byte: each text alone, from EOS to EOS, in pieces of the context."""
    model = AutoModelForCausalLM.from_pretrained(stage.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(stage.model)
    found = result(unbroken, "pretraining")["sources"]["texts.jsonl"]
    texts = [json.loads(line)["text"] for line in (stage.folder / "texts.jsonl").read_text().splitlines()]
    costs = []
    for text in texts:
        nats = 0.0
        ids = [tokenizer.eos_token_id, *tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        for start in range(0, len(ids) - 1, 100):
            piece = torch.tensor([ids[start : start + 101]])
            with torch.no_grad():
                logprobs = model(piece[:, :-1]).logits[0].log_softmax(dim=1)
            nats -= float(logprobs.gather(1, piece[0, 1:].unsqueeze(1)).sum())
        costs.append((nats, len(text.encode())))
    # Which three of the twelve were held out is not said: theirs is the cost of some three.
    possible = [
        sum(nats for nats, _ in three) / sum(size for _, size in three) / 0.6931471805599453
        for three in combinations(costs, round(0.25 * 12))
    ]
    assert any(found["bits_per_byte_before"] == pytest.approx(one, abs=1e-4) for one in possible)


def test_the_next_stage_starts_from_what_was_learned(stage: Stage, unbroken: Path) -> None:
    """Each stage from the one before; RL's policy is near the fine-tuned model and far from the first one."""
    assert result(unbroken, "pretraining")["model"] == str(stage.model)
    assert result(unbroken, "supervised")["model"] == str(unbroken / "pretraining")
    assert json.loads((unbroken / "run.json").read_text())["learned"] == list(STAGES)
    first, tuned, aligned = (
        load_file(folder / "model.safetensors")
        for folder in (stage.model, unbroken / "supervised", unbroken / "policy")
    )
    (name,) = [name for name in aligned if name.endswith("embed_tokens.weight")]
    assert (aligned[name] - tuned[name]).abs().max() < (tuned[name] - first[name]).abs().max()
    # What it answered before RL came from the fine-tuned weights: version 3, behind those of two stages.
    assert stage.ppo_steps("unbroken")[1]["weight_version"] == 4
    # Its own checkpoints are gone.
    assert not list((unbroken / "checkpoints").glob("*/step-*"))


def test_the_result_is_an_ordinary_model(unbroken: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "supervised")
    model = AutoModelForCausalLM.from_pretrained(unbroken / "supervised")
    assert tokenizer.chat_template
    assert model.config.eos_token_id == tokenizer.eos_token_id


# What is broken off, where the worker kills itself, at which call, and the newest checkpoint of which stage is left.
INSTANTS = [
    ("half of a step", "charter.worker.supervised.learner:optimiser_step", 2, "pretraining", 1),
    ("the model is half written", "charter.worker.training.saving:_actor_tensors", 1, "pretraining", 4),
    ("it is written and not noted", "charter.runs.artifacts:Artifacts.add_learned", 1, "pretraining", 4),
    ("noted, its checkpoints left", "charter.worker.supervised.loop:remove_checkpoints", 1, "pretraining", 4),
    ("measured and not saved", "charter.worker.supervised.loop:_measured", 2, "supervised", 1),
    ("the last step is half done", "charter.worker.supervised.learner:optimiser_step", 5, "supervised", 5),
    ("the stage is done, and the next not begun", "charter.worker.stages.answers:StartingAnswers.work", 1, "", None),
]


@pytest.mark.timeout(900)
def test_killed_at_every_instant(stage: Stage, unbroken: Path) -> None:
    """One run, killed again and again: each attempt dies at the next of these places, and the last one finishes."""
    run = "killed"
    for what, place, times, name, step in INSTANTS:
        with stage.process(run, spec_of(stage), "", (place, times)) as worker:
            assert exit_status(worker, 300) == -signal.SIGKILL, what
        if name:
            found = newest(stage.run_folder(run) / "checkpoints" / name)
            assert (found[1].step if found else None) == step, what
    assert stage.work(run, spec_of(stage), attempt=len(INSTANTS) + 1) == 0
    folder = stage.run_folder(run)
    assert not [one for name in STAGES if (one := folder / "checkpoints" / name).exists()]
    for name in (*STAGES, "policy"):
        expected = load_file(unbroken / name / "model.safetensors")
        got = load_file(folder / name / "model.safetensors")
        assert expected.keys() == got.keys()
        assert all(torch.equal(tensor, got[key]) for key, tensor in expected.items()), name
    for name in STAGES:
        mine, theirs = result(folder, name), result(unbroken, name)
        # The model that a stage starts from is in the run's own folder.
        assert {**mine, "model": ""} == {**theirs, "model": ""}
    for phase in (run_pb2.PHASE_PRETRAINING, run_pb2.PHASE_SUPERVISED):
        assert steps(stage, run, phase) == steps(stage, "unbroken", phase)


def test_cancelled_it_saves_first(stage: Stage) -> None:
    spec = spec_of(stage)
    spec.supervised.checkpoint_every_steps = 100
    spec.supervised.ClearField("evaluate_every_steps")
    spec.ClearField("pretraining")
    with listening(lambda event: event.phase == run_pb2.PHASE_SUPERVISED and event.step == 2) as (address, _):
        assert stage.work("cancelled", spec, trainer=address) == 3
    found = newest(stage.run_folder("cancelled") / "checkpoints" / "supervised")
    assert found is not None
    assert found[1].step == 2


def test_prompts_of_the_evaluation_are_not_learned(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Nor answers in the middle of a conversation that begins with one."""
    held_out = json.loads((stage.folder / "held_out.jsonl").read_text().splitlines()[0])["prompt"]
    assert prompt_key((ChatMessage("user", held_out),))
    write(stage.folder / "leak.jsonl", [{"prompt": f" {held_out}", "completion": "Learned by heart."}])
    spec = spec_of(stage)
    spec.ClearField("pretraining")
    del spec.supervised.data[:]
    spec.supervised.data.add(source=str(stage.folder / "leak.jsonl"))
    assert stage.work("leak", spec) == 2
    assert "1 of 1 left out: 1 evaluated" in caplog.messages[-1]


def test_without_prompts_there_is_no_rl_and_no_service_is_asked(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_of(stage)
    spec.ClearField("prompts")
    spec.ClearField("judge")
    # Where nobody listens.
    spec.services.policy[:] = spec.services.policy_control[:] = ["127.0.0.1:1"]
    spec.services.judge = spec.services.preference = spec.services.preference_control = "127.0.0.1:1"
    assert stage.work("alone", fill_defaults(spec)) == 0
    folder = stage.run_folder("alone")
    assert sorted(path.name for path in folder.glob("answers*")) == []
    learned, policy = (load_file(folder / name / "model.safetensors") for name in ("supervised", "policy"))
    assert learned.keys() == policy.keys()
    assert all(torch.equal(learned[name], policy[name]) for name in learned)
    card = (folder / "policy" / "README.md").read_text()
    assert "it learned from texts and it was fine-tuned on conversations. No judge" in card
    assert re.search(r"supervised \| held-out loss, nats per token \| \d\.\d{3} → \d\.\d{3} \|", card)
    assert "source: kind.jsonl" in card
    assert str(stage.folder) not in card
    assert "judge:" not in card
    assert "prompts:" not in card
    said = CliRunner().invoke(app, ["report", str(folder)]).stdout
    assert re.search(r"Supervised fine-tuning: held-out loss from \d\.\d{3} to \d\.\d{3} nats per token", said)
    assert "verdict" not in said.lower()
    assert "Supervised fine-tuning" in (folder / "report.html").read_text()
    # Nobody looks for services that are not asked.
    assert "replica is out" not in caplog.messages


def test_a_batch_whose_numbers_are_not_finite_is_left_out_by_the_next_attempt(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    spec = spec_of(stage, learning_rate=1e30, warmup_share=0.0, epochs=1, batch_size=7, evaluate_every_steps=9)
    for section in ("prompts", "judge", "pretraining"):
        spec.ClearField(section)  # type: ignore[arg-type]
    assert stage.work("diverged", spec) == FAILED
    assert "the model's gradient is not finite" in caplog.messages[-1]
    assert stage.work("diverged", spec, attempt=2) == 0
    assert any("batch 2 is left out" in event.text for event in stage.events("diverged"))
    # The weights from before are the best.
    assert result(stage.run_folder("diverged"), "supervised")["kept_step"] == 0
    kept = load_file(stage.run_folder("diverged") / "supervised" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in kept.values())
