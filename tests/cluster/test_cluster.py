"""On a real cluster: apply the overlay `local`, run a small spec from here, kill pods of each kind, check the result.

Needs CHARTER_TEST_KUBECONFIG; CHARTER_TEST_IMAGES names a registry when the images are not on the node, and
CHARTER_TEST_CONTEXT a context. The namespace `charter` is made, and deleted at the end.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import ROOT, SERVICES

KUBECONFIG = os.environ.get("CHARTER_TEST_KUBECONFIG", "")
CONTEXT = os.environ.get("CHARTER_TEST_CONTEXT", "")
REGISTRY = os.environ.get("CHARTER_TEST_IMAGES", "")
NAMESPACE = "charter"
PATIENCE_SECONDS = 1800.0

pytestmark = [
    pytest.mark.skipif(not KUBECONFIG, reason="CHARTER_TEST_KUBECONFIG names no kubeconfig of a cluster to test on"),
    pytest.mark.timeout(7200),
]


def environment() -> dict[str, str]:
    return {**os.environ, "KUBECONFIG": KUBECONFIG, "PYTHONPATH": str(ROOT / "services")}


def kubectl(*arguments: str, check: bool = True) -> str:
    context = [f"--context={CONTEXT}"] if CONTEXT else []
    command = [str(Path(sys.executable).parent / "kubectl"), *context, "--namespace", NAMESPACE, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert not check or result.returncode == 0, result.stderr
    return result.stdout


def charter(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "charter.cli.main", "--context", CONTEXT, "-n", NAMESPACE, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def as_json(*arguments: str) -> Any:
    process = charter(*arguments, "--json")
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    return json.loads(output)


@pytest.fixture(scope="module")
def cluster(real_model: Path) -> Iterator[None]:
    """The overlay `local`, with the model on its claim and every pod ready."""
    with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
        here = Path(temporary)
        document: dict[str, Any] = {"resources": [os.path.relpath(ROOT / "deploy/overlays/local", here)]}
        if REGISTRY:
            names = ("charter-model", "charter-worker")
            document["images"] = [{"name": name, "newName": f"{REGISTRY}/{name}"} for name in names]
        (here / "kustomization.yaml").write_text(yaml.safe_dump(document))
        kubectl("apply", "-k", str(here))
    try:
        loader = (ROOT / "deploy/overlays/local/model-loader.yaml").read_text()
        if REGISTRY:
            loader = loader.replace("image: charter-worker", f"image: {REGISTRY}/charter-worker")
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(loader)
            file.flush()
            kubectl("apply", "-f", file.name)
        kubectl("wait", "--for=condition=Ready", "pod/model-loader", "--timeout=600s")
        kubectl("cp", str(real_model), "model-loader:/models/smollm2-135m-instruct")
        kubectl("delete", "pod", "model-loader")
        for service in SERVICES:
            kubectl("wait", "--for=condition=Ready", "pod", "-l", f"app.kubernetes.io/name={service}", "--timeout=900s")
        yield
    finally:
        kubectl("delete", "namespace", NAMESPACE, check=False)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A run of a few minutes: its prompts are files of this machine."""
    for name in ("train", "held_out"):
        prompts = [
            {"id": f"{name}-{index}", "prompt": f"Say something about the number {index}."} for index in range(16)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    file = tmp_path / "run.yaml"
    model = "/models/smollm2-135m-instruct"
    fields = {
        "name": "cluster-test",
        "seed": 1,
        "policy": {"model": model},
        "judge": {"model": model},
        "prompts": {"train": ["train.jsonl"], "held_out": ["held_out.jsonl"]},
        "sampling": {"max_new_tokens": 8},
        "comparisons": {"pairs": 8},
        "ppo": {"steps": 6, "episodes_per_step": 4},
        "evaluation": {"prompts": 4},
    }
    file.write_text(yaml.safe_dump(fields))
    return file


def wait_for_step(run: str, step: int) -> None:
    """Until a run has done a PPO step."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while int((found := as_json("runs", "show", run)).get("last_event", {}).get("step", 0)) < step:
        assert found["state"] in ("RUN_STATE_PENDING", "RUN_STATE_RUNNING"), found
        assert time.monotonic() < deadline, found
        time.sleep(5)


def test_the_doctor_is_content(cluster: None) -> None:
    found = as_json("doctor")
    assert not [one for one in found if one["result"] == "failed"], found


def test_a_run_survives_the_death_of_every_kind_of_pod(cluster: None, spec: Path) -> None:
    started = as_json("run", str(spec), "--detach")
    for step, victim in enumerate(("worker", "trainer", "policy", "judge", "preference"), start=1):
        wait_for_step(started["id"], step)
        kubectl("delete", "pod", "-l", f"app.kubernetes.io/name={victim}", "--wait=false")
    watching = charter("runs", "watch", started["id"])
    watching.communicate(timeout=PATIENCE_SECONDS)
    ended = as_json("runs", "show", started["id"])
    assert ended["state"] == "RUN_STATE_SUCCEEDED", ended
    assert ended["attempts"] == 1, "the Job starts its pods again, the run has one attempt"
    folder = Path(as_json("runs", "fetch", started["id"])["folder"])
    assert (folder / "run.json").is_file()
    assert any(folder.glob("policy/**/*.safetensors"))
