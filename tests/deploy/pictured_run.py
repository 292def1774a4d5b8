"""``python -m tests.deploy.pictured_run`` (``make pictures``): a real run whose reward rises, drawn for the docs.

A tiny random model learns to write small letters. That is what its judge prefers and its reward service counts: both
are programs behind the contracts that a real endpoint and a reward service of one's own have.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from charter.runs.folder import read_run_folder
from charter.v1 import preference_pb2, run_pb2

from deploy.monitoring import pictures
from tests.deploy.recorded_run import Recorded, recorded_run
from tests.support.endpoint import MODEL, Answer, Body, endpoint
from tests.support.reward_service import reward_service
from tests.support.tiny import make_tiny_model
from tests.support.worker_services import CONSTITUTION, write_jsonl

STEPS = 100


def share_of_letters(text: str) -> float:
    """Small letters of the characters, of a dozen at least: a short text is no way out."""
    return sum("a" <= character <= "z" for character in text) / max(len(text), 12)


def prefers_letters(body: Body) -> Answer:
    """The letter of the answer that has more small letters, as sure as the lead is large."""
    first, _, second = str(body["messages"][0]["content"]).partition("(A) ")[2].partition("\n\n(B) ")
    lead = share_of_letters(first) - share_of_letters(second.rpartition("\n\n")[0])
    p = 1 / (1 + math.exp(-10 * lead))
    return Answer("A" if p > 0.5 else "B", {"A": p, "B": 1 - p})


def counts_letters(request: preference_pb2.PreferenceServiceScoreRequest) -> list[tuple[str, float]]:
    """The share of small letters in each answer."""
    return [(item.id, share_of_letters(item.answer)) for item in request.items]


def write_spec(folder: Path, model: Path, judge: str, reward: str) -> Path:
    """A run of all stages, with a judge behind the endpoint ``judge`` and the service ``reward`` as reward."""
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    dimensions = ("helpful", "harmless")
    write_jsonl(
        folder / "train.jsonl", [{"prompt": f"Say the number {n}.", "dimension": dimensions[n % 2]} for n in range(96)]
    )
    write_jsonl(
        folder / "held_out.jsonl", [{"prompt": f"Spell number {n}.", "dimension": dimensions[n % 2]} for n in range(48)]
    )
    write_jsonl(
        folder / "labelled.jsonl",
        [
            {"prompt": f"Greet guest {n}.", "answer_a": f"{'12 ' * (n % 5)}hello", "answer_b": "We 1+2", "label": "a"}
            for n in range(24)
        ],
    )
    spec: dict[str, Any] = {
        # As a run of a study is called.
        "name": "letters-rlaif-5",
        "seed": 5,
        "policy": {"model": str(model), "engine": "transformers"},
        "judge": {
            "model": MODEL,
            "engine": "openai",
            "endpoint": judge,
            "constitution": "constitution.yaml",
            "method": "choice",
            "labelled_pairs": "labelled.jsonl",
            "limits": {"token_budget": 1_000_000},
        },
        "prompts": {"train": ["train.jsonl"], "held_out": ["held_out.jsonl"]},
        "sampling": {"max_new_tokens": 24},
        "comparisons": {"pairs": 192},
        "preference_model": {"epochs": 8, "batch_size": 16, "learning_rate": 3e-3, "patience": 3},
        "reward": {"service_weight": 4, "service": reward},
        "ppo": {
            "steps": STEPS,
            "episodes_per_step": 32,
            "learning_rate": 3e-3,
            "critic_learning_rate": 3e-3,
            "kl_coefficient": 0.02,
            "kl_target": 20,
        },
        "evaluation": {"prompts": 32, "bootstrap_samples": 500, "every_steps": 5, "watched_prompts": 16},
    }
    file = folder / "spec.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def begin_of_work(found: Recorded) -> float:
    """When the first stage behind the start reported something: what was before is loading."""
    events = read_run_folder(found.home / "runs" / found.run).events
    return next(event.time.seconds for event in events if event.phase != run_pb2.PHASE_STARTING)


def main() -> None:
    """Record the run and draw every dashboard. Raises ``SystemExit`` when its reward did not rise."""
    with (
        tempfile.TemporaryDirectory() as temporary,
        endpoint(prefers_letters) as judge,
        reward_service(counts_letters) as reward,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("OPENAI_API_KEY", "none")
        folder = Path(temporary)
        spec = write_spec(folder, make_tiny_model(folder / "model"), judge.url, reward)
        with recorded_run(folder, spec) as found:
            steps = list(read_run_folder(found.home / "runs" / found.run).ppo_steps.values())
            rewards = [step["reward_mean"] for step in steps]
            if sum(rewards[-10:]) <= sum(rewards[:10]):
                raise SystemExit(f"the reward did not rise, nothing was drawn: {rewards}")
            pictures.draw_all(found.address, begin_of_work(found), found.end)


if __name__ == "__main__":
    main()
