"""Builds the judge service."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from charter.inference.load import create_engine
from charter.judge import metrics
from charter.judge.calibration import CalibrationSet, MixCalibration
from charter.judge.calibration_file import CalibrationError, CalibrationFile, file_digest, load_calibration
from charter.judge.free_generation import FreeGeneration
from charter.judge.judging import unsupported_methods, why_unable_to_rate
from charter.judge.methods import METHODS, mix
from charter.judge.servicer import Judge, JudgeServicer
from charter.judge.watch import WatchedConstitution
from charter.rpc.gate import Gate
from charter.rpc.lifecycle import Readiness
from charter.spec.chat_form import is_base, origin_of
from charter.v1 import judge_pb2_grpc, memory_pb2_grpc, policy_pb2_grpc
from charter.weights.memory import MemoryServicer

# Items that share one call of an engine in this process.
_ITEMS_PER_CALL = 16
# Calls of one request that wait for the engine at the same time.
_CALLS_AT_ONCE = 8
# Calls of PolicyService under way; more get RESOURCE_EXHAUSTED.
_MAX_GENERATE_CALLS = 64


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """What judges, by what."""

    # Hub id, folder, or the endpoint's name of the model.
    model: str
    # YAML file; watched for changes.
    constitution: Path
    # transformers, vllm, openai or fake; see charter.inference.load.
    engine: str = "transformers"
    # A name of charter.judge.methods: how pairs are compared when the request does not say.
    method: str = "contrast"
    # Calibration file to apply; without one the methods' defaults.
    calibration: Path | None = None
    # The engine's own settings, by the names of its constructor.
    engine_settings: dict[str, Any] = field(default_factory=dict)


class JudgeRoom:
    """The judge as a ``charter.rpc.lifecycle.Service``."""

    name = "judge"
    control_names = ("charter.v1.MemoryService",)

    def __init__(self, config: JudgeConfig) -> None:
        if config.method not in METHODS:
            raise ValueError(f"no judging method {config.method!r}; valid methods: {', '.join(METHODS)}")
        self._method = METHODS[config.method]
        self._constitution = WatchedConstitution(config.constitution)
        self._defaults = {name: CalibrationSet(method.default) for name, method in METHODS.items()}
        self._fitted = self._calibration(config) if config.calibration is not None else None
        self.engine = create_engine(config.engine, config.model, **config.engine_settings)
        remote = config.engine == "openai"
        judge = Judge(
            engine=self.engine,
            constitution=self._constitution,
            default_method=self._method,
            defaults=self._defaults,
            fitted=self._fitted,
            calibration_digest=file_digest(config.calibration) if config.calibration is not None else "",
            items_per_call=1 if remote else _ITEMS_PER_CALL,
            calls_at_once=config.engine_settings.get("concurrent_calls", _CALLS_AT_ONCE) if remote else _CALLS_AT_ONCE,
            plain=not remote and is_base(config.model),
        )
        self._gate = Gate("the judge's model")
        self.readiness = Readiness()
        self._servicer = JudgeServicer(judge, self._gate)
        # An endpoint's model is asked there: nobody shall spend its owner's money by way of the judge.
        self._generation = None if remote else FreeGeneration(self.engine, _MAX_GENERATE_CALLS, self._gate)
        self._watching: asyncio.Task[None] | None = None
        metrics.preregister(METHODS, [one.id for one in self._constitution.current.principles])

    def _calibration(self, config: JudgeConfig) -> CalibrationFile:
        """What was fitted, if for this judge. Raises ``CalibrationError``, ``OSError``."""
        assert config.calibration is not None
        fitted = load_calibration(config.calibration)
        origin = origin_of(config.model)
        model = config.model if origin is None else origin.model
        if problems := fitted.problems(model, config.method, self._constitution.current):
            raise CalibrationError(
                "\n".join(f"{config.calibration} {problem}" for problem in problems)
                + "\nStart the judge without it, and fit one for this judge with `charter judge calibrate "
                "LABELLED.jsonl --output FILE`"
            )
        self._constitution.keep(
            f"the calibration {config.calibration} was fitted for the constitution that is judged by: start the judge "
            "again without it, or with one that was fitted for the changed constitution"
        )
        return fitted

    @property
    def health_names(self) -> tuple[str, ...]:
        """``PolicyService`` too where the model is of this process."""
        return ("charter.v1.JudgeService", *(["charter.v1.PolicyService"] if self._generation is not None else []))

    def register(self, server: grpc.aio.Server) -> None:
        """Add ``JudgeService``, and ``PolicyService`` for whoever wants to ask its model freely."""
        judge_pb2_grpc.add_JudgeServiceServicer_to_server(self._servicer, server)
        if self._generation is not None:
            policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._generation, server)

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
        if self._method.name in self._servicer.unsupported:
            reason = self._servicer.unsupported[self._method.name]
            raise ValueError(f"{self.engine.info().model} cannot judge by {self._method.name}: {reason}")
        self._watching = asyncio.create_task(self._constitution.watch())
        self._gate.open()

    async def _unsupported(self) -> dict[str, str]:
        """The methods that this model cannot do, and why. Weights that nobody fitted are taken from a mix first."""
        reasons = await unsupported_methods(self.engine)
        default, name = mix.METHOD.default, mix.METHOD.name
        assert isinstance(default, MixCalibration)
        self._defaults[name] = CalibrationSet(default.only(set(METHODS) - set(reasons)))
        fitted = self._fitted.of(name) if self._fitted is not None else None
        parts = (fitted or self._defaults[name]).mixed
        missing = [f"{part}: {reasons[part]}" for part in parts if part in reasons]
        if missing or not parts:
            reasons[name] = "; ".join(missing) or "it can do none of the methods"
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
