"""What `charter compare` finds in a test: all four services around a tiny model, and prompts of both dimensions."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from charter.judge.server import JudgeConfig
from charter.judge.server import build as build_judge
from charter.policy.server import PolicyConfig
from charter.policy.server import build as build_policy
from charter.preference.server import PreferenceConfig
from charter.preference.server import build as build_preference
from charter.trainer.server import TrainerConfig
from charter.trainer.server import build as build_trainer
from charter.v1 import run_pb2

from tests.support.forked_launcher import ForkedLauncher
from tests.support.harness import running_for_commands
from tests.support.worker_services import CONSTITUTION, write_jsonl


@contextmanager
def study_home(home: Path, model: Path) -> Iterator[None]:
    """The services, found through the environment, with ``home`` as their state folder and ``c.yaml`` in it."""
    (home / "c.yaml").write_text(CONSTITUTION)
    url = f"sqlite:///{home}/charter.db"
    none = run_pb2.ServiceAddresses()
    rooms = (
        build_policy(PolicyConfig(str(model), home / "staging")),
        build_judge(JudgeConfig("fake-judge", home / "c.yaml", "fake")),
        build_preference(PreferenceConfig({"default": str(model)}, url, home / "staging")),
        build_trainer(TrainerConfig(url, home / "runs", "unset:1", ForkedLauncher(), none)),
    )
    with running_for_commands(home, rooms):
        yield


def by_dimension(place: int) -> str:
    """The two dimensions in turn."""
    return "helpful" if place % 2 else "harmless"


def write_prompts(home: Path, **counts: int) -> None:
    """Files of so many prompts, by name."""
    for name, count in counts.items():
        rows: list[dict[str, Any]] = [
            {"prompt": f"{name} {place}?", "dimension": by_dimension(place)} for place in range(count)
        ]
        write_jsonl(home / f"{name}.jsonl", rows)
