"""Builds the judge service."""

import asyncio
import contextlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from charter.inference.load import create_engine
from charter.judge import metrics
from charter.judge.calibration import DEFAULT_MIX, DEFAULTS, CalibrationError, CalibrationSet, load_calibration
from charter.judge.judging import METHODS, unsupported_methods, why_unable_to_rate
from charter.judge.servicer import Judge, JudgeServicer
from charter.judge.watch import WatchedConstitution
from charter.rpc.gate import Gate
from charter.rpc.lifecycle import Readiness
from charter.v1 import judge_pb2_grpc, memory_pb2_grpc
from charter.weights.memory import MemoryServicer

logger = logging.getLogger("charter.judge")

# Items that share one call of an engine in this process.
_ITEMS_PER_CALL = 16
# Calls of one request that wait for the engine at the same time.
_CALLS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """What judges, by what."""

    # Hub id, folder, or the endpoint's name of the model.
    model: str
    # YAML file; watched for changes.
    constitution: Path
    # transformers, vllm, openai or fake; see charter.inference.load.
    engine: str = "transformers"
    # choice, verdict, contrast or mix: how pairs are compared when the request does not say.
    method: str = "contrast"
    # Calibration file to apply; without one the defaults of charter.judge.calibration.
    calibration: Path | None = None
    # The engine's own settings, by the names of its constructor.
    engine_settings: dict[str, Any] = field(default_factory=dict)


class JudgeRoom:
    """The judge as a ``charter.rpc.lifecycle.Service``."""

    name = "judge"
    health_names = ("charter.v1.JudgeService",)
    control_names = ("charter.v1.MemoryService",)

    def __init__(self, config: JudgeConfig) -> None:
        if config.method not in METHODS:
            raise ValueError(f"no judging method {config.method!r}; valid methods: {', '.join(METHODS)}")
        calibrations = {name: CalibrationSet(default) for name, default in DEFAULTS.items()}
        fitted = load_calibration(config.calibration) if config.calibration is not None else None
        if fitted is not None:
            if config.method not in fitted.methods:
                raise CalibrationError(f"{config.calibration} has no calibration for method {config.method}")
            calibrations |= fitted.sets()
        self._method = config.method
        self._calibrations = calibrations
        self._constitution = WatchedConstitution(config.constitution)
        if fitted is not None and fitted.constitution_digest != self._constitution.current.digest:
            logger.warning(
                "the calibration was fitted for another constitution", extra={"file": str(config.calibration)}
            )
        self.engine = create_engine(config.engine, config.model, **config.engine_settings)
        remote = config.engine == "openai"
        judge = Judge(
            engine=self.engine,
            constitution=self._constitution,
            default_method=config.method,
            calibrations=calibrations,
            items_per_call=1 if remote else _ITEMS_PER_CALL,
            calls_at_once=config.engine_settings.get("concurrent_calls", _CALLS_AT_ONCE) if remote else _CALLS_AT_ONCE,
        )
        self._gate = Gate("the judge's model")
        self.readiness = Readiness()
        self._servicer = JudgeServicer(judge, self._gate)
        self._watching: asyncio.Task[None] | None = None
        metrics.preregister(METHODS, [one.id for one in self._constitution.current.principles])

    def register(self, server: grpc.aio.Server) -> None:
        """Add ``JudgeService``."""
        judge_pb2_grpc.add_JudgeServiceServicer_to_server(self._servicer, server)

    def register_control(self, server: grpc.aio.Server) -> None:
        """Add ``MemoryService``; the judge never learns, so it takes no weights."""
        memory = MemoryServicer(self.engine, self._gate, self.readiness, "judge")
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(memory, server)

    async def start(self) -> None:
        """Load and warm the model, and watch the constitution.

        Raises ``OSError`` when the model cannot be found, ``ValueError`` when it cannot judge by the default method.
        """
        await self.engine.start()
        self._servicer.unsupported = await self._unsupported()
        self._servicer.rating_problem = await why_unable_to_rate(self.engine)
        if self._method in self._servicer.unsupported:
            reason = self._servicer.unsupported[self._method]
            raise ValueError(f"{self.engine.info().model} cannot judge by {self._method}: {reason}")
        self._watching = asyncio.create_task(self._constitution.watch())
        self._gate.open()

    async def _unsupported(self) -> dict[str, str]:
        """The methods that this model cannot do, and why. Weights that nobody fitted are taken from a mix first."""
        reasons = await unsupported_methods(self.engine)
        if self._calibrations["mix"].overall is DEFAULT_MIX:
            self._calibrations["mix"] = CalibrationSet(DEFAULT_MIX.only(set(METHODS) - set(reasons)))
        parts = self._calibrations["mix"].mixed
        missing = [f"{name}: {reasons[name]}" for name in parts if name in reasons]
        if missing or not parts:
            reasons["mix"] = "; ".join(missing) or "it can do none of the methods"
        return reasons

    async def stop(self) -> None:
        """Free the model."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
        await self.engine.stop()


def build(config: JudgeConfig) -> JudgeRoom:
    """Put the service together; the constitution is read, the model is not loaded yet.

    Raises ``ValueError`` (a wrong method or engine, ``ConstitutionError``, ``CalibrationError``) and ``OSError``.
    """
    return JudgeRoom(config)
