"""The cluster of CHARTER_TEST_KUBECONFIG: kubectl, Charter's own command, and the rights of a ServiceAccount.

CHARTER_TEST_CONTEXT names a context of the kubeconfig; CHARTER_TEST_IMAGES a registry when the images are not on the
nodes.
"""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tests.deploy.manifests import ROOT, Manifest, render

KUBECONFIG = os.environ.get("CHARTER_TEST_KUBECONFIG", "")
CONTEXT = os.environ.get("CHARTER_TEST_CONTEXT", "")
REGISTRY = os.environ.get("CHARTER_TEST_IMAGES", "")
NAMESPACE = "charter"
LOCAL = ROOT / "deploy/overlays/local"
# A real cluster's controllers answer in seconds; a loaded one takes longer.
PATIENCE_SECONDS = 120.0

T = TypeVar("T")


def environment() -> dict[str, str]:
    return {**os.environ, "KUBECONFIG": KUBECONFIG, "PYTHONPATH": str(ROOT / "services")}


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """What kubectl prints, as the administrator of the kubeconfig."""
    context = [f"--context={CONTEXT}"] if CONTEXT else []
    command = [str(Path(sys.executable).parent / "kubectl"), *context, "--namespace", NAMESPACE, *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment())
    assert not check or result.returncode == 0, result.stderr
    return result.stdout


def get(*arguments: str) -> Any:
    """Objects as JSON."""
    return json.loads(kubectl("get", *arguments, "-o", "json"))


def apply(objects: Iterable[Manifest], *options: str) -> str:
    """Apply objects on the server's side; gives what kubectl prints."""
    return kubectl("apply", "--server-side", *options, "-f", "-", stdin=yaml.safe_dump_all(objects))


def charter(*arguments: str) -> "subprocess.Popen[str]":
    """Charter's command on the cluster."""
    command = [sys.executable, "-m", "charter.cli.main", "--context", CONTEXT, "-n", NAMESPACE, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def until(look: Callable[[], T], seconds: float = PATIENCE_SECONDS, pause: float = 0.5) -> T:
    """Look again and again until there is something; the cluster's controllers act when they like."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"nothing after {seconds:.0f} s"
        time.sleep(pause)
    return found


def chosen(*wanted: str) -> list[Manifest]:
    """Objects of the overlay `local` by KIND/NAME, free to be changed."""
    found = [one for one in render(LOCAL) if f"{one['kind']}/{one['metadata']['name']}" in wanted]
    assert len(found) == len(wanted), wanted
    return copy.deepcopy(found)


def kubeconfig_of(account: str, folder: Path) -> Path:
    """A kubeconfig with the token of a ServiceAccount, and so with its rights alone."""
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    config["users"] = [{"name": account, "user": {"token": kubectl("create", "token", account).strip()}}]
    config["contexts"][0]["context"]["user"] = account
    file = folder / f"{account}.kubeconfig"
    file.write_text(json.dumps(config))
    return file
