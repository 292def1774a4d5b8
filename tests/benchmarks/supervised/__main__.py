"""Learned tokens per second and peak memory of fine-tuning steps, Charter against TRL's SFTTrainer.

    .venv/bin/uv pip install --no-deps --target TRL trl==1.16.0 datasets==5.2.0 multiprocess==0.70.19 pandas==3.1.1
    python -m tests.benchmarks.supervised --model FOLDER --conversations FILE.jsonl --trl TRL

Both learn the same tokens of the same conversations and take turns step by step. Each side's first step is not counted.
TRL packs, so its steps hold other conversations: what is compared is learned tokens per second of all steps.
"""

from pathlib import Path

from rich.console import Console

from tests.benchmarks.supervised.sides import NAMES, arguments
from tests.benchmarks.turns import Figures, as_arguments, take_turns

CONSOLE = Console(width=120)


def say(number: int, found: Figures) -> None:
    """A line for a step."""
    lines = (
        f"{name} {one[-1]['tokens']:.0f} tokens, loss {one[-1]['loss']:.3f}, {one[-1]['seconds']:.1f} s"
        for name, one in found.items()
    )
    CONSOLE.print(f"step {number}: {'; '.join(lines)}")


def main() -> None:
    """Measure, and print a line for each step and the ratios."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--trl", type=Path, required=True, help="folder that TRL is installed in")
    options = parser.parse_args()
    found = take_turns("tests.benchmarks.supervised", as_arguments(options, NAMES), options.trl, options.steps, say)
    rates = {
        name: {clock: total(steps, "tokens") / total(steps, clock) for clock in ("seconds", "processor")}
        for name, steps in found.items()
    }
    for name, rate in rates.items():
        CONSOLE.print(
            f"{name}: {rate['seconds']:.1f} learned tokens per second, {rate['processor']:.1f} per second of processor "
            f"time, peak memory {found[name][-1]['peak_gib']:.1f} GiB"
        )
    ours, theirs = rates["charter"], rates["trl"]
    CONSOLE.print(
        f"Charter is {ours['seconds'] / theirs['seconds']:.2f} times as fast, in processor time "
        f"{ours['processor'] / theirs['processor']:.2f} times"
    )


def total(steps: list[dict[str, float]], name: str) -> float:
    """Sum of a figure over the steps."""
    return sum(one[name] for one in steps)


if __name__ == "__main__":
    main()
