"""Peak memory of PPO steps in a process of its own, against what the plan of a shared GPU computes.

    python -m tests.benchmarks.worker_memory --model FOLDER [--lora-rank 16] [--gradient-checkpointing]

On a CPU, where the resident memory of the process is what a GPU would hold, less what it held before the models. With
several processes, started by ``python -m charter.worker.training.torchrun --standalone --nproc-per-node=2 -m``, the
largest of them, against the formula of docs/ppo.md for sharded models.
"""

import argparse
import resource
import sys
from pathlib import Path

import torch
from charter.memory.model_size import model_size
from charter.memory.needs import ppo_need
from charter.spec.defaults import fill_defaults
from charter.v1 import run_pb2
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import BACKWARD_TOKENS
from charter.worker.training import ranks
from charter.worker.training.batches import Episodes

from tests.support.learners import make_learner

MIB = 2**20
_ANSWERS, _PROMPT_TOKENS, _ANSWER_TOKENS = 4, 128, 64


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _episodes() -> Episodes:
    """Answers that fill one micro-batch of each rank."""
    count = _ANSWERS * ranks.size()
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 200, (count,), generator=generator).tolist())

    return Episodes(
        prompts=tuple(ids(_PROMPT_TOKENS) for _ in range(count)),
        answers=tuple(ids(_ANSWER_TOKENS) for _ in range(count)),
        groups=torch.arange(count),
        ended=torch.ones(count, dtype=torch.bool),
        scores=torch.randn(count, generator=generator),
        sampler_logprobs=torch.full((count, _ANSWER_TOKENS), -2.0),
        ages=torch.zeros(count, _ANSWER_TOKENS, dtype=torch.int64),
    )


def main() -> None:
    """Two steps, so that the second one has the moments of the optimisers from its start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lora-rank", type=int)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    options = parser.parse_args()
    assert _ANSWERS * (_PROMPT_TOKENS + _ANSWER_TOKENS) == BACKWARD_TOKENS
    values = {"gradient_checkpointing": options.gradient_checkpointing, "minibatches": 1, "steps": 2}
    if options.lora_rank:
        values["lora_rank"] = options.lora_rank
    spec = fill_defaults(run_pb2.RunSpec(ppo=run_pb2.PpoSpec(**values)))
    ranks.join()
    size = model_size(str(options.model))
    need = ppo_need(size, spec)
    planned = need.state + need.step
    if ranks.size() > 1:
        # Of what is sharded: gradients, too. Whole meanwhile: what is outside the layers, and two layers.
        layer = size.linear_parameters // size.layers
        outside = size.parameters - size.linear_parameters
        sharded = need.state + 4 * size.parameters
        planned += 4 * (2 * outside + 3 * layer) - sharded * (ranks.size() - 1) // ranks.size()
    before = _peak()
    learner = make_learner(options.model, **values)
    loaded = _peak() - before
    controls = Controls(0.05)
    for step in range(2):
        _, controls, _ = learn(learner, _episodes(), step, controls)
    measured = max(ranks.collect(_peak() - before))
    if ranks.rank() > 0:
        ranks.leave()
        return
    sys.stdout.write(
        f"planned {planned / MIB:.0f} MiB for each of {ranks.size()}; for one alone state {need.state / MIB:.0f}, step "
        f"{need.step / MIB:.0f}\n"
        f"measured {measured / MIB:.0f} MiB, {loaded / MIB:.0f} of them when the models were loaded; "
        f"measured / planned {measured / planned:.3f}\n"
    )
    ranks.leave()


if __name__ == "__main__":
    main()
