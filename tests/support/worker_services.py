"""Real services around a tiny model, and specs for runs on them."""

import json
import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from charter.judge import server as judge
from charter.policy import server as policy
from charter.preference import server as preference
from charter.runs.artifacts import Artifacts
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker import metrics
from charter.worker.__main__ import work
from charter.worker.reporter import Reporter
from google.protobuf import json_format

from tests.support import rank_processes, worker_process
from tests.support.harness import running

# Forks each worker from a process that has imported everything and begun nothing: the imports take longer than a run.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([worker_process.__name__])

CONSTITUTION = """\
name: tiny
version: "1"
principles:
  - {id: kind, dimension: helpful, compare: "Which is kinder?", critique: Say why., revise: Be kind.,
     follow: You are kind., oppose: You are rude.}
  - {id: safe, dimension: harmless, compare: "Which is safer?", critique: Say why., revise: Be safe.,
     follow: You are careful., oppose: You are careless.}
"""


def assert_every_ppo_metric(numbers: Mapping[str, float]) -> None:
    """A step reports what ``metrics.PPO`` lists, and nothing that it does not list."""
    # Only with online DPO, or only where evaluation.every_steps asks for them.
    elsewhere = {"judge_certainty", "dpo_accuracy", "dpo_margin", "held_out_judge", "held_out_score", "held_out_kl"}
    # Absent where they are not defined: no target, answers that are all equally long, no preference model.
    optional = {"kl_target", "length_reward_correlation", "preference_version"}
    by_dimension = {"score_mean.helpful", "score_mean.harmless"}
    assert set(metrics.PPO) - elsewhere - optional <= set(numbers) - by_dimension <= set(metrics.PPO) - elsewhere
    assert set(numbers) & by_dimension


def exit_status(worker: BaseProcess, seconds: float) -> int | None:
    """How a worker ended, a signal as a negative number; None when it has not after so long."""
    worker.join(seconds)
    return worker.exitcode


@dataclass(frozen=True)
class Stage:
    """Where the services are, and the folder for everything else."""

    folder: Path
    model: Path
    addresses: run_pb2.ServiceAddresses

    def spec(self, **sections: dict[str, Any]) -> run_pb2.RunSpec:
        """A filled spec of a small run; ``sections`` override its parts."""
        values: dict[str, Any] = {
            "name": "tiny",
            "seed": 5,
            "policy": {"model": str(self.model)},
            "judge": {
                "model": str(self.model),
                "constitution": str(self.folder / "constitution.yaml"),
                "method": "JUDGING_METHOD_CONTRAST",
                "labelled_pairs": str(self.folder / "labelled.jsonl"),
                "labelled_pairs_limit": 6,
            },
            "prompts": {"train": [str(self.folder / "train.jsonl")], "held_out": [str(self.folder / "held_out.jsonl")]},
            "sampling": {"max_new_tokens": 12},
            "comparisons": {"pairs": 8, "held_out_fraction": 0.25},
            "preference_model": {"epochs": 2, "batch_size": 3, "learning_rate": 1e-3},
            "ppo": {"steps": 3, "episodes_per_step": 6, "learning_rate": 1e-3, "critic_learning_rate": 1e-3},
            "evaluation": {"prompts": 4, "bootstrap_samples": 100},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        spec = json_format.ParseDict(values, run_pb2.RunSpec())
        spec.services.MergeFrom(self.addresses)
        return fill_defaults(spec)

    def arguments(self, run: str, spec: run_pb2.RunSpec, attempt: int = 1, trainer: str = "") -> list[str]:
        """Command line of a worker; the run's folder is ``folder/runs/run``."""
        folder = self.run_folder(run)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "order.json"
        path.write_text(json_format.MessageToJson(spec, preserving_proto_field_name=True))
        options = {"run-id": run, "attempt": attempt, "trainer": trainer, "artifacts": folder, "spec": path}
        return [text for name, value in options.items() for text in (f"--{name}", str(value))]

    def work(self, run: str, spec: run_pb2.RunSpec, attempt: int = 1, trainer: str = "") -> int:
        """Run a worker in this process; its exit status."""
        artifacts = Artifacts(self.run_folder(run), run)
        return work(run, attempt, spec, artifacts, Reporter(artifacts, run, attempt, trainer))

    @contextmanager
    def process(
        self, run: str, spec: run_pb2.RunSpec, trainer: str, kill_at: tuple[str, int] | None = None
    ) -> Iterator[BaseProcess]:
        """A worker as a process of its own, killed at the end of the block if it still runs.

        ``kill_at`` arms it as ``worker_process.run`` says.
        """
        worker = _PROCESSES.Process(
            target=worker_process.run, args=(self.arguments(run, spec, trainer=trainer), kill_at)
        )
        worker.start()
        try:
            yield worker
        finally:
            worker.kill()
            worker.join()

    @contextmanager
    def ranks(self, run: str, spec: run_pb2.RunSpec, trainer: str = "", size: int = 2) -> Iterator[list[BaseProcess]]:
        """As ``process``, a worker of so many processes."""
        arguments = self.arguments(run, spec, trainer=trainer)
        with rank_processes.started(size, worker_process.run, arguments, None) as processes:
            yield processes

    def run_folder(self, run: str) -> Path:
        return self.folder / "runs" / run

    def events(self, run: str) -> list[run_pb2.RunEvent]:
        lines = (self.run_folder(run) / "events.jsonl").read_text().splitlines()
        return [json_format.Parse(line, run_pb2.RunEvent()) for line in lines]

    def ppo_steps(self, run: str) -> dict[int, dict[str, float]]:
        """Metrics of each PPO step, the last ones of a step that ran twice."""
        return {event.step: dict(event.metrics) for event in self.events(run) if event.HasField("step")}


@contextmanager
def tiny_services(folder: Path, model: Path) -> Iterator[Stage]:
    """Policy, judge and preference on one tiny model, with prompt files."""
    write_inputs(folder)
    with (
        running(policy.build(policy.PolicyConfig(str(model), folder / "staging-policy"))) as at_policy,
        running(judge.build(judge.JudgeConfig(str(model), folder / "constitution.yaml"))) as at_judge,
        running(
            preference.build(
                preference.PreferenceConfig(
                    {"default": str(model)}, f"sqlite:///{folder / 'store.db'}", folder / "staging-preference"
                )
            )
        ) as at_preference,
    ):
        addresses = run_pb2.ServiceAddresses(
            policy=[at_policy.main],
            policy_control=[at_policy.control],
            judge=at_judge.main,
            preference=at_preference.main,
            preference_control=at_preference.control,
        )
        yield Stage(folder, model, addresses)


def write_inputs(folder: Path) -> None:
    """Constitution, prompts and labelled pairs."""
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    write_jsonl(
        folder / "train.jsonl",
        [{"prompt": f"Say the number {n}.", "dimension": "harmless" if n % 3 == 0 else "helpful"} for n in range(7)],
    )
    write_jsonl(folder / "held_out.jsonl", [{"prompt": f"Spell the word number {n}."} for n in range(5)])
    write_jsonl(
        folder / "labelled.jsonl",
        [
            {"prompt": f"Greet guest {n}.", "answer_a": "Hello, welcome in!", "answer_b": "Go.", "label": "a"}
            for n in range(8)
        ],
    )


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
