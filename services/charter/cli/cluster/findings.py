"""What the checks of `charter doctor` report, and the question that several of them ask: may this person do it?"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from kubernetes import client

from charter.cli.cluster.access import Cluster


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. ``result`` is ok, warning or failed; ``advice`` is empty when nothing is to be done."""

    check: str
    result: str
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def rights_finding(cluster: Cluster, check: str, rights: Sequence[tuple[str, str, str]], result: str) -> Finding:
    """Whether this person has rights in the namespace, (group, resource, verb); ``result`` where one is missing."""
    api = client.AuthorizationV1Api(cluster.api)
    missing = []
    for group, resource, verb in rights:
        resource, _, sub = resource.partition("/")
        attributes = client.V1ResourceAttributes(
            namespace=cluster.namespace, group=group, resource=resource, subresource=sub or None, verb=verb
        )
        review = client.V1SelfSubjectAccessReview(
            spec=client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
        )
        if not api.create_self_subject_access_review(review).status.allowed:
            missing.append(f"{verb} {resource}{'/' + sub if sub else ''}")
    if missing:
        advice = f"have an administrator bind a Role with them in namespace {cluster.namespace}"
        return Finding(check, result, f"missing: {', '.join(missing)}", advice)
    return Finding(check, "ok", "all there")
