"""The calibration file, and the symmetry of what it makes of evidence."""

import json
import math
from pathlib import Path

import pytest
from charter.judge.calibration import Calibration, CalibrationSet, Evidence, MethodCalibration, MixCalibration
from charter.judge.calibration_file import CalibrationError, CalibrationFile, load_calibration, write_calibration
from charter.outcomes import mean_probability, outcome_of
from charter.v1 import types_pb2
from hypothesis import given
from hypothesis import strategies as st

EVIDENCE = st.floats(-50, 50)
CALIBRATION = st.builds(
    MethodCalibration,
    temperature=st.floats(0.01, 100),
    position_bias=st.floats(-5, 5),
    oppose_weight=st.floats(0, 1),
    lapse=st.floats(0, 0.49),
)


def test_probabilities_by_hand() -> None:
    calibration = MethodCalibration(temperature=2.0, position_bias=1.0, oppose_weight=0.5)
    first, second = calibration.probabilities(Evidence.ORDERS, (3.0, -1.0))
    assert first == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert second == pytest.approx(0.5)
    (contrast,) = calibration.probabilities(Evidence.LEADS, (3.0, 2.0))
    assert contrast == pytest.approx(1 / (1 + math.exp(-1.0)))
    # A fifth of the labels is wrong whatever the evidence.
    (contrast,) = MethodCalibration(2.0, 1.0, 0.5, lapse=0.2).probabilities(Evidence.LEADS, (3.0, 2.0))
    assert contrast == pytest.approx(0.2 + 0.6 / (1 + math.exp(-1.0)))


@given(EVIDENCE, EVIDENCE, CALIBRATION)
def test_exchanging_the_answers_gives_the_complement(one: float, two: float, calibration: MethodCalibration) -> None:
    straight = calibration.probabilities(Evidence.ORDERS, (one, two))
    # With A and B exchanged, A first is what was B second.
    exchanged = calibration.probabilities(Evidence.ORDERS, (-two, -one))
    assert mean_probability(exchanged) == 1 - mean_probability(straight)
    (p,), (q,) = (calibration.probabilities(Evidence.LEADS, numbers) for numbers in ((one, two), (-one, -two)))
    assert p == 1 - q
    assert 0 <= p <= 1


WEIGHT = st.floats(-5, 5)
MIX = st.builds(MixCalibration, WEIGHT, WEIGHT, WEIGHT, WEIGHT, WEIGHT, lapse=st.floats(0, 0.49))


@given(st.lists(EVIDENCE, min_size=6, max_size=6), MIX)
def test_a_mix_of_exchanged_answers_gives_the_complement(evidence: list[float], mix: MixCalibration) -> None:
    first, second, *others = evidence
    (p,) = mix.probabilities(Evidence.MIX, tuple(evidence))
    (q,) = mix.probabilities(Evidence.MIX, (-second, -first, *(-number for number in others)))
    assert p == 1 - q


@given(EVIDENCE, CALIBRATION, MIX)
def test_opposite_evidence_in_both_orders_is_a_tie(
    one: float, calibration: MethodCalibration, mix: MixCalibration
) -> None:
    """A judge that sees nothing but positions, whatever it is calibrated by."""
    assert (
        outcome_of(mean_probability(calibration.probabilities(Evidence.ORDERS, (one, -one)))) == types_pb2.OUTCOME_TIE
    )
    assert mix.probabilities(Evidence.MIX, (one, -one, 0.0, 0.0, 0.0, 0.0)) == (0.5,)


def test_a_mix_by_hand() -> None:
    mix = MixCalibration(choice=2.0, contrast_follow=1.0, contrast_oppose=-0.5)
    assert mix.methods == ("choice", "contrast")
    (p,) = mix.probabilities(Evidence.MIX, (1.0, -0.5, 0.0, 0.0, 0.4, 0.2))
    assert p == pytest.approx(1 / (1 + math.exp(-(2 * 0.25 + 0.4 - 0.1))))
    assert mix.only(["contrast"]) == MixCalibration(contrast_follow=1.0, contrast_oppose=-0.5)
    assert mix.sharpened(2.0) == MixCalibration(choice=4.0, contrast_follow=2.0, contrast_oppose=-1.0)
    lapsing = MixCalibration(choice=2.0, contrast_follow=1.0, contrast_oppose=-0.5, lapse=0.1)
    assert lapsing.probabilities(Evidence.MIX, (1.0, -0.5, 0.0, 0.0, 0.4, 0.2)) == pytest.approx((0.1 + 0.8 * p,))
    assert lapsing.sharpened(3.0).lapse == lapsing.only(["choice"]).lapse == 0.1


def test_a_file_survives_writing_and_reading(tmp_path: Path) -> None:
    methods: dict[str, Calibration] = {
        "contrast": MethodCalibration(0.1, 0.0, 0.9, 0.05),
        "mix": MixCalibration(verdict_follow=0.5),
    }
    dimensions: dict[str, dict[str, Calibration]] = {
        "harmless": {"contrast": MethodCalibration(0.05), "mix": MixCalibration(choice=1.0)}
    }
    written = CalibrationFile("model", "digest", methods, {"pairs": 3}, dimensions, ("0f", "a1"), 3)
    write_calibration(tmp_path / "c.json", written)
    assert load_calibration(tmp_path / "c.json") == written
    contrast, mix = written.of("contrast"), written.of("mix")
    assert contrast is not None
    assert mix is not None
    assert written.of("choice") is None
    assert contrast.of("harmless") == MethodCalibration(0.05)
    assert contrast.of("helpful") == contrast.of("") == methods["contrast"]
    # What any dimension needs is asked of all.
    assert mix.mixed == ("verdict", "choice")
    assert CalibrationSet(methods["contrast"]).mixed == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {"oracle": {}}}, "unknown method 'oracle'"),
        ({"methods": {"choice": {"temperature": 0}}}, "methods.choice.temperature: must be above 0"),
        ({"methods": {"choice": {"temperature": "hot"}}}, "methods.choice.temperature: must be a finite number"),
        ({"methods": {"mix": {"temperature": 1}}}, "methods.mix: unknown field 'temperature'"),
        ({"methods": {"choice": {"lapse": 0.5}}}, "methods.choice.lapse: must be at least 0 and below 0.5"),
        ({"methods": {"mix": {"choice": 0, "lapse": 0.1}}}, "methods.mix: needs a weight that is not 0"),
        ({"methods": {"choice": {"heat": 1}}}, "unknown field 'heat'"),
        ({"dimensions": {"kind": {"choice": {}}}}, "dimensions.kind: unknown method 'choice'"),
        (
            {"methods": {"choice": {}}, "dimensions": {"kind": {"choice": {"temperature": -1}}}},
            "dimensions.kind.choice.temperature: must be above 0",
        ),
        ({"extra": 1}, "unknown field 'extra'"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = {"model": "m", "constitution_digest": "d", "methods": {}, "conditions": {}} | change
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(CalibrationError, match=message):
        load_calibration(tmp_path / "c.json")


@pytest.mark.parametrize(("text", "message"), [("{", "c.json"), ("[]", "JSON object"), ("{}", "methods is missing")])
def test_a_file_of_another_shape_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(CalibrationError, match=message):
        load_calibration(tmp_path / "c.json")
