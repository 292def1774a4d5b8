"""What each ServiceAccount may do, as the API server sees it: the trainer what its Role says, the others nothing."""

from pathlib import Path

import pytest
from kubernetes import client, config

from tests.cluster.access import LOCAL, NAMESPACE, apply, chosen, kubeconfig_of
from tests.deploy.manifests import of_kind, render

Right = tuple[str, str, str, str]


def rights(account: str, folder: Path) -> set[Right]:
    """(group, resource, name or empty, verb) that an account has in the namespace."""
    with config.new_client_from_config(str(kubeconfig_of(account, folder))) as api:
        review = client.V1SelfSubjectRulesReview(spec=client.V1SelfSubjectRulesReviewSpec(namespace=NAMESPACE))
        status = client.AuthorizationV1Api(api).create_self_subject_rules_review(review).status
    assert not status.incomplete
    return {
        (group, resource, name, verb)
        for rule in status.resource_rules
        for group in rule.api_groups or ()
        for resource in rule.resources or ()
        for name in rule.resource_names or ("",)
        for verb in rule.verbs
    }


@pytest.mark.parametrize("account", ["trainer", "worker", "policy", "judge", "preference"])
def test_an_account_has_its_role_and_nothing_else(namespace: str, account: str, tmp_path: Path) -> None:
    apply(of_kind(render(LOCAL), "ServiceAccount", "Role", "RoleBinding"))
    # What every account of the cluster has.
    common = rights("default", tmp_path)
    given: set[Right] = set()
    if account == "trainer":
        (role,) = chosen("Role/trainer")
        given = {
            (group, resource, name, verb)
            for rule in role["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for name in rule.get("resourceNames", ("",))
            for verb in rule["verbs"]
        }
    assert rights(account, tmp_path) - common == given
