"""What a safetensors file of weights holds, checked against a model before the model is touched."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from charter.inference.engine import WeightMismatchError

Shape = tuple[int, ...]

_FLOATS = ("F64", "F32", "F16", "BF16")
_NAMED = 5  # Tensors named per kind of mismatch; the rest are counted.


def read_shapes(path: Path) -> dict[str, Shape]:
    """Names and shapes of a file's tensors, from its header alone.

    Raises ``WeightMismatchError`` when it is not a safetensors file or holds a tensor that is not floating point.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            wrong = [f"{name} ({part.get_dtype()})" for name, part in slices.items() if part.get_dtype() not in _FLOATS]
            if wrong:
                raise WeightMismatchError(f"not floating point: {_some(wrong)}")
            return {name: tuple(part.get_shape()) for name, part in slices.items()}
    except SafetensorError as error:
        raise WeightMismatchError(f"not a safetensors file: {error}") from error


def check_shapes(received: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Raise ``WeightMismatchError`` that names the tensors when names or shapes differ."""
    unknown = [name for name in received if name not in expected]
    missing = [name for name in expected if name not in received]
    misshapen = [
        f"{name} is {list(shape)}, the model's is {list(expected[name])}"
        for name, shape in received.items()
        if name in expected and shape != expected[name]
    ]
    findings = [
        f"{kind}: {_some(names)}"
        for kind, names in (("unknown tensors", unknown), ("missing tensors", missing), ("wrong shapes", misshapen))
        if names
    ]
    if findings:
        raise WeightMismatchError("the weights do not fit the served model; " + "; ".join(findings))


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")
