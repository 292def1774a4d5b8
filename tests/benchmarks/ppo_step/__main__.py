"""Episodes per second and peak memory of whole PPO steps, Charter against TRL 1.10's experimental PPOTrainer.

    .venv/bin/uv pip install --no-deps --target TRL -r requirements/benchmarks.txt
    python -m tests.benchmarks.ppo_step --model FOLDER --prompts FILE.jsonl --trl TRL

Both stay loaded, each in a process of its own, and take turns step by step, so that what else the machine does falls on
both alike; processor time does not count it at all. Each side's first step is not counted.
"""

import statistics
from pathlib import Path

from rich.console import Console

from tests.benchmarks.ppo_step.paired import NAMES, arguments
from tests.benchmarks.turns import Figures, as_arguments, take_turns

CONSOLE = Console(width=120)


def say(number: int, found: Figures) -> None:
    """A line for a step."""
    CONSOLE.print(
        f"step {number}: " + ", ".join(f"{name} {steps[-1]['seconds']:.1f} s" for name, steps in found.items())
    )


def main() -> None:
    """Measure, and print a line for each step and the ratios."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--trl", type=Path, required=True, help="folder that requirements/benchmarks.txt is installed in"
    )
    options = parser.parse_args()
    found = take_turns("tests.benchmarks.ppo_step", as_arguments(options, NAMES), options.trl, options.steps, say)
    ours, theirs = found["charter"], found["trl"]
    ratios, in_processor_time = (
        [other[clock] / one[clock] for one, other in zip(ours, theirs, strict=True)]
        for clock in ("seconds", "processor")
    )
    peaks = [one["gemm_operations_per_second"] for one in ours]
    reached = statistics.median(
        one["update_operations"] / one["update_seconds"] / peak for one, peak in zip(ours, peaks, strict=True)
    )
    for name, steps in found.items():
        rate = options.episodes / statistics.median(one["seconds"] for one in steps)
        processor = statistics.median(one["processor"] for one in steps)
        CONSOLE.print(
            f"{name}: {rate:.2f} episodes per second, {processor:.1f} s of processor time for a step, "
            f"peak memory {steps[-1]['peak_gib']:.1f} GiB"
        )
    shares = {
        name: statistics.median(one[f"{name}_seconds"] / one["seconds"] for one in ours)
        for name in ("sampling", "scoring", "update", "sending")
    }
    CONSOLE.print(
        f"Charter is {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}), in "
        f"processor time {statistics.median(in_processor_time):.2f} times ({min(in_processor_time):.2f} to "
        f"{max(in_processor_time):.2f})"
    )
    CONSOLE.print(
        f"Charter's step: {', '.join(f'{name} {share:.0%}' for name, share in shares.items())}; the update reaches "
        f"{reached:.0%} of what square matrix products do before each step ({min(peaks) / 1e9:.0f} to "
        f"{max(peaks) / 1e9:.0f} GFLOP/s)"
    )


if __name__ == "__main__":
    main()
