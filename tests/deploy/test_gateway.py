"""The gateway beside the services: valid, with its way to policy and judge and no other, and certificates with mtls."""

import json
from pathlib import Path

import pytest
import typer
from charter.cli.main import app
from charter.rpc import tls

from tests.deploy.manifests import (
    BASE,
    OVERLAYS,
    ROOT,
    Manifest,
    containers,
    environment,
    of_kind,
    pod_template,
    render_with,
    workloads,
)
from tests.deploy.test_network import NAMESPACE, allows, pods
from tests.deploy.test_rendering import KUBERNETES, problem

GATEWAY = ROOT / "deploy" / "gateway"
MTLS = (ROOT / "deploy" / "components" / "mtls", GATEWAY, GATEWAY / "mtls")


def gateway_of(objects: tuple[Manifest, ...]) -> Manifest:
    (found,) = [one for name, _, one in containers(objects) if name == "gateway"]
    return found


@pytest.mark.parametrize("components", [(GATEWAY,), MTLS], ids=["plain", "mtls"])
@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_it_is_valid_and_of_one_build_with_the_others(folder: Path, components: tuple[Path, ...]) -> None:
    objects = render_with(folder, components)
    added = [one for one in objects if one["metadata"]["name"].startswith("gateway")]
    assert {problem(json.dumps(one), version) for one in added for version in KUBERNETES} == {""}
    images = {one["image"].rpartition(":")[2] for _, _, one in containers(objects) if "charter-" in one["image"]}
    assert len(images) == 1


def test_the_command_takes_what_it_is_given() -> None:
    container = gateway_of(render_with(BASE, (GATEWAY,)))
    name, *arguments = container["args"]
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    taken = command.make_context(name, list(arguments)).params
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    assert {"http": taken["port"], "metrics": taken["metrics_port"]} == ports
    source = (ROOT / "services/charter/gateway/app.py").read_text()
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert f'Route("{container[probe]["httpGet"]["path"]}"' in source


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_it_reaches_policy_and_judge_and_nothing_else(folder: Path) -> None:
    objects = render_with(folder, (GATEWAY,))
    policies = of_kind(objects, "NetworkPolicy")
    rooms = pods(objects)
    own, ports = rooms["gateway"]

    def reached(client: dict[str, str], server: dict[str, str], port: Manifest) -> bool:
        return allows(policies, "egress", client, server, NAMESPACE, port) and allows(
            policies, "ingress", server, client, NAMESPACE, port
        )

    found = {
        (name, port["name"])
        for name, (labels, theirs) in rooms.items()
        for port in theirs
        if reached(own, labels, port)
    }
    assert found == {("policy", "grpc"), ("judge", "grpc")}
    stranger = {"app.kubernetes.io/name": "a chat client"}
    assert [port["name"] for port in ports if allows(policies, "ingress", own, stranger, NAMESPACE, port)] == ["http"]


def test_without_network_policies_the_policy_is_isolated_by_none() -> None:
    names = {one["metadata"]["name"] for one in of_kind(render_with(BASE, (GATEWAY,)), "NetworkPolicy")}
    assert names == {"gateway"}


def test_with_mtls_it_has_a_certificate_for_both_sides() -> None:
    objects = render_with(OVERLAYS[0], MTLS)
    container = gateway_of(objects)
    values = environment(objects, container)
    assert values[tls.VARIABLE] == values["CHARTER_GATEWAY_TLS"]
    assert values[tls.VARIABLE] in {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {container[probe]["httpGet"]["scheme"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "HTTPS"
    }
    (certificate,) = [one for one in of_kind(objects, "Certificate") if one["metadata"]["name"] == "gateway-tls"]
    assert set(certificate["spec"]["usages"]) == {"server auth", "client auth"}
    (workload,) = [one for one in workloads(objects) if one["metadata"]["name"] == "gateway"]
    volumes = {one["name"]: one for one in pod_template(workload)["spec"]["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == certificate["spec"]["secretName"]
    for service in ("policy", "judge"):
        called = values[f"CHARTER_{service.upper()}_ADDRESS"].rpartition(":")[0]
        (theirs,) = [one for one in of_kind(objects, "Certificate") if one["metadata"]["name"] == f"{service}-tls"]
        assert called in theirs["spec"]["dnsNames"]
