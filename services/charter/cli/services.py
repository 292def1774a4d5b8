"""Where the services are, and which of them `charter up` started. `charter.cli.calls` calls them."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from charter import environment
from charter.atomic_files import write_text
from charter.spec import defaults
from charter.state_files import read_json
from charter.trainer.processes import ProcessId
from charter.v1 import run_pb2

# Services and worker share the cores of a machine and compute at the same time. By default a thread that waits for its
# siblings does so busily, on a core that another process could use.
_SHARED_CORES = {"OMP_WAIT_POLICY": "passive"}

SERVICES = ("policy", "judge", "preference", "trainer")
TAIL_LINES = 15

# Where `charter up` lets everything listen.
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Addresses of one service, host:port; empty where it has none."""

    main: str
    control: str
    metrics: str


# Where a judge listens that shares the worker's GPU; others need no control port.
JUDGE_CONTROL = f"{HOST}:50062"

# Ports of `charter up`; the judge takes no weights and no reports.
DEFAULTS = {
    "policy": Endpoint(defaults.POLICY, defaults.POLICY_CONTROL, f"{HOST}:9091"),
    "judge": Endpoint(defaults.JUDGE, "", f"{HOST}:9092"),
    "preference": Endpoint(defaults.PREFERENCE, defaults.PREFERENCE_CONTROL, f"{HOST}:9093"),
    "trainer": Endpoint(defaults.TRAINER, defaults.TRAINER_CONTROL, f"{HOST}:9094"),
}


@dataclass(frozen=True, slots=True)
class Started:
    """A service that `charter up` started as a process of this machine."""

    process: ProcessId
    endpoint: Endpoint
    command: list[str]
    log: Path

    def last_words(self) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").rstrip("\n").split("\n")[-TAIL_LINES:])


def home() -> Path:
    """The state folder: CHARTER_HOME, or .charter in the present folder."""
    return Path(os.environ.get("CHARTER_HOME") or ".charter").resolve()


def started() -> dict[str, Started]:
    """What `charter up` has started and not stopped again, whether it still lives or not. Raises ``StateFileError``."""
    file = home() / "services.json"
    if not file.exists():
        return {}
    advice = (
        "It held what `charter up` had started: end those processes (`pgrep -af charter` shows them), then delete the "
        "file"
    )
    return read_json(
        file, lambda services: {str(name): _one_started(fields) for name, fields in services.items()}, advice
    )


def trainer_alone() -> bool:
    """Whether `charter up` started the trainer only, for a run that learns from files and asks no other service."""
    return set(started()) == {"trainer"}


def _one_started(fields: dict[str, Any]) -> Started:
    process = ProcessId(int(fields["process"]["pid"]), float(fields["process"]["started"]))
    if not 0 < process.pid < 2**31:
        raise ValueError(f"{process.pid} is no id of a process")
    place = Endpoint(**{name: str(address) for name, address in fields["endpoint"].items()})
    return Started(process, place, [str(part) for part in fields["command"]], Path(fields["log"]))


def remember(services: dict[str, Started]) -> None:
    """Replace what is known to be started; nothing at all removes the file."""
    file = home() / "services.json"
    if not services:
        file.unlink(missing_ok=True)
        return
    write_text(file, json.dumps({name: asdict(one) for name, one in services.items()}, indent=2, default=str))


def launch(
    name: str, command: list[str], endpoint: Endpoint, environment: Mapping[str, str] = MappingProxyType({})
) -> Started:
    """Start a background process of this machine with its output in CHARTER_HOME/logs. Raises ``OSError``."""
    log = home() / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            # Its own group: it outlives this terminal, and Ctrl-C here does not reach it.
            start_new_session=True,
            env={**_SHARED_CORES, **os.environ, "CHARTER_HOME": str(home()), **environment},
        )
    return Started(ProcessId.of(process.pid), endpoint, command, log)


def endpoint(name: str) -> Endpoint:
    """Where a service is: CHARTER_POLICY_ADDRESS and the like, else what `charter up` started, else the default.

    Raises ``EnvironmentVariableError``, ``StateFileError``.
    """
    known = started().get(name)
    base = known.endpoint if known else DEFAULTS[name]
    variable = f"CHARTER_{name.upper()}"
    several = name == "policy"
    return Endpoint(
        environment.addresses(f"{variable}_ADDRESS", base.main, several=several),
        environment.addresses(f"{variable}_CONTROL_ADDRESS", base.control, several=several),
        base.metrics,
    )


def worker_metrics_address() -> str:
    """Where the worker of a local run shows its metrics, host:port; empty when it does not."""
    port = environment.worker_metrics_port()
    return f"{HOST}:{port}" if port else ""


def gpu_sharing() -> run_pb2.GpuSharing.ValueType:
    """How the services that `charter up` started share their GPU with a worker."""
    command = started()["trainer"].command if "trainer" in started() else []
    if "--gpu-sharing" not in command:
        return run_pb2.GPU_SHARING_UNSPECIFIED
    return sharing_of(command[command.index("--gpu-sharing") + 1])


def sharing_of(name: str) -> run_pb2.GpuSharing.ValueType:
    """By its short name, as ``take_turns``. Raises ``ValueError``."""
    return run_pb2.GpuSharing.Value(f"GPU_SHARING_{name.upper()}")


def sharing_name(sharing: run_pb2.GpuSharing.ValueType) -> str:
    """The other way round."""
    return run_pb2.GpuSharing.Name(sharing).removeprefix("GPU_SHARING_").lower()


def service_addresses(
    sharing: run_pb2.GpuSharing.ValueType = run_pb2.GPU_SHARING_UNSPECIFIED,
) -> run_pb2.ServiceAddresses:
    """Where a run finds policy, judge and preference service. CHARTER_POLICY_ADDRESS may list replicas: ``a:1,b:1``."""
    policy, judge, preference = endpoint("policy"), endpoint("judge"), endpoint("preference")
    return run_pb2.ServiceAddresses(
        policy=policy.main.split(","),
        policy_control=policy.control.split(","),
        judge=judge.main,
        preference=preference.main,
        preference_control=preference.control,
        judge_control=judge.control,
        gpu_sharing=sharing,
    )
