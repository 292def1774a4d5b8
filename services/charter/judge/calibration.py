"""The calibration file: how what a method finds becomes a probability, fitted on labelled pairs."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any


class CalibrationError(ValueError):
    """A calibration file is malformed, or made for another model; the message says where and what."""


@dataclass(frozen=True, slots=True)
class MethodCalibration:
    """Turns evidence into log-odds of A.

    ``choice``, for each order: ``(first - position_bias) / temperature`` and ``(second + position_bias) /
    temperature``. ``verdict`` and ``contrast``: ``(follow - oppose_weight * oppose) / temperature``. Both are odd
    under an exchange of the answers, so swapped pairs get complementary probabilities whatever the numbers are.
    """

    temperature: float = 1.0
    position_bias: float = 0.0
    oppose_weight: float = 1.0

    def sharpened(self, factor: float) -> "MethodCalibration":
        """The same with all log-odds multiplied."""
        return replace(self, temperature=self.temperature / factor)

    def probabilities(self, method: str, evidence: tuple[float, ...]) -> tuple[float, ...]:
        """P(A is better): with A shown first and second for ``choice``, one number for the other methods."""
        one, two = evidence
        if method == "choice":
            first, second = one - self.position_bias, two + self.position_bias
            return _sigmoid(first / self.temperature), _sigmoid(second / self.temperature)
        return (_sigmoid((one - self.oppose_weight * two) / self.temperature),)


@dataclass(frozen=True, slots=True)
class MixCalibration:
    """Weights of the evidence of several methods: the log-odds of A are their weighted sum.

    Both orders of ``choice`` have one weight, that of their mean. The sum is then odd under an exchange of the answers,
    as in ``MethodCalibration``.
    """

    choice: float = 0.0
    verdict_follow: float = 0.0
    verdict_oppose: float = 0.0
    contrast_follow: float = 0.0
    contrast_oppose: float = 0.0

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that have any weight."""
        weights = {one.name: getattr(self, one.name) for one in fields(self)}
        return tuple(dict.fromkeys(_method_of(name) for name, weight in weights.items() if weight))

    def sharpened(self, factor: float) -> "MixCalibration":
        """The same with all log-odds multiplied."""
        return MixCalibration(*(factor * getattr(self, one.name) for one in fields(self)))

    def only(self, methods: Collection[str]) -> "MixCalibration":
        """The same weights for these methods, and none for the others."""
        kept = {one.name: getattr(self, one.name) for one in fields(self) if _method_of(one.name) in methods}
        return MixCalibration(**kept)

    def probabilities(self, method: str, evidence: tuple[float, ...]) -> tuple[float, ...]:
        """P(A is better) from the six numbers of the mix."""
        weights = (getattr(self, one.name) for one in fields(self))
        return (_sigmoid(math.fsum(w * x for w, x in zip(weights, mix_features(evidence), strict=True))),)


def mix_features(evidence: Sequence[float]) -> tuple[float, ...]:
    """What the weights of a mix belong to, in the order of the fields of ``MixCalibration``."""
    first, second, *others = evidence
    return ((first + second) / 2, *others)


Calibration = MethodCalibration | MixCalibration

# The mean of the log-odds by the defaults below.
DEFAULT_MIX = MixCalibration(1 / 3, 1 / 3, -1 / 3, 10 / 3, -3.0)
# Without a calibration file. Differences of mean log-likelihoods per token are small numbers: at temperature 1 every
# label would be 0.5. The values for contrast are rounded from those fitted for a model of 135 M parameters
# (docs/judge.md).
DEFAULTS: Mapping[str, Calibration] = {
    "choice": MethodCalibration(),
    "verdict": MethodCalibration(),
    "contrast": MethodCalibration(temperature=0.1, oppose_weight=0.9),
    "mix": DEFAULT_MIX,
}


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """Calibrations by method, the model and constitution they were fitted for, and the conditions of the fit."""

    model: str
    constitution_digest: str
    methods: Mapping[str, Calibration]
    conditions: Mapping[str, Any]


def load_calibration(path: Path) -> CalibrationFile:
    """Read a calibration file. Raises ``CalibrationError``, ``OSError``."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("must be a JSON object")
        unknown = sorted(set(content) - {one.name for one in fields(CalibrationFile)})
        if unknown:
            raise ValueError(f"unknown field {unknown[0]!r}")
        methods = content["methods"]
        return CalibrationFile(
            model=str(content["model"]),
            constitution_digest=str(content["constitution_digest"]),
            methods={name: _method(name, values) for name, values in methods.items()},
            conditions=content.get("conditions", {}),
        )
    except KeyError as error:
        raise CalibrationError(f"{path}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: {error}") from error


def write_calibration(path: Path, calibration: CalibrationFile) -> None:
    """Write a calibration file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(asdict(calibration), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def _method(name: str, values: Mapping[str, float]) -> Calibration:
    if name not in DEFAULTS:
        raise ValueError(f"methods: unknown method {name!r}; known are {', '.join(DEFAULTS)}")
    kind = type(DEFAULTS[name])
    unknown = sorted(set(values) - {one.name for one in fields(kind)})
    if unknown:
        raise ValueError(f"methods.{name}: unknown field {unknown[0]!r}")
    for field, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"methods.{name}.{field}: must be a finite number, not {value!r}")
    calibration = kind(**values)
    if isinstance(calibration, MixCalibration):
        if not calibration.methods:
            raise ValueError(f"methods.{name}: needs a weight that is not 0")
    elif calibration.temperature <= 0:
        raise ValueError(f"methods.{name}.temperature: must be above 0, not {calibration.temperature}")
    return calibration


def _method_of(weight: str) -> str:
    return weight.partition("_")[0]


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))
