"""The calibration file: how what a method finds becomes a probability, fitted on labelled pairs."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from charter.atomic_files import write_text
from charter.outcomes import probability_of


class CalibrationError(ValueError):
    """A calibration file is malformed, or made for another model; the message says where and what."""


@dataclass(frozen=True, slots=True)
class MethodCalibration:
    """Turns evidence into log-odds of A.

    ``choice``, for each order: ``(first - position_bias) / temperature`` and ``(second + position_bias) /
    temperature``. ``verdict`` and ``contrast``: ``(follow - oppose_weight * oppose) / temperature``. ``lapse`` is the
    share of labels that are wrong however clear the evidence is. All are odd under an exchange of the answers, so
    swapped pairs get complementary probabilities whatever the numbers are.
    """

    temperature: float = 1.0
    position_bias: float = 0.0
    oppose_weight: float = 1.0
    lapse: float = 0.0

    def sharpened(self, factor: float) -> "MethodCalibration":
        """The same with all log-odds multiplied."""
        return replace(self, temperature=self.temperature / factor)

    def probabilities(self, method: str, evidence: tuple[float, ...]) -> tuple[float, ...]:
        """P(A is better): with A shown first and second for ``choice``, one number for the other methods."""
        one, two = evidence
        if method == "choice":
            logits: tuple[float, ...] = (one - self.position_bias, two + self.position_bias)
        else:
            logits = (one - self.oppose_weight * two,)
        return tuple(probability_of(logit / self.temperature, self.lapse) for logit in logits)


@dataclass(frozen=True, slots=True)
class MixCalibration:
    """Weights of the evidence of several methods: the log-odds of A are their weighted sum.

    Both orders of ``choice`` have one weight, that of their mean. The sum is then odd under an exchange of the answers,
    as in ``MethodCalibration``, where ``lapse`` is explained too.
    """

    choice: float = 0.0
    verdict_follow: float = 0.0
    verdict_oppose: float = 0.0
    contrast_follow: float = 0.0
    contrast_oppose: float = 0.0
    lapse: float = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """The weights by name, in the order of ``mix_features``."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "lapse"}

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that have any weight."""
        return tuple(dict.fromkeys(_method_of(name) for name, weight in self.weights.items() if weight))

    def sharpened(self, factor: float) -> "MixCalibration":
        """The same with all log-odds multiplied."""
        return replace(self, **{name: factor * weight for name, weight in self.weights.items()})

    def only(self, methods: Collection[str]) -> "MixCalibration":
        """The same weights for these methods, and none for the others."""
        return replace(self, **{name: 0.0 for name in self.weights if _method_of(name) not in methods})

    def probabilities(self, method: str, evidence: tuple[float, ...]) -> tuple[float, ...]:
        """P(A is better) from the six numbers of the mix."""
        weighed = zip(self.weights.values(), mix_features(evidence), strict=True)
        return (probability_of(math.fsum(weight * feature for weight, feature in weighed), self.lapse),)


def mix_features(evidence: Sequence[float]) -> tuple[float, ...]:
    """What the weights of a mix belong to, in the order of ``MixCalibration.weights``."""
    first, second, *others = evidence
    return ((first + second) / 2, *others)


Calibration = MethodCalibration | MixCalibration

# The mean of the log-odds by the defaults below.
DEFAULT_MIX = MixCalibration(1 / 3, 1 / 3, -1 / 3, 10 / 3, -3.0)
# Without a calibration file. Differences of mean log-likelihoods per token are small numbers: at temperature 1 every
# label would be 0.5. The values for contrast are rounded from those fitted for a model of 135 M parameters
# (docs/measurements/judge.md).
DEFAULTS: Mapping[str, Calibration] = {
    "choice": MethodCalibration(),
    "verdict": MethodCalibration(),
    "contrast": MethodCalibration(temperature=0.1, oppose_weight=0.9),
    "mix": DEFAULT_MIX,
}


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """How one method is calibrated: for principles of any dimension, and for those of dimensions with their own."""

    overall: Calibration
    by_dimension: Mapping[str, Calibration] = field(default_factory=dict)

    def of(self, dimension: str) -> Calibration:
        """The calibration of a principle of this dimension."""
        return self.by_dimension.get(dimension, self.overall)

    @property
    def mixed(self) -> tuple[str, ...]:
        """The methods that have any weight in any of its mixes."""
        mixes = (one for one in (self.overall, *self.by_dimension.values()) if isinstance(one, MixCalibration))
        return tuple(dict.fromkeys(name for mix in mixes for name in mix.methods))


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """Calibrations by method, the model and constitution they were fitted for, and the conditions of the fit.

    ``dimensions`` holds, by dimension and method, those that differ from the method's own.
    """

    model: str
    constitution_digest: str
    methods: Mapping[str, Calibration]
    conditions: Mapping[str, Any]
    dimensions: Mapping[str, Mapping[str, Calibration]] = field(default_factory=dict)

    def sets(self) -> dict[str, CalibrationSet]:
        """The calibrations of each method."""
        return {
            method: CalibrationSet(
                overall, {name: found[method] for name, found in self.dimensions.items() if method in found}
            )
            for method, overall in self.methods.items()
        }


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
            methods=_methods("methods", methods),
            conditions=content.get("conditions", {}),
            dimensions={
                name: _methods(f"dimensions.{name}", found, among=methods)
                for name, found in content.get("dimensions", {}).items()
            },
        )
    except KeyError as error:
        raise CalibrationError(f"{path}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: {error}") from error


def write_calibration(path: Path, calibration: CalibrationFile) -> None:
    """Write a calibration file, whole or not at all."""
    write_text(path, json.dumps(asdict(calibration), indent=2, allow_nan=False) + "\n")


def _methods(where: str, found: Mapping[str, Any], among: Collection[str] = tuple(DEFAULTS)) -> dict[str, Calibration]:
    for name in found:
        if name not in among:
            raise ValueError(f"{where}: unknown method {name!r}; known are {', '.join(among)}")
    return {name: _method(f"{where}.{name}", name, values) for name, values in found.items()}


def _method(where: str, name: str, values: Mapping[str, float]) -> Calibration:
    kind = type(DEFAULTS[name])
    unknown = sorted(set(values) - {one.name for one in fields(kind)})
    if unknown:
        raise ValueError(f"{where}: unknown field {unknown[0]!r}")
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{where}.{key}: must be a finite number, not {value!r}")
    calibration = kind(**values)
    if not 0 <= calibration.lapse < 0.5:
        raise ValueError(f"{where}.lapse: must be at least 0 and below 0.5, not {calibration.lapse}")
    if isinstance(calibration, MixCalibration):
        if not calibration.methods:
            raise ValueError(f"{where}: needs a weight that is not 0")
    elif calibration.temperature <= 0:
        raise ValueError(f"{where}.temperature: must be above 0, not {calibration.temperature}")
    return calibration


def _method_of(weight: str) -> str:
    return weight.partition("_")[0]
