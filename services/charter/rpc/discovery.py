"""Addresses behind an address: itself, or all pods of a Service, by its name in DNS or by its EndpointSlices."""

import logging
import socket
from collections.abc import Iterable
from dataclasses import dataclass

logger = logging.getLogger("charter.rpc")

# Prefixes of an address that stands for many: every address behind a name, every pod of a Service.
DNS = "dns:///"
KUBERNETES = "kubernetes:///"


@dataclass(frozen=True, slots=True, order=True)
class ReplicaAddress:
    """One replica as host:port, and its control port; ``control`` is empty for a service without one."""

    main: str
    control: str = ""


def stands_for_many(address: str) -> bool:
    """Whether the replicas behind an address may change."""
    return address.startswith((DNS, KUBERNETES))


def replica_addresses(main: str, control: str = "") -> list[ReplicaAddress]:
    """The replicas that ``main`` (with its control port, if there is one) stands for now, in a fixed order.

    ``host:port`` is one replica. ``dns:///host:port`` is one for each address of the name,
    ``kubernetes:///service.namespace:port`` one for each pod of the Service, whose container listens on the port;
    ``control`` must then have the same form and host. Raises ``OSError`` when there is no address at this moment,
    ``ValueError`` for a wrong form.
    """
    if not stands_for_many(main):
        if stands_for_many(control):
            raise ValueError(f"{control} is a name of many replicas, {main} is one: write both alike")
        return [ReplicaAddress(main, control)]
    prefix, host, port = _split(main)
    control_port = 0
    if control:
        if not stands_for_many(control) or _split(control)[:2] != (prefix, host):
            raise ValueError(f"{main} and its control address {control} must name the same host, both with {prefix}")
        control_port = _split(control)[2]
    found = _resolve(host) if prefix == DNS else _pods(host, main)
    # IPv6 in brackets, as it stands before a port.
    hosts = sorted(f"[{ip}]" if ":" in ip else ip for ip in found)
    return [ReplicaAddress(f"{ip}:{port}", f"{ip}:{control_port}" if control else "") for ip in hosts]


def all_addresses(named: Iterable[tuple[str, str]]) -> tuple[list[ReplicaAddress], bool]:
    """What all these (main, control) stand for now, each once; False when one has no address at the moment."""
    listed: dict[ReplicaAddress, None] = {}
    complete = True
    for main, control in named:
        try:
            listed.update(dict.fromkeys(replica_addresses(main, control)))
        except OSError as error:
            complete = False
            logger.warning("cannot resolve", extra={"address": main, "reason": str(error)})
    return list(listed), complete


def _split(address: str) -> tuple[str, str, int]:
    """Prefix, host and port."""
    prefix = KUBERNETES if address.startswith(KUBERNETES) else DNS
    host, _, port = address.removeprefix(prefix).rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"{address} must have the form {prefix}host:port")
    return prefix, host, int(port)


def _resolve(host: str) -> set[str]:
    return {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}


def _pods(host: str, address: str) -> list[str]:
    # The client takes a second to import, and few need it.
    from charter.rpc.endpoint_slices import pod_addresses

    service, _, namespace = host.partition(".")
    if not namespace or "." in namespace:
        raise ValueError(f"{address} must have the form {KUBERNETES}service.namespace:port")
    return pod_addresses(service, namespace)
