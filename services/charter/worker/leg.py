"""What an attempt runs on and what it reads, for whoever asks later: kept in ``run.json`` beside earlier attempts."""

import os
import platform
from dataclasses import asdict
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from charter.data.errors import DataError
from charter.data.sources import Source
from charter.environment import price_per_hour
from charter.runs.artifacts import Artifacts
from charter.runs.results import Hardware, Input
from charter.spec.data_sources import data_sources
from charter.spec.models import revision_of, weights_digest
from charter.v1 import run_pb2
from charter.worker.errors import SpecError
from charter.worker.training import ranks

# Whose sources a stage reads and digests for itself.
_READ_BY_STAGES = ("pretraining.", "supervised.", "revision.", "dpo.", "kto.")


def begin_leg(artifacts: Artifacts, attempt: int) -> None:
    """Note that an attempt begins. Raises ``EnvironmentVariableError``."""
    price = price_per_hour()
    said = {"price_per_hour": price.amount, "currency": price.currency} if price is not None else {}
    artifacts.begin_leg(attempt, hardware=asdict(hardware()), **said)


def hardware() -> Hardware:
    """What this process computes on."""
    on_gpu = torch.cuda.is_available()
    return Hardware(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        gpus=ranks.size() if on_gpu else 0,
        gpu=torch.cuda.get_device_name(ranks.device()) if on_gpu else "",
    )


def note_inputs(spec: run_pb2.RunSpec, artifacts: Artifacts) -> None:
    """Note versions, and the digests of what this attempt reads. Raises ``SpecError`` for what cannot be read."""
    inputs = {
        field: Input(str(source.without_folder()), _digest(source))
        for field, source in data_sources(spec)
        if not field.startswith(_READ_BY_STAGES)
    }
    if Path(spec.policy.chat_template).is_file():
        inputs["policy.chat_template"] = _file(spec.policy.chat_template)
    if spec.judge.calibration and Path(spec.judge.calibration).is_file():
        inputs["judge.calibration"] = _file(spec.judge.calibration)
    named = {"policy.model": spec.policy.model, "judge.model": spec.judge.model}
    if spec.preference_model.model != spec.policy.model:
        named["preference_model.model"] = spec.preference_model.model
    known: dict[str, Input] = {}
    for field, model in named.items():
        if model:
            known.setdefault(model, Input(model, weights_digest(model), revision_of(model)))
            inputs[field] = known[model]
    noted = {field: asdict(one) for field, one in inputs.items()}
    artifacts.note_in_leg(versions=dict(artifacts.record["versions"]), inputs=noted)


def _file(path: str) -> Input:
    return Input(Path(path).name, _digest(Source(path)))


def _digest(source: Source) -> str:
    try:
        return source.digest()
    except (DataError, OSError) as error:
        raise SpecError(str(error)) from error


def _processor() -> str:
    """Its name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
