"""What sampling ahead gains: the time of a PPO step with max_staleness 0 and 1, in one run.

    python -m tests.benchmarks.overlap MODEL --seconds-per-token 0.2
    python -m tests.benchmarks.overlap MODEL --engine transformers

The policy is a process of its own. The fake engine takes a fixed time for each token without using a core, as a policy
on another machine would; transformers takes the cores that the worker learns on. Scores come from a trivial service.
Each round is a short run of either kind, its first step left out.
"""

import argparse
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median

from charter.atomic_files import write_text
from charter.chat import ChatMessage
from charter.data.prompts import TaskPrompt
from charter.inference.chat_template import ChatTokenizer
from charter.runs.artifacts import Artifacts
from charter.runs.folder import read_run_folder
from charter.spec.defaults import fill_defaults
from charter.v1 import judge_pb2, run_pb2
from charter.worker.clients.services import Services
from charter.worker.context import Run
from charter.worker.prompts import PromptSets
from charter.worker.reporter import Reporter
from charter.worker.stages.ppo import Reinforcement
from charter.worker.training.lead import Leader
from google.protobuf import json_format
from rich.console import Console

from tests.support.processes import Process
from tests.support.reward_service import reward_service

CONSOLE = Console(width=120)
STEPS, EPISODES, TOKENS, ROUNDS = 5, 16, 48, 2
PROMPTS = tuple(TaskPrompt(str(n), (ChatMessage("user", f"Tell me fact number {n}."),), "") for n in range(64))
SHOWN = ("step_seconds", "sampling_seconds", "update_seconds", "worker_idle_share", "policy_idle_share")


def steps_of(folder: Path, model: Path, policy: Process, rewards: str, staleness: int) -> list[dict[str, float]]:
    """Numbers of the steps of a run, without the first."""
    spec = fill_defaults(
        run_pb2.RunSpec(
            policy=run_pb2.PolicySpec(model=str(model), logprob_tolerance=1e9),
            sampling=run_pb2.SamplingSpec(max_new_tokens=TOKENS),
            ppo=run_pb2.PpoSpec(
                steps=STEPS,
                episodes_per_step=EPISODES,
                max_staleness=staleness,
                algorithm=run_pb2.ALGORITHM_REINFORCE_PLUS_PLUS,
            ),
            reward=run_pb2.RewardSpec(preference_weight=0, service_weight=1, service=rewards),
            checkpoints=run_pb2.CheckpointSpec(every_steps=STEPS),
        )
    )
    spec.services.policy[:], spec.services.policy_control[:] = [policy.main], [policy.control]
    artifacts = Artifacts(folder, "benchmark")
    write_text(artifacts.spec, json_format.MessageToJson(spec))
    reporter = Reporter(artifacts, "benchmark", 1, "")
    services = Services(spec.services, reporter)
    try:
        prompts = PromptSets(PROMPTS, PROMPTS, 0)
        constitution = judge_pb2.Constitution()
        leader = Leader(reporter)
        tokenizer = ChatTokenizer.load(str(model))
        run = Run("benchmark", spec, artifacts, services, reporter, leader, prompts, constitution, tokenizer)
        with reporter.in_phase(Reinforcement.phase):
            Reinforcement().work(run)
    finally:
        services.close()
    steps = read_run_folder(folder).ppo_steps
    return [steps[step] for step in range(2, STEPS + 1)]


def main() -> None:
    """Alternate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--engine", choices=("fake", "transformers"), default="fake")
    parser.add_argument("--seconds-per-token", type=float, default=0.1, help="of the fake engine")
    options = parser.parse_args()
    settings = [f"--setting=seconds_per_token={options.seconds_per_token}"] if options.engine == "fake" else []
    found: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        policy = Process(folder, "policy", f"--model={options.model}", f"--engine={options.engine}", *settings)
        stack.enter_context(policy)
        rewards = stack.enter_context(
            reward_service(lambda request: [(item.id, len(item.answer) % 7 / 7) for item in request.items])
        )
        policy.wait_serving()
        for turn in range(ROUNDS):
            for staleness, steps in found.items():
                steps += steps_of(folder / f"{turn}-{staleness}", options.model, policy, rewards, staleness)
                last = steps[1 - STEPS :]
                shown = ", ".join(f"{name} {mean(step[name] for step in last):.2f}" for name in SHOWN)
                CONSOLE.print(f"max_staleness {staleness}: {shown}")
    seconds = {staleness: [step["step_seconds"] for step in steps] for staleness, steps in found.items()}
    ideal = mean(
        step["step_seconds"] / max(step["waiting_seconds"], step["step_seconds"] - step["waiting_seconds"])
        for step in found[0]
    )
    CONSOLE.print(
        f"median step {median(seconds[0]):.1f} s with max_staleness 0, {median(seconds[1]):.1f} s with 1: "
        f"ratio {median(seconds[0]) / median(seconds[1]):.2f}; perfect overlap would be {ideal:.2f}; "
        f"{len(seconds[0])} steps each, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()
