"""``charter preferences curve`` on a running store and a tiny model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from charter.cli.main import app
from charter.preference.server import PreferenceConfig, build
from typer.testing import CliRunner, Result

from tests.support.harness import running


@pytest.fixture
def address(tiny_model: Path, tmp_path: Path) -> Iterator[str]:
    config = PreferenceConfig({"default": str(tiny_model)}, f"sqlite:///{tmp_path}/charter.db", tmp_path / "staging")
    with running(build(config)) as addresses:
        yield addresses.main


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["preferences", *map(str, arguments)])


def store_pairs(address: str, folder: Path, count: int) -> None:
    """The better answer is made of other letters than the worse one."""
    file = folder / "pairs.jsonl"
    rows = [
        {"prompt": f"Question {n}?", "chosen": "aab" * (1 + n % 5), "rejected": "zyz" * (1 + n % 4)}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("import", file, "--address", address).exit_code == 0


def test_a_curve_of_nested_parts_on_the_same_held_out_pairs(address: str, tiny_model: Path, tmp_path: Path) -> None:
    store_pairs(address, tmp_path, 60)
    plot = tmp_path / "curve.svg"
    options: list[str | Path] = ["--model", tiny_model, "--address", address, "--learning-rate", "0.001"]
    done = call("curve", *options, "--plot", plot, "--json")
    assert done.exit_code == 0, done.output
    points = json.loads(done.stdout)
    assert [point["percent"] for point in points] == [10.0, 30.0, 100.0]
    pairs = [point["pairs"] for point in points]
    assert pairs == sorted(set(pairs))
    assert len({point["held_out"]["pairs"] for point in points}) == 1
    assert pairs[-1] + points[-1]["held_out"]["pairs"] == 60
    # Letters are easy to tell apart.
    assert points[-1]["held_out"]["accuracy"] == 1.0
    assert "held-out accuracy" in plot.read_text()
    shown = call("curve", *options, "--percent", "50", "--percent", "100")
    assert shown.exit_code == 0
    assert "100 %" in shown.stdout
    # The same seed gives the same fit.
    again = json.loads(call("curve", *options, "--percent", "100", "--json").stdout)
    assert again[0] == points[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--percent", "0"], "--percent must lie above 0"),
        (["--percent", "101"], "--percent must lie above 0"),
        (["--plot", "curve.txt"], "--plot must end in .svg, .png, .pdf"),
        (["--dimension", "unknown"], "only 0 of 0 comparisons can be used"),
        (["--run", "unknown"], "holds no comparison of a run with the id `unknown`"),
    ],
)
def test_what_cannot_be_drawn_is_said(address: str, tiny_model: Path, arguments: list[str], words: str) -> None:
    done = call("curve", "--model", tiny_model, "--address", address, *arguments)
    assert done.exit_code == 1
    assert words in " ".join(done.stderr.split())
