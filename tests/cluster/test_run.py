"""The overlay `local` on real nodes: a small run from here, while a pod of each kind is killed.

The images must be on the nodes, or in the registry that CHARTER_TEST_IMAGES names.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.access import LOCAL, REGISTRY, apply, charter, get, kubectl, until
from tests.deploy.manifests import ROOT, SERVICES, loose_objects

RUN_SECONDS = 3600.0
MODEL = "/models/smollm2-135m-instruct"

pytestmark = pytest.mark.timeout(7200)


def as_json(*arguments: str) -> Any:
    process = charter(*arguments, "--json")
    output, errors = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 0, (errors, output)
    return json.loads(output)


def ready(service: str) -> None:
    kubectl("rollout", "status", f"{get_kind(service)}/{service}", "--timeout=900s")


def get_kind(service: str) -> str:
    return "deployment" if service == "judge" else "statefulset"


@pytest.fixture(scope="module")
def site(namespace: str, real_model: Path) -> None:
    """The overlay with the model on its claim, and every pod ready."""
    if not get("nodes")["items"]:
        pytest.skip("the cluster has no nodes")
    with tempfile.TemporaryDirectory(dir=ROOT) as temporary:
        here = Path(temporary)
        document: dict[str, Any] = {"resources": [os.path.relpath(LOCAL, here)]}
        if REGISTRY:
            names = ("charter-model", "charter-worker")
            document["images"] = [{"name": name, "newName": f"{REGISTRY}/{name}"} for name in names]
        (here / "kustomization.yaml").write_text(yaml.safe_dump(document))
        kubectl("apply", "-k", str(here))
    (loader,) = loose_objects()
    if REGISTRY:
        (container,) = loader["spec"]["containers"]
        container["image"] = f"{REGISTRY}/{container['image']}"
    apply([loader])
    kubectl("wait", "--for=condition=Ready", "pod/model-loader", "--timeout=600s")
    kubectl("cp", str(real_model), f"model-loader:{MODEL}")
    kubectl("delete", "pod", "model-loader")
    for service in SERVICES:
        ready(service)


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A run of a few minutes: its prompts are files of this machine."""
    for name in ("train", "held_out"):
        prompts = [
            {"id": f"{name}-{index}", "prompt": f"Say something about the {name} number {index}."}
            for index in range(16)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    file = tmp_path / "run.yaml"
    fields = {
        "name": "cluster-test",
        "seed": 1,
        "policy": {"model": MODEL},
        "judge": {"model": MODEL},
        "prompts": {"train": ["train.jsonl"], "held_out": ["held_out.jsonl"]},
        "sampling": {"max_new_tokens": 8},
        "comparisons": {"pairs": 8},
        "ppo": {"steps": 6, "episodes_per_step": 4},
        "evaluation": {"prompts": 4},
    }
    file.write_text(yaml.safe_dump(fields))
    return file


def wait_for_step(run: str, step: int) -> None:
    """Until a run has done that many PPO steps."""

    def done() -> bool:
        found = as_json("runs", "show", run)
        assert found["state"] in ("RUN_STATE_PENDING", "RUN_STATE_RUNNING"), found
        event = found.get("last_event", {})
        return bool(event.get("phase") == "PHASE_PPO" and event.get("done", 0) >= step)

    # Each look starts a command, which costs the node more than it costs the run to be seen late.
    until(done, RUN_SECONDS, pause=15.0)


def test_the_doctor_is_content(site: None) -> None:
    found = as_json("doctor")
    assert not [one for one in found if one["result"] == "failed"], found


def test_a_run_survives_the_death_of_every_kind_of_pod(site: None, spec: Path) -> None:
    started = as_json("run", str(spec), "--detach")
    for step, victim in enumerate(("worker", "trainer", "policy", "judge", "preference"), start=1):
        wait_for_step(started["id"], step)
        kubectl("delete", "pod", "-l", f"app.kubernetes.io/name={victim}", "--wait=false")
        if victim == "trainer":
            ready(victim)
    watching = charter("runs", "watch", started["id"])
    watching.communicate(timeout=RUN_SECONDS)
    ended = as_json("runs", "show", started["id"])
    assert ended["state"] == "RUN_STATE_SUCCEEDED", ended
    assert ended["attempts"] == 1, "the Job starts its pods again, the run has one attempt"
    folder = Path(as_json("runs", "fetch", started["id"])["folder"])
    assert (folder / "run.json").is_file()
    assert any(folder.glob("policy/**/*.safetensors"))
