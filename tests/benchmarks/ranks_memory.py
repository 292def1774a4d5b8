"""What one PPO step takes of memory on each rank, beside the formula of docs/ppo.md.

One process:   python -m tests.benchmarks.ranks_memory --model MODEL
More:          torchrun --standalone --nproc-per-node=2 -m tests.benchmarks.ranks_memory --model MODEL

The peak is the resident memory of the process during the step, less what it had before the models were loaded, so that
it includes activations and what the allocator does not give back.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker import ranks
from charter.worker.stages.ppo import make_learner
from charter.worker.step import Controls, learn
from charter.worker.update import Learner
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.learners import make_episodes

_MB = 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--episodes", type=int, default=8)
    options = parser.parse_args()
    ranks.join()
    ranks.use_cores()
    spec = fill_defaults(run_pb2.RunSpec(policy=run_pb2.PolicySpec(model=options.model)))
    before = _memory("VmRSS")
    learner = make_learner(spec, None, ranks.device())
    # From here on the kernel notes a new peak.
    Path("/proc/self/clear_refs").write_text("5")
    learn(learner, make_episodes(count=options.episodes), 0, Controls(0.05))
    peak = _memory("VmHWM") - before
    held = sum(ranks.local(one).nbytes for one in _tensors(learner))
    each = ranks.collect((held, peak))
    if ranks.rank() == 0:
        for rank, (its_held, its_peak) in enumerate(each):
            _say(f"rank {rank}: weights and moments {its_held / _MB:.0f} MB, peak in the step {its_peak / _MB:.0f} MB")
        count = sum(one.numel() for one in learner.actor.parameters())
        layers = [one for one in learner.actor.modules() if isinstance(one, GradientCheckpointingLayer)]
        layer = sum(one.numel() for one in layers[0].parameters())
        rest = count - len(layers) * layer
        held_formula = 28 * count / ranks.size()
        whole = 0 if ranks.size() == 1 else 4 * (2 * rest + 3 * layer)
        peak_formula = 32 * count / ranks.size() + whole
        _say(f"N {count / 1e6:.1f}M, of it outside the layers {rest / 1e6:.1f}M, in one {layer / 1e6:.2f}M")
        _say(f"formula: {held_formula / _MB:.0f} MB, peak without activations {peak_formula / _MB:.0f} MB")
    ranks.leave()


def _tensors(learner: Learner) -> list[torch.Tensor]:
    """Weights and Adam's moments, each once."""
    assert learner.critic is not None
    assert learner.critic_optimizer is not None
    modules: list[nn.Module | None] = [learner.actor, learner.critic, learner.reference]
    found: list[Any] = [one for module in modules if module is not None for one in module.parameters()]
    for optimizer in (learner.actor_optimizer, learner.critic_optimizer):
        found += [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    return found


def _memory(field: str) -> int:
    """A field of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (one for one in lines if one.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
