"""`charter doctor` on a real cluster before anything of Charter is there, and what it says about components."""

import json
from typing import Any

from tests.cluster.access import apply, charter, get, kubectl

DRIVER = "csi.juicefs.com"


def doctor(*arguments: str) -> list[dict[str, Any]]:
    process = charter("doctor", "--json", *arguments)
    output, errors = process.communicate(timeout=120)
    found: list[dict[str, Any]] = json.loads(output)
    assert process.returncode == int(any(one["result"] == "failed" for one in found)), errors
    return found


def test_before_anything_is_applied_it_says_what_is_missing(namespace: str) -> None:
    found = {one["check"]: one for one in doctor()}
    version = json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    assert (found["API server"]["result"], found["API server"]["found"]) == ("ok", f"Kubernetes {version}")
    assert (found["rights to use"]["result"], found["rights to apply"]["result"]) == ("ok", "ok")
    assert "kubectl apply -k" in found["pods"]["advice"]
    assert found["GPUs"]["result"] == "ok"
    assert "describe pod" in found["service trainer"]["advice"]


def test_the_driver_and_the_secret_of_artifacts_s3_are_looked_for(namespace: str) -> None:
    def look() -> list[tuple[str, str]]:
        found = doctor("--component", "artifacts-s3")
        return [(one["result"], one["found"]) for one in found if one["check"] == "component artifacts-s3"]

    there = DRIVER in {one["metadata"]["name"] for one in get("csidrivers")["items"]}
    if not there:
        assert look()[0] == ("failed", f"no driver {DRIVER} is installed")
        apply([{"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER}, "spec": {}}])
    try:
        assert look() == [
            ("ok", f"the driver {DRIVER} is installed"),
            ("failed", "there is no Secret `artifacts-s3`"),
        ]
        kubectl("create", "secret", "generic", "artifacts-s3", "--from-literal=name=charter")
        assert look()[1] == ("ok", "the Secret `artifacts-s3` is there")
    finally:
        if not there:
            kubectl("delete", "csidriver", DRIVER)
