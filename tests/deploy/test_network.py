"""The network policies allow each arrow of the design and nothing else. They are evaluated, not read by their names."""

from pathlib import Path

import pytest

from tests.deploy.manifests import OVERLAYS, SERVICES, Manifest, everything, of_kind, pod_template, workloads

overlays = pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)

Labels = dict[str, str]

# Client, server, and the named ports that it may reach.
ARROWS = {
    ("worker", "policy"): {"grpc", "control"},
    ("policy", "policy"): {"control"},
    ("worker", "judge"): {"grpc"},
    ("worker", "preference"): {"grpc", "control"},
    ("worker", "trainer"): {"control"},
    ("worker", "worker"): {"worker-metrics", "rendezvous"},
    ("trainer", "postgres"): {"postgres"},
    ("preference", "postgres"): {"postgres"},
    ("migrate", "postgres"): {"postgres"},
    ("grafana", "prometheus"): {"web"},
    ("prometheus", "worker"): {"worker-metrics"},
    **{("prometheus", server): {"metrics"} for server in SERVICES},
}
NAMESPACE = {"kubernetes.io/metadata.name": "charter"}
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
STRANGER = {"kubernetes.io/metadata.name": "elsewhere"}


def selects(selector: Manifest, labels: Labels) -> bool:
    """Whether a label selector (matchLabels alone) chooses these labels; an empty one chooses all."""
    assert selector.keys() <= {"matchLabels"}, "the evaluator knows matchLabels only"
    return dict(selector.get("matchLabels", {})).items() <= labels.items()


def peer_matches(peer: Manifest, pod: Labels, namespace: Labels) -> bool:
    """Whether a peer of a rule is this pod. A block of addresses is none: pods' addresses are not known here."""
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], namespace):
            return False
    elif namespace != NAMESPACE:
        return False
    return selects(peer.get("podSelector", {}), pod)


def allows(policies: list[Manifest], way: str, own: Labels, other: Labels, where: Labels, port: Manifest) -> bool:
    """Whether policies of the pod ``own`` let traffic to a container port through in one direction."""
    kind = {"ingress": "Ingress", "egress": "Egress"}[way]
    selecting = [
        one["spec"]
        for one in policies
        if kind in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], own)
    ]
    if not selecting:
        return True
    side = {"ingress": "from", "egress": "to"}[way]
    for rule in (rule for spec in selecting for rule in spec.get(way, ())):
        peers = rule.get(side)
        if peers and not any(peer_matches(peer, other, where) for peer in peers):
            continue
        ports = rule.get("ports")
        if not ports or any(one["port"] in (port["name"], port["containerPort"]) for one in ports):
            return True
    return False


def pods(objects: tuple[Manifest, ...]) -> dict[str, tuple[Labels, list[Manifest]]]:
    """Labels and container ports of each workload's pods, by their name label."""
    found = {}
    for one in workloads(objects):
        template = pod_template(one)
        ports = [port for container in template["spec"]["containers"] for port in container.get("ports", ())]
        labels = template["metadata"]["labels"]
        found[labels["app.kubernetes.io/name"]] = (labels, ports)
    return found


@overlays
def test_arrows_of_the_design_and_no_others(folder: Path) -> None:
    objects = everything(folder)
    policies = of_kind(objects, "NetworkPolicy")
    rooms = pods(objects)
    assert {name for arrow in ARROWS for name in arrow} == rooms.keys()
    for client, (own, _) in rooms.items():
        for server, (labels, ports) in rooms.items():
            open_ports = {
                port["name"]
                for port in ports
                if allows(policies, "egress", own, labels, NAMESPACE, port)
                and allows(policies, "ingress", labels, own, NAMESPACE, port)
            }
            assert open_ports == ARROWS.get((client, server), set()), f"{client} -> {server}"


@overlays
def test_strangers_reach_nothing_but_prometheus_the_metrics(folder: Path) -> None:
    objects = everything(folder)
    policies = of_kind(objects, "NetworkPolicy")
    for name, (labels, ports) in pods(objects).items():
        for port in ports:
            for own, where in (({"app.kubernetes.io/name": "worker"}, STRANGER), ({}, NAMESPACE)):
                assert not allows(policies, "ingress", labels, own, where, port), f"{own} -> {name}:{port['name']}"
            prometheus = allows(policies, "ingress", labels, {}, MONITORING, port)
            assert prometheus == port["name"].endswith("metrics"), f"monitoring -> {name}:{port['name']}"


@overlays
def test_only_those_who_ask_the_api_server_reach_addresses_outside(folder: Path) -> None:
    outside = {
        one["metadata"]["name"]
        for one in of_kind(everything(folder), "NetworkPolicy")
        for rule in one["spec"].get("egress", ())
        if any("ipBlock" in peer for peer in rule["to"])
    }
    # The API server, for Jobs and to find pods.
    assert outside == {"trainer", "prometheus"}


def test_the_evaluator_sees_a_missing_policy() -> None:
    """Without a policy everything is allowed: the tests above would fail, not pass."""
    assert allows([], "ingress", {}, {}, STRANGER, {"name": "grpc", "containerPort": 50051})
