"""The network policies allow each arrow of the design and nothing else. They are evaluated, not read by their names."""

from pathlib import Path

import pytest

from tests.deploy.manifests import (
    BASE,
    NCCL,
    OVERLAYS,
    SERVICES,
    Manifest,
    combinations,
    everything,
    of_kind,
    pod_specs,
    pod_template,
    render_with,
    workloads,
)

overlays = pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
GPU = next(folder for folder in OVERLAYS if folder.name == "gpu")

Labels = dict[str, str]

# Every process may listen on a port that the kernel chose, as NCCL and Gloo do.
CHOSEN = {"name": "chosen", "containerPort": 40000}

# Client, server, and the named ports that it may reach.
ARROWS = {
    ("worker", "policy"): {"grpc", "control"},
    ("policy", "policy"): {"control"},
    ("worker", "judge"): {"grpc"},
    ("worker", "preference"): {"grpc", "control"},
    ("worker", "trainer"): {"control"},
    ("worker", "worker"): {"worker-metrics", "rendezvous", "chosen"},
    ("trainer", "postgres"): {"postgres"},
    ("preference", "postgres"): {"postgres"},
    ("migrate", "postgres"): {"postgres"},
    ("grafana", "prometheus"): {"web"},
    ("prometheus", "worker"): {"worker-metrics"},
    **{("prometheus", server): {"metrics"} for server in SERVICES},
}
# What the component weights-nccl adds: between all members of a NCCL group, in both directions.
NCCL_ARROWS = {(client, server): {"chosen"} for client in ("worker", "policy") for server in ("worker", "policy")}
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
        if not ports or any(covers(one, port) for one in ports):
            return True
    return False


def covers(rule: Manifest, port: Manifest) -> bool:
    """Whether a rule's port, a name, a number or the first of a range, is this port of a container."""
    if "endPort" in rule:
        return bool(rule["port"] <= port["containerPort"] <= rule["endPort"])
    return rule["port"] in (port["name"], port["containerPort"])


def pods(objects: tuple[Manifest, ...]) -> dict[str, tuple[Labels, list[Manifest]]]:
    """Labels and ports of each workload's pods, by their name label: those declared, and one that is not."""
    found = {}
    for one in workloads(objects):
        template = pod_template(one)
        ports = [port for container in template["spec"]["containers"] for port in container.get("ports", ())]
        labels = template["metadata"]["labels"]
        found[labels["app.kubernetes.io/name"]] = (labels, [*ports, CHOSEN])
    return found


def without_nccl(folder: Path) -> tuple[Manifest, ...]:
    """Objects of an overlay with every component but that one."""
    return render_with(folder, tuple(one for one in combinations(folder)[-1] if one != NCCL))


@overlays
def test_arrows_of_the_design_and_no_others(folder: Path) -> None:
    assert_arrows(without_nccl(folder), ARROWS)


def test_nccl_opens_the_ports_that_the_kernel_chooses_between_its_members_and_nothing_else() -> None:
    arrows = {key: ARROWS.get(key, set()) | NCCL_ARROWS.get(key, set()) for key in ARROWS.keys() | NCCL_ARROWS.keys()}
    assert_arrows(everything(GPU), arrows)


def test_in_those_pods_the_kernel_chooses_ports_that_are_opened_and_no_service_has() -> None:
    objects = everything(GPU)
    opened = {
        (port["port"], port["endPort"])
        for one in of_kind(objects, "NetworkPolicy")
        for rule in (*one["spec"].get("ingress", ()), *one["spec"].get("egress", ()))
        for port in rule.get("ports", ())
        if "endPort" in port
    }
    ((first, last),) = opened
    for name, spec in pod_specs(objects):
        sysctls = spec["securityContext"].get("sysctls", [])
        if name in ("policy", "worker"):
            assert sysctls == [{"name": "net.ipv4.ip_local_port_range", "value": f"{first} {last}"}]
            declared = [port["containerPort"] for one in spec["containers"] for port in one["ports"]]
            assert not [port for port in declared if first <= port <= last], name
        else:
            assert not sysctls


def test_nccl_alone_isolates_nobody() -> None:
    """A policy that selects a pod denies what it does not name: without network-policies there must be none."""
    assert not of_kind(render_with(BASE, (NCCL,)), "NetworkPolicy")


def assert_arrows(objects: tuple[Manifest, ...], arrows: dict[tuple[str, str], set[str]]) -> None:
    """Every pod reaches exactly those ports of every other."""
    policies = of_kind(objects, "NetworkPolicy")
    rooms = pods(objects)
    assert {name for arrow in arrows for name in arrow} == rooms.keys()
    for client, (own, _) in rooms.items():
        for server, (labels, ports) in rooms.items():
            open_ports = {
                port["name"]
                for port in ports
                if allows(policies, "egress", own, labels, NAMESPACE, port)
                and allows(policies, "ingress", labels, own, NAMESPACE, port)
            }
            assert open_ports == arrows.get((client, server), set()), f"{client} -> {server}"


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
