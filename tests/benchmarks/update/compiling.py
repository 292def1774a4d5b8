"""Whether ``torch.compile`` pays in an update, in CPU seconds of one thread of one run, compiling included.

    python -m tests.benchmarks.update.compiling MODEL PROMPTS

Forward and backward of the trunk over packed micro-batches of changing lengths, as they come in a run; its layers are
compiled one by one with dynamic shapes, their attention, which differs for every micro-batch, is not. Needs a C++
compiler.
"""

import argparse
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Else the compiler's processes would not be counted.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"

import torch
from charter.inference.cpu_attention import attend_in_tree
from charter.worker.batches import MicroBatch, collate
from charter.worker.models import LanguageModel
from torch import Tensor
from transformers import AttentionInterface

from tests.benchmarks.update.packing import CONSOLE, CPU, EPISODES, make_episodes

_NAME, _MEASURED = "charter_outside_the_compiled", 4


def seconds(work: Callable[[], Any]) -> float:
    """CPU seconds of this process and of those that it waited for."""

    def now() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    start = now()
    work()
    return now() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("prompts", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trunk = LanguageModel.load(options.model, CPU).model.base_model
    batches = [
        collate(make_episodes(options.model, options.prompts, seed), range(EPISODES // 2), CPU)
        for seed in range(2 * _MEASURED)
    ]
    present: list[MicroBatch] = []

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        found = attend_in_tree(query, key, value, present[0].segments, scaling)
        return found.transpose(1, 2).contiguous(), None

    AttentionInterface.register(_NAME, torch.compiler.disable(attention))
    trunk.set_attn_implementation(_NAME)

    def forward_and_backward(batch: MicroBatch) -> None:
        present[:] = [batch]
        states = trunk(input_ids=batch.input_ids, position_ids=batch.positions, use_cache=False).last_hidden_state
        torch.autograd.backward(states.index_select(1, batch.states).square().sum())
        trunk.zero_grad()

    def each(several: list[MicroBatch]) -> list[float]:
        return [seconds(lambda batch=batch: forward_and_backward(batch)) for batch in several]  # type: ignore[misc]

    each(batches[:1])  # The first call allocates.
    plain = sum(each(batches[_MEASURED:]))
    for layer in trunk.layers:
        layer.compile(dynamic=True)
    first = each(batches[:_MEASURED])
    compiled = sum(each(batches[_MEASURED:]))
    tokens = sum(batch.input_ids.shape[1] for batch in batches[_MEASURED:])
    CONSOLE.print(
        f"{_MEASURED} micro-batches, {tokens} tokens: plain {plain:.1f} s, compiled {compiled:.1f} s, ratio "
        f"{plain / compiled:.2f}; the {_MEASURED} before, which compile: {', '.join(f'{one:.1f}' for one in first)} s"
    )


if __name__ == "__main__":
    main()
