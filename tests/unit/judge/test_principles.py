"""The draw of principles: reproducible, by weight, without replacement."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from charter.judge.principles import INSTRUCTION_ID, draw, principles_for
from charter.rpc.errors import StatusError
from charter.spec.constitution import load_constitution
from charter.v1 import judge_pb2

GENERAL = load_constitution(Path(__file__).parents[3] / "examples" / "constitutions" / "general.yaml")


def test_a_draw_depends_on_seed_and_item_alone() -> None:
    options = judge_pb2.JudgingOptions(seed=3)
    first = [principles_for(f"item-{i}", "", options, GENERAL)[0].id for i in range(50)]
    assert first == [principles_for(f"item-{i}", "", options, GENERAL)[0].id for i in range(50)]
    assert len(set(first)) > 5
    other = judge_pb2.JudgingOptions(seed=4)
    assert first != [principles_for(f"item-{i}", "", other, GENERAL)[0].id for i in range(50)]


def test_chances_are_the_weights() -> None:
    kind, safe, true = (replace(GENERAL.principles[0], id=name) for name in ("kind", "safe", "true"))
    candidates = (replace(kind, weight=1.0), replace(safe, weight=3.0), replace(true, weight=6.0))
    counts = Counter(draw(candidates, 1, 0, str(item))[0].id for item in range(20_000))
    # Standard error of each share is below 0.0036.
    assert {name: count / 20_000 for name, count in counts.items()} == pytest.approx(
        {"kind": 0.1, "safe": 0.3, "true": 0.6}, abs=0.015
    )
    # The second of two without replacement: P(kind second) = 0.3 * 1/7 + 0.6 * 1/4.
    second = Counter(draw(candidates, 2, 0, str(item))[1].id for item in range(20_000))
    assert second["kind"] / 20_000 == pytest.approx(0.3 / 7 + 0.6 / 4, abs=0.015)


def test_an_ensemble_has_no_principle_twice_and_stays_in_its_dimension() -> None:
    options = judge_pb2.JudgingOptions(ensemble_size=6, dimension="harmless")
    drawn = principles_for("item", "", options, GENERAL)
    assert {one.id for one in drawn} == {one.id for one in GENERAL.of_dimension("harmless")}
    # The item's own dimension comes first.
    assert {one.dimension for one in principles_for("item", "helpful", options, GENERAL)} == {"helpful"}


def test_a_named_principle_and_an_instruction_are_not_drawn() -> None:
    named = principles_for("item", "helpful", judge_pb2.JudgingOptions(principle_id="truthful"), GENERAL)
    assert [one.id for one in named] == ["truthful"]
    (told,) = principles_for("item", "", judge_pb2.JudgingOptions(instruction="Prefer French."), GENERAL)
    assert (told.id, told.follow) == (INSTRUCTION_ID, "Prefer French.")


@pytest.mark.parametrize(
    ("options", "dimension", "code", "message"),
    [
        (judge_pb2.JudgingOptions(principle_id="nope"), "", grpc.StatusCode.NOT_FOUND, "answers-the-question"),
        (judge_pb2.JudgingOptions(dimension="nope"), "", grpc.StatusCode.NOT_FOUND, "harmless, helpful, honest"),
        (judge_pb2.JudgingOptions(ensemble_size=5), "honest", grpc.StatusCode.INVALID_ARGUMENT, "has 4 principles"),
    ],
)
def test_what_does_not_exist_is_named(
    options: judge_pb2.JudgingOptions, dimension: str, code: grpc.StatusCode, message: str
) -> None:
    with pytest.raises(StatusError, match=message) as caught:
        principles_for("item", dimension, options, GENERAL)
    assert caught.value.code is code
