"""What `charter doctor` looks for on behalf of a component of deploy/components before that is applied."""

from collections.abc import Iterator
from dataclasses import dataclass

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from charter.cli.cluster.access import Cluster
from charter.cli.cluster.findings import Finding, rights_finding


@dataclass(frozen=True, slots=True)
class Operator:
    """What runs a component's custom resources, and the definitions (CRDs) that its manifests are written for."""

    # As docs/kubernetes.md says it, with the oldest release that has them where that matters.
    name: str
    source: str
    group: str
    version: str
    kinds: tuple[str, ...]

    @property
    def api(self) -> str:
        """As ``apiVersion`` says it."""
        return f"{self.group}/{self.version}"


# By component. tests/deploy/test_components.py holds that the manifests use these and no others.
OPERATORS = {
    "mtls": Operator(
        "cert-manager 1.13 or newer",
        "https://cert-manager.io/docs/installation/",
        "cert-manager.io",
        "v1",
        ("Certificate", "Issuer"),
    ),
    "autoscaling": Operator(
        "KEDA 2.14 or newer", "https://keda.sh/docs/latest/deploy/", "keda.sh", "v1alpha1", ("ScaledObject",)
    ),
    "monitoring": Operator(
        "the Prometheus operator",
        "https://prometheus-operator.dev",
        "monitoring.coreos.com",
        "v1",
        ("PodMonitor", "PrometheusRule", "ServiceMonitor"),
    ),
}
S3_DRIVER = "csi.juicefs.com"
# Component -> what its Secret, which has its name, is made from.
SECRETS = {
    "artifacts-s3": "--from-literal=name=charter --from-literal=metaurl=... (docs/kubernetes.md has all of them)",
    "postgres": "--from-literal=password=$(openssl rand -hex 24)",
}


def component(cluster: Cluster, name: str) -> Iterator[Finding]:
    """What a component needs to be there before it is applied."""
    check = f"component {name}"
    if name in OPERATORS:
        yield from _operator(cluster, check, OPERATORS[name])
    if name == "artifacts-s3":
        drivers = {one.metadata.name for one in client.StorageV1Api(cluster.api).list_csi_driver().items}
        if S3_DRIVER in drivers:
            yield Finding(check, "ok", f"the driver {S3_DRIVER} is installed")
        else:
            advice = "install it: https://juicefs.com/docs/csi/getting_started"
            yield Finding(check, "failed", f"no driver {S3_DRIVER} is installed", advice)
    if name in SECRETS:
        yield _secret(cluster, name)


def served_versions(cluster: Cluster, group: str) -> list[str]:
    """Versions of an API group that the API server serves, its preferred one first; empty without the group."""
    for one in client.ApisApi(cluster.api).get_api_versions().groups:
        if one.name == group:
            preferred = one.preferred_version.version if one.preferred_version else ""
            return sorted((version.version for version in one.versions), key=lambda version: version != preferred)
    return []


def _operator(cluster: Cluster, check: str, operator: Operator) -> Iterator[Finding]:
    versions = served_versions(cluster, operator.group)
    if not versions:
        advice = f"install {operator.name}: {operator.source}"
        yield Finding(check, "failed", f"the API server has no {operator.group}", advice)
        return
    if operator.version not in versions:
        found = f"the API server has {operator.group} in {', '.join(versions)}, the manifests need {operator.version}"
        advice = f"bring it to {operator.name}: {operator.source}"
        yield Finding(check, "failed", found, advice)
        return
    # Everyone who may log in may read this; the definitions themselves only an administrator may.
    there = client.CustomObjectsApi(cluster.api).get_api_resources(operator.group, operator.version).resources
    resources = {one.kind: one.name for one in there if "/" not in one.name}
    if missing := [kind for kind in operator.kinds if kind not in resources]:
        advice = f"install all definitions (CRDs) of {operator.name}: {operator.source}"
        yield Finding(check, "failed", f"{operator.api} has no {', '.join(missing)}", advice)
        return
    yield Finding(check, "ok", f"{operator.api} has {', '.join(operator.kinds)}")
    rights = [(operator.group, resources[kind], "create") for kind in operator.kinds]
    yield rights_finding(cluster, f"rights to apply {check}", rights, "warning")


def _secret(cluster: Cluster, name: str) -> Finding:
    """Whether the Secret that a component needs is there; it has the component's name."""
    try:
        client.CoreV1Api(cluster.api).read_namespaced_secret(name, cluster.namespace)
    except ApiException as error:
        if error.status != 404:
            raise
        advice = f"kubectl -n {cluster.namespace} create secret generic {name} {SECRETS[name]}"
        return Finding(f"component {name}", "failed", f"there is no Secret `{name}`", advice)
    return Finding(f"component {name}", "ok", f"the Secret `{name}` is there")
