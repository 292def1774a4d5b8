"""The overlay `gpu` is large enough for the model of 8B that it is for, by the formulas of docs/kubernetes.md."""

import inspect
import re

import pytest
import typer
from charter.cli.local.serve import _settings
from charter.cli.main import app
from charter.inference.vllm.engine import VllmEngine

from tests.deploy.manifests import ROOT, Manifest, containers, environment, of_kind, pod_specs, render
from tests.deploy.test_manifests import amount

GPU = ROOT / "deploy" / "overlays" / "gpu"
DOCUMENT = (ROOT / "docs" / "kubernetes.md").read_text()
GPU_BYTES = 80e9
# Left for activations in the document's own sums.
ACTIVATIONS = 10e9
# Llama 3.1 8B: parameters, those outside the layers, those of one layer; layers, heads of keys and values, their size.
PARAMETERS, EMBEDDINGS, LAYER = 8.03e9, 1.05e9, 0.22e9
LAYERS, KV_HEADS, HEAD = 32, 8, 128


def container(name: str) -> Manifest:
    (found,) = [one for owner, _, one in containers(render(GPU)) if owner == name]
    return found


def gpus(name: str) -> int:
    return int(container(name)["resources"]["limits"]["nvidia.com/gpu"])


def settings(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Settings of the engine as `charter serve` reads them from the container's environment."""
    monkeypatch.setenv("CHARTER_ENGINE_SETTINGS", environment(render(GPU), container(name))["CHARTER_ENGINE_SETTINGS"])
    command = typer.main.get_command(app).commands["serve"].commands[name].load()  # type: ignore[attr-defined]
    given = command.make_context(name, ["--model=m", *(["--constitution=c"] if name == "judge" else [])])
    return _settings(given.params["setting"])


@pytest.mark.parametrize("name", ["policy", "judge"])
def test_vllm_has_room_for_weights_cache_and_the_longest_context(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = settings(name, monkeypatch)
    assert found.keys() <= inspect.signature(VllmEngine).parameters.keys()
    assert found.get("tensor_parallel", 1) == gpus(name)
    cache = found["kv_cache_gib"] * 2**30
    token = 2 * LAYERS * KV_HEADS * HEAD * 2
    assert found["max_context_tokens"] * token <= cache, "vLLM refuses a context that its cache cannot hold"
    assert 2 * PARAMETERS + cache + ACTIVATIONS <= GPU_BYTES


def test_new_weights_fit_where_they_are_staged() -> None:
    (policy,) = [spec for name, spec in pod_specs(render(GPU)) if name == "policy"]
    (state,) = [volume for volume in policy["volumes"] if volume["name"] == "state"]
    assert amount(state["emptyDir"]["sizeLimit"]) >= 8 * PARAMETERS, "the kubelet evicts a pod that writes more"
    (preference,) = [one for one in of_kind(render(GPU), "StatefulSet") if one["metadata"]["name"] == "preference"]
    (claim,) = preference["spec"]["volumeClaimTemplates"]
    assert amount(claim["spec"]["resources"]["requests"]["storage"]) >= 4 * PARAMETERS


def test_a_run_fits_on_the_claims_and_into_the_worker() -> None:
    claims = {one["metadata"]["name"]: one for one in of_kind(render(GPU), "PersistentVolumeClaim")}
    storage = amount(claims["artifacts"]["spec"]["resources"]["requests"]["storage"])
    assert storage >= 3 * 24 * PARAMETERS + 2 * 4 * PARAMETERS, "two checkpoints, one more while writing, two models"
    assert claims["artifacts"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert amount(container("worker")["resources"]["limits"]["memory"]) >= 8 * PARAMETERS
    whole = 4 * (2 * EMBEDDINGS + 3 * LAYER)
    assert 32 * PARAMETERS / gpus("worker") + whole + ACTIVATIONS <= GPU_BYTES


def test_the_document_counts_the_gpus_of_the_overlay() -> None:
    servers = sum(gpus(name) for name in ("policy", "judge", "preference"))
    assert f"wants {servers + gpus('worker')} GPUs, {gpus('worker')} of them on one node" in DOCUMENT
    assert f"| 8B | {servers + gpus('worker')} | {servers} | 0 |" in DOCUMENT


@pytest.mark.parametrize(("model", "parameters"), [("135M", 134.5e6), ("1B", 1e9), ("8B", 8e9), ("70B", 70e9)])
def test_the_document_computes_by_its_formulas(model: str, parameters: float) -> None:
    row = re.search(rf"^\| {model} \| ([\d.]+ [GT]B) \| ([\d.]+ [GT]B) \| ([\d.]+ [GT]B) \|", DOCUMENT, re.MULTILINE)
    assert row, f"no row for {model}"
    for text, each in zip(row.groups(), (2, 32, 24), strict=True):
        number, unit = text.split()
        scale = {"GB": 1e9, "TB": 1e12}[unit]
        digits = len(number.partition(".")[2])
        assert round(each * parameters / scale, digits) == float(number), text
    disk = re.search(rf"^\| {model} \| \d+ \| \d+ \| 0 \| ([\d.]+) ([GT]B) and the models \|", DOCUMENT, re.MULTILINE)
    if disk:
        scale = {"GB": 1e9, "TB": 1e12}[disk[2]]
        assert round(3 * 24 * parameters / scale, len(disk[1].partition(".")[2])) == float(disk[1])
