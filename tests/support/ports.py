"""Ports of this machine that nothing listens on."""

import socket
from collections.abc import Iterable

from charter.cli.services import DEFAULTS
from charter.environment import WORKER_METRICS_PORT


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def free_offset(more: Iterable[int] = ()) -> int:
    """A shift of the ports of `charter up`, of the worker, and of ``more``, that leaves all of them free."""
    addresses = [address for one in DEFAULTS.values() for address in (one.main, one.control, one.metrics) if address]
    ports = [WORKER_METRICS_PORT, *more, *(int(address.rpartition(":")[2]) for address in addresses)]
    for candidate in range(1000, 10_000, 100):
        if all(_free(port + candidate) for port in ports):
            return candidate
    raise RuntimeError("no free ports")


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
