"""The calibration file: what was fitted on labelled pairs, and for what. It is applied to nothing else."""

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from charter.atomic_files import write_text
from charter.judge.calibration import Calibration, CalibrationSet, MixCalibration
from charter.judge.methods import METHODS
from charter.spec.constitution import Constitution, Principle
from charter.spec.paths import same_model


class CalibrationError(ValueError):
    """A calibration file is malformed, or made for another judge; the message says where and what."""


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """Calibrations by method, what they were fitted for, and the conditions of the fit.

    ``dimensions`` holds, by dimension and method, those that differ from the method's own. ``fitted_prompts`` are the
    keys (``charter.held_out.prompt_key``) of the prompts that it was fitted on, ``ensemble_size`` the number of
    principles asked about each pair; None in a file that does not say. ``principle`` is the only principle that it was
    fitted for, ``dimension`` the only dimension; empty where principles were drawn from all.
    """

    model: str
    constitution_digest: str
    methods: Mapping[str, Calibration]
    conditions: Mapping[str, Any]
    dimensions: Mapping[str, Mapping[str, Calibration]] = field(default_factory=dict)
    fitted_prompts: tuple[str, ...] = ()
    ensemble_size: int | None = None
    principle: str = ""
    dimension: str = ""

    def of(self, method: str) -> CalibrationSet | None:
        """The calibrations of a method; None where it has none."""
        if method not in self.methods:
            return None
        by_dimension = {name: found[method] for name, found in self.dimensions.items() if method in found}
        return CalibrationSet(self.methods[method], by_dimension)

    def covers(self, principle: Principle) -> bool:
        """Whether it was fitted for judgements by this principle."""
        return self.principle in ("", principle.id) and self.dimension in ("", principle.dimension)

    def problems(self, model: str, method: str, constitution: Constitution) -> list[str]:
        """Why it says nothing about a judge of this model, method and constitution; empty when it was made for it."""
        found = []
        if not same_model(self.model, model):
            found.append(f"was fitted for the model {self.model}, and this judge's model is {model}")
        if method not in self.methods:
            fitted = ", ".join(self.methods) or "none"
            found.append(f"has no calibration for method {method}, by which this judge compares; it has: {fitted}")
        if self.constitution_digest != constitution.digest:
            found.append(
                f"was fitted for another constitution: digest {self.constitution_digest[:12] or '(none)'}, and "
                f"{constitution.name} version {constitution.version} has {constitution.digest[:12]}"
            )
        return found


def file_digest(path: Path) -> str:
    """Names a calibration file by its content: sha256 in hex. Raises ``OSError``."""
    return sha256(path.read_bytes()).hexdigest()


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
            methods=_methods("methods", methods, METHODS),
            conditions=content.get("conditions", {}),
            dimensions={
                name: _methods(f"dimensions.{name}", found, methods)
                for name, found in content.get("dimensions", {}).items()
            },
            fitted_prompts=tuple(str(key) for key in content.get("fitted_prompts", ())),
            ensemble_size=content.get("ensemble_size"),
            principle=str(content.get("principle", "")),
            dimension=str(content.get("dimension", "")),
        )
    except KeyError as error:
        raise CalibrationError(f"{path}: {error.args[0]} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{path}: {error}") from error


def write_calibration(path: Path, calibration: CalibrationFile) -> None:
    """Write a calibration file, whole or not at all."""
    write_text(path, json.dumps(asdict(calibration), indent=2, allow_nan=False) + "\n")


def _methods(where: str, found: Mapping[str, Any], among: Collection[str]) -> dict[str, Calibration]:
    for name in found:
        if name not in among:
            raise ValueError(f"{where}: unknown method {name!r}; known are {', '.join(among)}")
    return {name: _method(f"{where}.{name}", name, values) for name, values in found.items()}


def _method(where: str, name: str, values: Mapping[str, float]) -> Calibration:
    kind = type(METHODS[name].default)
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
