"""`charter audit` against a running preference service."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from charter.cli.main import app
from charter.cli.output import console
from charter.preference.server import PreferenceConfig, build
from charter.rpc.channel import QUICK, connect
from charter.v1 import preference_pb2, preference_pb2_grpc, types_pb2
from typer.testing import CliRunner, Result

from tests.support.comparisons import comparison
from tests.support.harness import running

A, B, INVALID = types_pb2.OUTCOME_PREFERRED_A, types_pb2.OUTCOME_PREFERRED_B, types_pb2.OUTCOME_INVALID


def judgement(principle: str, probability: float | None, **fields: Any) -> types_pb2.PrincipleJudgement:
    outcome = INVALID if probability is None else A if probability > 0.5 else B
    return types_pb2.PrincipleJudgement(
        principle_id=principle,
        dimension="helpful",
        outcome=outcome,
        probability_a=probability,
        prompt_tokens=100,
        completion_tokens=20,
        **fields,
    )


def label(text: str, probability: float | None, *judgements: types_pb2.PrincipleJudgement) -> types_pb2.Comparison:
    outcome = INVALID if probability is None else A if probability > 0.5 else B
    return comparison(
        text,
        probability,
        outcome=outcome,
        judgements=judgements,
        run_id="run-1",
        labeller="org/judge",
        method="choice",
        constitution_digest="c" * 64,
        dimension="helpful",
    )


LABELS = [
    label(
        "[bold]Yes[/] \x1b[2J\u202e",
        0.7,
        judgement("kind", 0.9, probability_a_shown_first=0.95, probability_a_shown_second=0.85, rationale="A is kind."),
        judgement("brief", 0.2, probability_a_shown_first=0.6, probability_a_shown_second=0.1, evidence=[0.4, -2.2]),
    ),
    label("Perhaps", 0.6, judgement("kind", 0.8), judgement("brief", 0.6)),
    label("", None, judgement("kind", None, failure="answer A is empty")),
]


@pytest.fixture(scope="module")
def address(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("store")
    config = PreferenceConfig({"default": str(tiny_model)}, f"sqlite:///{folder}/charter.db", folder / "staging")
    with running(build(config)) as addresses:
        request = preference_pb2.AddComparisonsRequest(request_id="1", comparisons=LABELS)
        with connect(addresses.main) as channel:
            preference_pb2_grpc.PreferenceServiceStub(channel).AddComparisons(request, timeout=QUICK)
        yield addresses.main


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables do not break words, whatever terminal the tests run in."""
    monkeypatch.setattr(console, "_width", 200)


def audit(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments, "--address", address])


def found(address: str, *arguments: str) -> Any:
    done = audit(address, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_labels_are_listed_with_their_principles(address: str) -> None:
    rows = found(address, "run-1")
    assert [row["answer_a"] for row in rows] == [one.answer_a.text for one in LABELS]
    assert [[one["principle_id"] for one in row["judgements"]] for row in rows] == [
        ["kind", "brief"], ["kind", "brief"], ["kind"],
    ]  # fmt: skip
    assert len(found(address, "run-1", "--principle", "brief")) == 2
    assert len(found(address, "run-1", "--limit", "1")) == 1
    table = audit(address, "run-1", "--limit", "2").stdout
    assert rows[0]["id"][:12] in table
    assert "There are more" in table


def test_one_label_is_shown_whole_and_harmless(address: str) -> None:
    first = found(address, "run-1")[0]
    row = found(address, "run-1", "--comparison", first["id"])
    assert row == first
    assert row["create_time"].endswith("+00:00")
    shown = audit(address, "run-1", "--comparison", first["id"][:10])
    assert shown.exit_code == 0, shown.output
    for expected in (
        "Is water wet?", "[bold]Yes[/]", "A is kind.", "org/judge", "method choice", "c" * 64, "0.950", "0.850",
        "0.600", "0.100", "+0.400  -2.200", "120", "UTC",
    ):  # fmt: skip
        assert expected in shown.stdout
    # What a model wrote cannot clear the screen or turn the direction of writing.
    assert "\\x1b[2J" in shown.stdout
    assert not {"\x1b", "\u202e"} & set(shown.stdout)


def test_the_summary_counts_by_principle_and_names_disagreement(address: str) -> None:
    summary = found(address, "run-1", "--summary")
    assert summary["comparisons"] == 3
    assert summary["outcomes"] == {"preferred_a": 2, "invalid": 1}
    kind, brief = summary["principles"]["kind"], summary["principles"]["brief"]
    assert (kind["judgements"], kind["outcomes"]) == (3, {"preferred_a": 2, "invalid": 1})
    assert kind["failures"] == {"answer A is empty": 1}
    assert kind["mean_distance_from_half"] == pytest.approx(0.35)
    assert (kind["position_bias_rate"], brief["position_bias_rate"]) == (0.0, 1.0)
    assert brief["tokens_per_judgement"] == 120
    assert summary["disagreement"] == [{"principles": ["brief", "kind"], "asked_together": 2, "opposed": 1}]
    (widest,) = summary["widest"]
    assert widest["for_a"] == {"principle": "kind", "probability_a": 0.9}
    assert widest["for_b"] == {"principle": "brief", "probability_a": 0.2}
    text = audit(address, "run-1", "--summary").stdout
    for expected in ("brief and kind", "1 (50%)", "answer A is empty", widest["comparison"][:12]):
        assert expected in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run-1", "--comparison", "nope"), "run run-1 has no comparison nope"),
        (("run-1", "--comparison", "x", "--summary"), "not both"),
        (("run-2",), "holds no comparison of a run with the id `run-2`"),
    ],
)
def test_what_is_not_there_is_said(
    address: str, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("CHARTER_TRAINER_ADDRESS", "127.0.0.1:1")
    done = audit(address, *arguments)
    assert done.exit_code == 1
    assert message in done.stderr.replace("\n", "")


def test_an_id_that_fits_several_labels_is_refused(address: str) -> None:
    labels = [label(f"Answer {number}", 0.6) for number in range(17)]
    for one in labels:
        one.run_id = "run-many"
    with connect(address) as channel:
        request = preference_pb2.AddComparisonsRequest(request_id="2", comparisons=labels)
        added = preference_pb2_grpc.PreferenceServiceStub(channel).AddComparisons(request, timeout=QUICK)
    # Seventeen ids have sixteen first digits.
    (shared, _), *_ = Counter(one[0] for one in added.ids).most_common()
    done = audit(address, "run-many", "--comparison", shared)
    assert done.exit_code == 1
    assert "give more of the id" in done.stderr
