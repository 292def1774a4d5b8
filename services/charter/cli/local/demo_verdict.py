"""What the demo says at its end: did the model get better, by a judge that trained nothing and by the one that did."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from charter.cli.output import console, print_table

# Names of examples/demo.yaml.
JUDGE, ALIGNED, START = "relevance", "policy", "start"


def show_verdict(folder: Path) -> None:
    """Print the win rates of a run of examples/demo.yaml, from the files in its folder."""
    compared = json.loads((folder / "comparison" / "result.json").read_text(encoding="utf-8"))
    own = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    (standing,) = [one for one in compared["standings"] if (one["judge"], one["model"]) == (JUDGE, ALIGNED)]
    rate = standing["win_rate"]["win_rate"]
    table = Table(
        "judged by", "prompts", "wins against the start", "95 %", title="The aligned model, on held-out prompts"
    )
    table.add_row("a judge that trained nothing (a sentence encoder)", *_cells(rate))
    if (controlled := standing["length_controlled"]) is not None:
        table.add_row("... at equal lengths", *_cells(controlled))
    low, high = own["win_rate_low"], own["win_rate_high"]
    judged = own["wins"] + own["ties"] + own["losses"]
    table.add_row(
        "the judge that trained it", *_cells({"value": own["win_rate"], "low": low, "high": high, "prompts": judged})
    )
    print_table(table)
    tokens = compared["mean_tokens"]
    console.print(_sentence(rate), soft_wrap=True)
    console.print(
        f"Its answers have {tokens[ALIGNED]:.0f} tokens on average, those of the start {tokens[START]:.0f}.",
        soft_wrap=True,
    )


def _cells(rate: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(rate["prompts"]), f"{rate['value']:.0%}", f"{rate['low']:.0%} to {rate['high']:.0%}"


def _sentence(rate: Mapping[str, Any]) -> str:
    if rate["low"] > 0.5:
        return "It got better beyond chance: the whole interval of the first line lies above 50 %."
    if rate["high"] < 0.5:
        return "It got worse beyond chance: the whole interval of the first line lies below 50 %."
    return "Whether it got better is open: the interval of the first line holds 50 %."
