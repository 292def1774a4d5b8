import socket

import pytest
from charter.rpc.discovery import ReplicaAddress, replica_addresses


@pytest.fixture
def pods(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Addresses behind the name `policy`, as the system's resolver would give them."""
    found = ["10.0.0.2", "10.0.0.1", "fd00::1"]

    def resolve(host: str, port: object, **options: object) -> list[tuple[object, ...]]:
        if host != "policy" or not found:
            raise socket.gaierror("Name or service not known")
        return [(0, 0, 0, "", (ip, 0)) for ip in (*found, found[0])]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return found


def test_a_plain_address_is_one_replica() -> None:
    assert replica_addresses("a:1", "a:2") == [ReplicaAddress("a:1", "a:2")]
    assert replica_addresses("a:1") == [ReplicaAddress("a:1", "")]


def test_a_name_is_every_address_behind_it_with_its_control_port(pods: list[str]) -> None:
    assert replica_addresses("dns:///policy:1", "dns:///policy:2") == [
        ReplicaAddress("10.0.0.1:1", "10.0.0.1:2"),
        ReplicaAddress("10.0.0.2:1", "10.0.0.2:2"),
        ReplicaAddress("[fd00::1]:1", "[fd00::1]:2"),
    ]
    pods.remove("10.0.0.2")
    assert [one.main for one in replica_addresses("dns:///policy:1")] == ["10.0.0.1:1", "[fd00::1]:1"]
    pods.clear()
    with pytest.raises(OSError):
        replica_addresses("dns:///policy:1")


@pytest.mark.parametrize(
    ("main", "control"),
    [
        ("dns:///policy:1", "policy:2"),
        ("policy:1", "dns:///policy:2"),
        ("dns:///policy:1", "dns:///other:2"),
        ("dns:///policy", ""),
        ("kubernetes:///policy.charter:1", "dns:///policy.charter:2"),
        ("kubernetes:///policy:1", ""),
    ],
)
def test_addresses_that_do_not_go_together_are_refused(pods: list[str], main: str, control: str) -> None:
    with pytest.raises(ValueError, match=r"(dns|kubernetes):///"):
        replica_addresses(main, control)
