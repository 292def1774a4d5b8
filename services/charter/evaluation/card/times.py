"""How long the phases of a run took, and what that was of a machine."""

from charter.evaluation.card.twin import Attempt, Phase
from charter.runs.folder import RunInfo
from charter.runs.results import Leg
from charter.v1 import run_pb2

_HOUR = 3600
# Seconds by which sums of the same times may differ.
_ROUNDING = 0.01


def attempts(info: RunInfo) -> tuple[Attempt, ...]:
    """Those that were recorded, oldest first."""
    return tuple(
        Attempt(leg.attempt, leg.started, leg.ended, leg.hardware, leg.versions, leg.phase_seconds) for leg in info.legs
    )


def phases(info: RunInfo) -> tuple[Phase, ...]:
    """Of each phase the seconds of all attempts, in the order of the phases.

    Hours of cores are of attempts without a GPU, those of GPUs of the others; None where an attempt was not recorded.
    There is a cost where each attempt has a price, in one currency.
    """
    order = [name.removeprefix("PHASE_") for name in run_pb2.Phase.DESCRIPTOR.values_by_name]
    names = sorted(info.phase_seconds, key=lambda name: order.index(name) if name in order else len(order))
    return tuple(_phase(name, info) for name in names)


def currency(info: RunInfo) -> str:
    """The currency of every attempt's price; empty where one has none, or they differ."""
    known = {leg.currency if leg.price_per_hour is not None else "" for leg in info.legs}
    return known.pop() if len(known) == 1 else ""


def _phase(name: str, info: RunInfo) -> Phase:
    seconds = info.phase_seconds[name]
    recorded = sum(leg.phase_seconds.get(name, 0.0) for leg in info.legs)
    if abs(recorded - seconds) > _ROUNDING:
        # An attempt of before this was recorded.
        return Phase(name, seconds, None, None, None)
    return Phase(
        name,
        seconds,
        core_hours=sum(_hours(leg, name) * leg.hardware.cores for leg in info.legs if not leg.hardware.gpus),
        gpu_hours=sum(_hours(leg, name) * leg.hardware.gpus for leg in info.legs),
        cost=sum(_hours(leg, name) * (leg.price_per_hour or 0.0) for leg in info.legs) if currency(info) else None,
    )


def _hours(leg: Leg, phase: str) -> float:
    return leg.phase_seconds.get(phase, 0.0) / _HOUR
