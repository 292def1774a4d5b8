"""How what a method finds becomes P(A is better): the numbers that are fitted on labelled pairs."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum

from charter.outcomes import probability_of


class Evidence(Enum):
    """What the numbers are that a method finds for a pair, in nats."""

    # The log-odds of A when A was shown first and when A was shown second.
    ORDERS = "orders"
    # A's lead over B under the principle, and under its opposite.
    LEADS = "leads"
    # Orders of `choice`, leads of `verdict`, leads of `contrast`.
    MIX = "mix"

    def exchanged(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """What would have been found with A and B exchanged."""
        opposite = tuple(-number for number in numbers)
        # A shown first is the order in which the other answer was shown second.
        return opposite if self is Evidence.LEADS else (*opposite[1::-1], *opposite[2:])


@dataclass(frozen=True, slots=True)
class MethodCalibration:
    """Turns evidence into log-odds of A.

    Orders: ``(first - position_bias) / temperature`` and ``(second + position_bias) / temperature``. Leads: ``(follow -
    oppose_weight * oppose) / temperature``. ``lapse`` is the share of labels that are wrong however clear the evidence
    is. All are odd under an exchange of the answers, so that swapped pairs get complementary probabilities whatever the
    numbers are.
    """

    temperature: float = 1.0
    position_bias: float = 0.0
    oppose_weight: float = 1.0
    lapse: float = 0.0

    def sharpened(self, factor: float) -> "MethodCalibration":
        """The same with all log-odds multiplied."""
        return replace(self, temperature=self.temperature / factor)

    def probabilities(self, kind: Evidence, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """P(A is better): with A shown first and second for orders, one number for leads."""
        one, two = numbers
        if kind is Evidence.ORDERS:
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

    def probabilities(self, kind: Evidence, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """P(A is better) from the six numbers of a mix."""
        if kind is not Evidence.MIX:
            raise ValueError(f"weights of a mix cannot read {kind.value}")
        weighed = zip(self.weights.values(), mix_features(numbers), strict=True)
        return (probability_of(math.fsum(weight * feature for weight, feature in weighed), self.lapse),)


def mix_features(evidence: tuple[float, ...]) -> tuple[float, ...]:
    """What the weights of a mix belong to, in the order of ``MixCalibration.weights``."""
    first, second, *others = evidence
    return ((first + second) / 2, *others)


Calibration = MethodCalibration | MixCalibration


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


def _method_of(weight: str) -> str:
    return weight.partition("_")[0]
