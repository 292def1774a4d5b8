"""The table of the demo's runs (docs/measurements/demo.md), from their folders: one line each.

python -m tests.benchmarks.demo.seeds RUN_FOLDER...
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from charter.cli.local.demo_verdict import ALIGNED, JUDGE, START
from charter.evaluation.compare.folder import EvaluationFolder
from rich.console import Console


def line(folder: Path) -> str:
    """Of a run: seed, both judges' win rates in percent, tokens, nats, the request's words, seconds."""
    spec = json.loads((folder / "spec.json").read_text())
    compared = json.loads((folder / "comparison" / "result.json").read_text())
    own = json.loads((folder / "evaluation.json").read_text())
    (standing,) = [one for one in compared["standings"] if (one["judge"], one["model"]) == (JUDGE, ALIGNED)]
    rate, controlled = standing["win_rate"]["win_rate"], standing["length_controlled"]
    tokens, texts = compared["mean_tokens"], compared["texts"]
    seconds = json.loads((folder / "run.json").read_text())["phase_seconds"]
    cells = (
        spec.get("seed", 0),
        percent(rate),
        percent(controlled) if controlled else "",
        percent({"value": own["win_rate"], "low": own["win_rate_low"], "high": own["win_rate_high"]}),
        f"{tokens[START]:.1f}, {tokens[ALIGNED]:.1f}",
        ", ".join(f"{texts[name]['nats_per_token']['value']:.2f}" for name in (START, ALIGNED)),
        ", ".join(f"{echo(folder, name):.0%}" for name in (START, ALIGNED)),
        f"{sum(seconds.values()):.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def percent(found: dict[str, Any]) -> str:
    """A share with its interval."""
    return f"{100 * found['value']:.0f} [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"


def echo(folder: Path, model: str) -> float:
    """Mean share of a request's words that the model's answers use: a judge of relevance can be pleased by echoes."""
    stored = EvaluationFolder(folder / "comparison")
    asked = {prompt.key: words(prompt.messages[-1].content) for prompt in stored.read_prompts()}
    return fmean(
        len(asked[one.prompt] & words(one.text)) / len(asked[one.prompt])
        for one in stored.read_answers().values()
        if one.model == model and not one.failure
    )


def words(text: str) -> set[str]:
    """Those of a text, in lower case and without punctuation."""
    return {word.strip(".,!?;:\"'()") for word in text.lower().split()} - {""}


if __name__ == "__main__":
    say = Console(width=200, highlight=False).print
    say("| seed | encoder | equally long | own judge | tokens, before and after | nats | echo | seconds |")
    for name in sys.argv[1:]:
        say(line(Path(name)))
