"""All tests of this folder need a real cluster; those of test_run.py also nodes that have the images."""

from collections.abc import Iterator

import pytest

from tests.cluster.access import KUBECONFIG, NAMESPACE, apply, chosen, kubectl


@pytest.fixture(autouse=True, scope="session")
def _cluster() -> None:
    if not KUBECONFIG:
        pytest.skip("CHARTER_TEST_KUBECONFIG names no kubeconfig of a cluster to test on")


@pytest.fixture(scope="module")
def namespace(_cluster: None) -> Iterator[str]:
    """The namespace as the overlay has it, without anything in it. It goes afterwards, with all that is in it."""
    found = kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "-o", "name")
    if found:
        pytest.fail(f"the namespace {NAMESPACE} exists: these tests delete it at their end. Delete it yourself first")
    apply(chosen(f"Namespace/{NAMESPACE}"))
    try:
        yield NAMESPACE
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--timeout=300s")
