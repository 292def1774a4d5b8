"""What the demo says at its end."""

import json
from pathlib import Path
from typing import Any

import pytest
from charter.cli.local.demo_verdict import show_verdict


def write(folder: Path, rate: tuple[float, float, float], controlled: tuple[float, float, float] | None) -> None:
    def estimate(found: tuple[float, float, float]) -> dict[str, Any]:
        return dict(zip(("value", "low", "high"), found, strict=True)) | {"prompts": 160}

    # The start and another judge have lines of their own.
    others = [{"judge": "relevance", "model": "start"}, {"judge": "own", "model": "policy"}]
    standing = {
        "judge": "relevance",
        "model": "policy",
        "win_rate": {"win_rate": estimate(rate)},
        "length_controlled": None if controlled is None else estimate(controlled),
    }
    (folder / "comparison").mkdir()
    compared = {"standings": [*others, standing], "mean_tokens": {"start": 47.2, "policy": 45.9}}
    (folder / "comparison" / "result.json").write_text(json.dumps(compared))
    own = {"win_rate": 0.71, "win_rate_low": 0.55, "win_rate_high": 0.82, "wins": 28, "ties": 1, "losses": 11}
    (folder / "evaluation.json").write_text(json.dumps(own))


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ((0.62, 0.54, 0.69), "It got better beyond chance"),
        ((0.55, 0.47, 0.62), "Whether it got better is open"),
        ((0.57, 0.5, 0.62), "Whether it got better is open"),
        ((0.38, 0.31, 0.46), "It got worse beyond chance"),
    ],
)
def test_a_gain_is_said_only_where_the_interval_shows_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: tuple[float, float, float], said: str
) -> None:
    write(tmp_path, rate, (0.61, 0.53, 0.68))
    show_verdict(tmp_path)
    assert said in capsys.readouterr().out


def test_every_judge_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, (0.62, 0.54, 0.69), (0.61, 0.53, 0.68))
    show_verdict(tmp_path)
    shown = " ".join(capsys.readouterr().out.split())
    for figure in ("62%", "54% to 69%", "61%", "53% to 68%", "71%", "55% to 82%", "46 tokens", "47"):
        assert figure in shown


def test_lengths_that_cannot_be_controlled_for_have_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, (0.62, 0.54, 0.69), None)
    show_verdict(tmp_path)
    assert "equal lengths" not in capsys.readouterr().out
