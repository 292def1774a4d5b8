"""A service as a process of this machine for as long as a command needs it, on free ports."""

import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from charter.atomic_files import write_json
from charter.cli.local.processes import serve_command, stop_services, wait_serving
from charter.cli.services import HOST, Endpoint, Started, launch
from charter.trainer.processes import ProcessId
from charter.worker.errors import RunError

# Services with a control port, which has to be moved out of the way of others.
_WITH_CONTROL = ("policy", "preference")


@contextmanager
def served_meanwhile(service: str, options: Sequence[str], log: str, folder: Path, say: Console) -> Iterator[str]:
    """The address of `charter serve SERVICE OPTIONS` while the block lasts; ``log`` names its log.

    Its state is in ``folder``, which remembers the process, so that ``stop_left_over`` ends what a command that was
    killed has left. Raises ``RunError`` when it ends before it serves.
    """
    main, control, metrics = _free_addresses(3)
    at = Endpoint(main, control if service in _WITH_CONTROL else "", metrics)
    running: dict[str, Started] = {}
    try:
        # A state folder of its own: weights on their way into another service of this machine are none of its.
        environment = {"CHARTER_HOME": str(folder / "services")}
        running[service] = launch(log, serve_command(service, at, options), at, environment)
        write_json(_remembered(folder), asdict(running[service].process))
        if wait_serving(running, say):
            ended = running[service]
            raise RunError(
                f"the {service} service ended before it was serving. The end of {ended.log}:\n{ended.last_words()}"
            )
        yield at.main
    finally:
        stop_services(running, say)
        _remembered(folder).unlink(missing_ok=True)


def stop_left_over(folder: Path) -> None:
    """End what a command that was killed had started with this folder."""
    file = _remembered(folder)
    if file.exists():
        found = json.loads(file.read_text(encoding="utf-8"))
        ProcessId(int(found["pid"]), float(found["started"])).stop(force=True)
        file.unlink()


def _remembered(folder: Path) -> Path:
    return folder / "serving.json"


def _free_addresses(count: int) -> list[str]:
    """Addresses that nothing listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return [f"{HOST}:{one.getsockname()[1]}" for one in sockets]
    finally:
        for one in sockets:
            one.close()
