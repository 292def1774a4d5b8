"""The plan of a shared GPU: its formulas against real models and their tensors, its decisions against small sums."""

import json
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from charter.cli.main import app
from charter.memory import needs
from charter.memory.model_size import ModelSize, model_size
from charter.memory.needs import GIB
from charter.memory.plan import models_of, plan, ways_out
from charter.spec.defaults import fill_defaults
from charter.spec.facts import learning_stages
from charter.v1 import run_pb2
from charter.worker.reinforcement.update import Learner
from charter.worker.supervised.corpus import Item
from charter.worker.supervised.learner import TokenLearner
from charter.worker.supervised.loop import make_learner as make_stage_learner
from charter.worker.training.batches import TrainingSequence, pack
from charter.worker.training.models import LanguageModel, checkpoint_gradients
from google.protobuf import json_format
from safetensors import safe_open
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from tests.support.learners import CPU, make_learner

ROOT = Path(__file__).resolve().parents[3]

# Llama 3.1 8B by its config; its paper and model card give 8.03e9 parameters and 128 KiB of cache a token.
LLAMA_8B = ModelSize(
    name="8b",
    parameters=8_030_261_248,
    head_parameters=128_256 * 4096,
    linear_parameters=32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336),
    linear_ends=32 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)),
    layers=32,
    width=4096,
    inner_width=14336,
    key_width=1024,
    vocabulary=128_256,
    context_tokens=131_072,
)
SIZES = {"policy": LLAMA_8B, "judge": LLAMA_8B, "preference": LLAMA_8B}


def spec_of(**sections: dict[str, Any]) -> run_pb2.RunSpec:
    values: dict[str, dict[str, Any]] = {
        "policy": {"model": "8b", "engine": "vllm"},
        "judge": {"model": "8b", "engine": "vllm"},
        "sampling": {"max_new_tokens": 256},
        "ppo": {"episodes_per_step": 64},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return fill_defaults(json_format.ParseDict(values, run_pb2.RunSpec()))


def tensor_bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_the_size_of_a_model_is_that_of_its_tensors(tiny_model: Path) -> None:
    size = model_size(str(tiny_model))
    with safe_open(tiny_model / "model.safetensors", framework="pt") as file:
        stored = sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys())  # noqa: SIM118
    assert size.parameters == size.backbone_parameters == stored
    model = LanguageModel.load(tiny_model, CPU).model
    linear = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    assert size.linear_parameters == sum(one.weight.numel() for one in linear)
    assert (size.layers, size.width, size.inner_width, size.key_width) == (2, 32, 64, 16)


def test_the_size_of_a_published_model(tmp_path: Path) -> None:
    LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        num_hidden_layers=16,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    ).save_pretrained(tmp_path)
    # Llama 3.2 1B.
    assert model_size(str(tmp_path)).parameters == 1_235_814_400


def test_the_cache_of_a_published_model() -> None:
    assert LLAMA_8B.cache_bytes_a_token == 128 * 1024


def step_without_gradients(learner: Learner) -> list[Tensor]:
    """Let the optimisers make their moments; returns the weights of all models and the moments."""
    for optimizer in (learner.actor_optimizer, learner.critic_optimizer):
        for group in optimizer.param_groups if optimizer is not None else ():
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        if optimizer is not None:
            optimizer.step()
    return state_of(learner)


def state_of(learner: Learner) -> list[Tensor]:
    modules = [module for module in (learner.actor, learner.reference, learner.critic) if module is not None]
    tensors: list[Tensor] = [parameter for module in modules for parameter in module.parameters()]
    for optimizer in (learner.actor_optimizer, learner.critic_optimizer):
        states = optimizer.state.values() if optimizer is not None else ()
        tensors += [tensor for state in states for tensor in state.values() if tensor.dim()]
    return tensors


@pytest.mark.parametrize(
    "values", [{}, {"lora_rank": 2}, {"algorithm": run_pb2.ALGORITHM_RLOO}, {"shared_trunk": True}]
)
def test_what_the_worker_keeps(tiny_model: Path, values: dict[str, Any]) -> None:
    learner = make_learner(tiny_model, **values)
    spec = fill_defaults(run_pb2.RunSpec(ppo=learner.spec))
    # The critic's scalar head, 33 numbers with their moments, is not in the formula.
    expected = tensor_bytes(step_without_gradients(learner))
    assert needs.ppo_need(model_size(str(tiny_model)), spec).state == pytest.approx(expected, rel=2e-3)


