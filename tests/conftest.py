"""Fixtures that every test may use."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# Tiny models, several processes, two cores: threads that wait for each other cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.support.tiny import make_tiny_model

# What the developer's shell says of services, certificates and traces is not the tests'.
for name in [name for name in os.environ if name.startswith(("CHARTER_", "OTEL_"))]:
    if not name.startswith("CHARTER_TEST_"):
        del os.environ[name]

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says nothing about it on a machine that others use as well.
settings.register_profile("charter", deadline=None)
settings.load_profile("charter")

pytest_plugins = ["tests.support.postgres", "tests.support.chromium"]


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """A command that a test runs in this process sets up its logs: the next test must not inherit them."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Commands that a test runs in this process neither see nor touch what `charter up` has started here."""
    os.environ["CHARTER_HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Folder of SmolLM2-135M-Instruct; `make models` fetches it."""
    default = ROOT / ".charter" / "models" / "smollm2-135m-instruct"
    folder = Path(os.environ.get("CHARTER_TEST_MODEL", default))
    if not (folder / "model.safetensors").is_file():
        pytest.skip(f"no model in {folder}: run `make models`, or set CHARTER_TEST_MODEL")
    return folder
