"""Addresses behind an address: itself, or everything that the name of a headless service resolves to."""

import socket
from dataclasses import dataclass

# Prefix of an address that stands for every address behind a name.
DNS = "dns:///"


@dataclass(frozen=True, slots=True, order=True)
class ReplicaAddress:
    """One replica as host:port, and its control port; ``control`` is empty for a service without one."""

    main: str
    control: str = ""


def replica_addresses(main: str, control: str = "") -> list[ReplicaAddress]:
    """The replicas that ``main`` (with its control port, if there is one) stands for now, in a fixed order.

    ``host:port`` is one replica. ``dns:///host:port`` is one for each address of the name; ``control`` must then have
    the same form and host. Raises ``OSError`` when the name has no address at this moment, ``ValueError`` for a wrong
    form.
    """
    if not main.startswith(DNS):
        if control.startswith(DNS):
            raise ValueError(f"{control} is a name of many replicas, {main} is one: write both with or without {DNS}")
        return [ReplicaAddress(main, control)]
    host, port = _split(main)
    if not control:
        return [ReplicaAddress(f"{ip}:{port}") for ip in _resolve(host)]
    control_host, control_port = _split(control)
    if not control.startswith(DNS) or control_host != host:
        raise ValueError(f"{main} and its control address {control} must name the same host, both with {DNS}")
    return [ReplicaAddress(f"{ip}:{port}", f"{ip}:{control_port}") for ip in _resolve(host)]


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix(DNS).rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{address} must have the form {DNS}host:port")
    return host, int(port)


def _resolve(host: str) -> list[str]:
    """IP addresses of a name, IPv6 in brackets, as they stand before a port."""
    found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    return sorted(f"[{ip}]" if ":" in ip else ip for ip in found)