def test_everything_the_worker_keeps_moves(tiny_model: Path) -> None:
    learner = make_learner(tiny_model)
    step_without_gradients(learner)
    learner.to(torch.device("meta"))
    assert {tensor.device.type for tensor in state_of(learner)} == {"meta"}


def kept_by_a_forward_pass(layers: int, tokens: int, *, low: bool, checkpointed: bool) -> tuple[int, ModelSize]:
    """Bytes that PyTorch keeps for the backward pass, parameters left out, and the size of the model."""
    shape = {"hidden_size": 64, "intermediate_size": 192, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, num_hidden_layers=layers, tie_word_embeddings=True, **shape))
    actor = LanguageModel(model)
    actor.precision = torch.bfloat16 if low else torch.float32
    if checkpointed:
        checkpoint_gradients(model)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in actor.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            # Held, so that its address is not used again.
            kept[storage.data_ptr()] = storage
        return tensor

    # Two that share nothing, each read without its last token.
    answers = [[(first + token) % 200 + 1 for token in range(tokens // 2)] for first in (0, 100)]
    batch = pack([([250], answer) for answer in answers], torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The result holds the graph, and so what is kept.
        logprobs = actor.logprobs(batch, 1.0)
    assert logprobs.requires_grad
    matrices = layers * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 192)
    size = replace(
        LLAMA_8B, layers=layers, width=64, inner_width=192, key_width=32, vocabulary=300, linear_parameters=matrices
    )
    return sum(storage.nbytes() for storage in kept.values()), size


@pytest.mark.parametrize(
    ("low", "checkpointed", "most"), [(False, False, 1.03), (True, False, 1.2), (False, True, 1.001)]
)
def test_what_a_forward_pass_keeps_in_two_more_layers(low: bool, checkpointed: bool, most: float) -> None:
    """The difference of two depths: what lies before and behind the layers is left out of the formula."""
    found, planned = [], []
    for layers in (2, 4):
        kept, size = kept_by_a_forward_pass(layers, 256, low=low, checkpointed=checkpointed)
        found.append(kept)
        planned.append(needs.saved_bytes(size, 256, low=low, checkpointed=checkpointed))
    ratio = (planned[1] - planned[0]) / (found[1] - found[0])
    # A little below 1: the norms keep a number for each token besides.
    assert 0.97 <= ratio <= most


def test_the_arrangement_is_the_first_that_fits() -> None:
    spec = spec_of(ppo={"lora_rank": 16}, preference_model={"lora_rank": 16})
    arrangements = [
        run_pb2.GPU_SHARING_TOGETHER,
        run_pb2.GPU_SHARING_SERVERS_SLEEP,
        run_pb2.GPU_SHARING_TAKE_TURNS,
    ]
    peaks = []
    for sharing in arrangements:
        spec.services.gpu_sharing = sharing
        peaks.append(max(plan(spec, SIZES, 80 * GIB).peaks.values()))
    assert peaks == sorted(peaks, reverse=True)
    spec.services.gpu_sharing = run_pb2.GPU_SHARING_UNSPECIFIED
    # A GPU that is just large enough for each, with the share that is not planned with.
    just_enough = [plan(spec, SIZES, int(peak / 0.95) + 1) for peak in peaks]
    assert [one.sharing for one in just_enough] == arrangements
    assert all(one.fits for one in just_enough)
    assert not plan(spec, SIZES, int(peaks[-1] / 0.95) - 1).fits


def test_the_peak_of_turns_is_the_larger_of_both_sides() -> None:
    spec = spec_of(ppo={"lora_rank": 16}, services={"gpu_sharing": "GPU_SHARING_TAKE_TURNS"})
    planned = plan(spec, SIZES, 80 * GIB)
    ppo = needs.ppo_need(LLAMA_8B, spec)
    assert planned.peaks["updating"] == (2 * needs.VLLM_ASLEEP + needs.CONTEXT + needs.CONTEXT + ppo.state + ppo.step)
    weights = 2 * 8_030_261_248
    cache = 64 * 512 * 128 * 1024
    policy = planned.holders[0]
    assert policy.serving - weights - cache - needs.CONTEXT == pytest.approx(
        2048 * 2 * (4 * 4096 + 3 * 14336) + 3 * 4 * 64 * 128_256
    )
    assert planned.settings["policy"]["kv_cache_gib"] == cache / GIB
    assert planned.main_memory >= 2 * weights + ppo.state


def test_the_shares_of_the_servers_are_what_they_hold_and_fit_together() -> None:
    planned = plan(spec_of(ppo={"lora_rank": 16}, preference_model={"lora_rank": 16}), SIZES, 80 * GIB)
    assert planned.fits
    for holder in planned.holders[:2]:
        settings = planned.settings[holder.name]
        share = settings["gpu_memory_utilization"]
        assert holder.serving <= share * planned.total <= holder.serving + 0.001 * planned.total
        assert settings["sleep_mode"]
    # The longest text that is judged: prompt, two answers, and what is around them.
    assert planned.settings["judge"]["max_context_tokens"] == 256 + 2 * 256 + 2048


def test_ways_out_are_the_fewest_changes_that_fit() -> None:
    spec = spec_of()
    assert not plan(spec, SIZES, 80 * GIB).fits
    outs = ways_out(spec, SIZES, 80 * GIB)
    assert [lines for lines, _ in outs] == [("ppo: {lora_rank: 16}, preference_model: {lora_rank: 16}",)]
    assert all(planned.fits for _, planned in outs)
    # The spec itself is as it was.
    assert not spec.ppo.HasField("lora_rank")
    assert ways_out(spec, SIZES, 8 * GIB) == []


def test_a_judge_elsewhere_and_no_preference_model_take_nothing() -> None:
    spec = spec_of(judge={"engine": "openai"}, reward={"judge_weight": 1.0, "preference_weight": 0.0})
    assert models_of(spec) == {"policy": "8b"}
    planned = plan(spec, {"policy": LLAMA_8B}, 400 * GIB)
    assert [one.name for one in planned.holders] == ["policy", "worker"]
    assert planned.peaks["fitting"] < planned.peaks["serving"] < planned.peaks["updating"]


def test_a_refresh_finds_the_models_of_ppo_beside_it() -> None:
    plain = plan(spec_of(), SIZES, 400 * GIB)
    refreshed = plan(spec_of(comparisons={"refresh_every_steps": 2}), SIZES, 400 * GIB)
    state = needs.ppo_need(LLAMA_8B, spec_of()).state
    assert refreshed.holders[-1].fitting - plain.holders[-1].fitting == state


def test_a_stage_before_rl_takes_what_its_tensors_do(tiny_model: Path) -> None:
    for lora_rank in (None, 2):
        settings = run_pb2.SupervisedSpec(lora_rank=lora_rank)
        learner = make_stage_learner(TokenLearner, str(tiny_model), "supervised", settings, 0)
        sequence = TrainingSequence(array("i", [1, 2, 3]), array("i", [0, 1]), array("i", [2, 3]))
        learner.update([Item((sequence,))], 1e-3)
        parameters = list(learner.actor.parameters())
        tensors: list[Tensor] = [*parameters, *(one for one in parameters if one.requires_grad)]
        for state in learner.optimizer.state.values():
            tensors += [tensor for tensor in state.values() if tensor.dim()]
        size = model_size(str(tiny_model))
        rest = needs.saved_bytes(size, 768) + needs._head(size, lora_rank is not None)
        assert needs.learning_need(size, settings).step - rest == pytest.approx(tensor_bytes(tensors), rel=2e-3)


def test_full_fine_tuning_before_adapters_is_what_counts() -> None:
    lora = {"ppo": {"lora_rank": 16}, "preference_model": {"lora_rank": 16}}
    spec = spec_of(**lora, supervised={"data": [{"source": "chat.jsonl"}]})
    planned = plan(spec, SIZES, 80 * GIB)
    # Weights, gradients and two moments of 8e9 parameters.
    assert planned.holders[-1].learning > 16 * 8_030_261_248
    assert planned.peaks["learning"] == max(planned.peaks.values())
    assert not planned.fits
    assert planned.disk == 4 * 8_030_261_248
    assert [lines for lines, _ in ways_out(spec, SIZES, 80 * GIB)] == [("supervised: {lora_rank: 16}",)]
    revising = spec_of(**lora, revision={})
    assert [lines for lines, _ in ways_out(revising, SIZES, 80 * GIB)] == [("revision: {learning: {lora_rank: 16}}",)]


def test_both_answers_of_a_comparison_are_in_memory_together() -> None:
    labels = {"data": [{"source": "labels.jsonl"}], "max_tokens": 4096, "lora_rank": 16}
    needed = {}
    for section in ("dpo", "kto"):
        settings = learning_stages(spec_of(**{section: labels}))[section]
        needed[section] = needs.learning_need(LLAMA_8B, settings).step
    assert needed["dpo"] - needed["kto"] == needs.saved_bytes(LLAMA_8B, 8192) - needs.saved_bytes(LLAMA_8B, 4096)
    lora = {"ppo": {"lora_rank": 16}, "preference_model": {"lora_rank": 16}}
    all_weights = spec_of(**lora, dpo={"data": labels["data"], "max_tokens": 256})
    assert plan(all_weights, SIZES, 80 * GIB).holders[-1].learning > 16 * 8_030_261_248
    assert [lines for lines, _ in ways_out(all_weights, SIZES, 80 * GIB)] == [("dpo: {lora_rank: 16}",)]


def test_a_run_that_only_learns_has_the_gpu_to_itself(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "Tides rise."}\n')
    file = tmp_path / "spec.yaml"
    file.write_text(f"name: tiny\npolicy: {{model: {tiny_model}}}\npretraining: {{data: [{{source: texts.jsonl}}]}}\n")
    shown = CliRunner().invoke(app, ["plan", str(file), "--gpu-gib", "80"])
    assert shown.exit_code == 0, shown.output
    assert "The worker has the GPU to itself" in " ".join(shown.output.split())
    for word in ("judge", "serving", "updating"):
        assert word not in shown.output
    found = json.loads(CliRunner().invoke(app, ["plan", str(file), "--gpu-gib", "80", "--json"]).stdout)
    assert [one["name"] for one in found["processes"]] == ["worker"]
    assert found["peak_bytes"]["learning"] == found["processes"][0]["learning"] > needs.CONTEXT
    assert found["learned_folders_bytes"] == 4 * model_size(str(tiny_model)).parameters


def test_a_short_context_bounds_the_server() -> None:
    small = replace(LLAMA_8B, context_tokens=1024)
    planned = plan(spec_of(), SIZES | {"policy": small}, 400 * GIB)
    assert planned.settings["policy"]["max_context_tokens"] == 1024


@pytest.fixture
def spec_file(tmp_path: Path, tiny_model: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi"}\n{"prompt": "Why?"}\n')
    (tmp_path / "held_out.jsonl").write_text('{"prompt": "How?"}\n')
    constitution = ROOT / "examples" / "constitutions" / "general.yaml"
    file = tmp_path / "spec.yaml"
    file.write_text(
        f"name: tiny\npolicy: {{model: {tiny_model}}}\n"
        f"judge: {{model: {tiny_model}, engine: vllm, constitution: {constitution}}}\n"
        "prompts: {train: [prompts.jsonl], held_out: [held_out.jsonl]}\n"
    )
    return file


def test_the_command_shows_a_plan_without_a_gpu(spec_file: Path) -> None:
    shown = CliRunner().invoke(app, ["plan", str(spec_file), "--gpu-gib", "80"])
    assert shown.exit_code == 0, shown.output
    assert "together" in shown.output
    for name in ("policy", "judge", "preference", "worker"):
        assert name in shown.output
    result = CliRunner().invoke(app, ["plan", str(spec_file), "--gpu-gib", "80", "--json"])
    found = json.loads(result.stdout)
    assert found["fits"]
    assert found["settings"]["policy"]["gpu_memory_utilization"] < 0.05


def test_the_command_fails_when_nothing_fits(spec_file: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(spec_file), "--gpu-gib", "1"])
    assert result.exit_code == 1
    assert "does not fit" in result.output


def test_the_command_checks_the_spec_as_every_other(spec_file: Path) -> None:
    spec_file.write_text(spec_file.read_text() + "ppo: {minibatches: 500, episodes_per_step: 4}\n")
    checked, planned = (
        CliRunner().invoke(app, [*command, str(spec_file)]) for command in (["check"], ["plan", "--gpu-gib", "80"])
    )
    assert planned.exit_code == 1
    assert ":5: ppo.minibatches: is 500, too many for ppo.episodes_per_step, 4" in planned.stderr
    assert planned.stderr == checked.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_command_asks_for_a_size_where_there_is_no_gpu(spec_file: Path) -> None:
    result = CliRunner().invoke(app, ["plan", str(spec_file)])
    assert result.exit_code == 1
    assert "--gpu-gib" in result.stderr
