"""What a model's architecture rules out, said before anything is sampled or judged; no weights are loaded."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from charter.inference.chat_template import loading
from charter.spec.chat_form import origin_of
from charter.spec.facts import needs_preference_model, reads_untrained_policy
from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.training.lora import layers_to_adapt
from charter.worker.training.models import layers_to_checkpoint
from charter.worker.training.starting import policy_model


def check_architectures(spec: run_pb2.RunSpec) -> None:
    """Raise ``RunError`` that names the model and what to change, ``OSError`` for a model that cannot be found."""
    policy = _architecture(spec.policy.model)
    # A section that the spec leaves out is empty.
    stages: dict[
        str, run_pb2.PretrainingSpec | run_pb2.SupervisedSpec | run_pb2.DpoSpec | run_pb2.KtoSpec | run_pb2.PpoSpec
    ]
    stages = {"pretraining": spec.pretraining, "supervised": spec.supervised}
    stages |= {"revision.learning": spec.revision.learning, "dpo": spec.dpo, "kto": spec.kto, "ppo": spec.ppo}
    for stage in stages.values():
        if stage.HasField("lora_rank"):
            layers_to_adapt(policy)
        if stage.gradient_checkpointing:
            layers_to_checkpoint(policy)
    # A text holds no token of a template, so that pretraining need not learn them, and cannot.
    asked = {"supervised": spec.HasField("supervised"), "revision.learning": spec.HasField("revision")}
    asked |= {"dpo": spec.HasField("dpo"), "kto": spec.HasField("kto")}
    first = next((name for name, is_asked in asked.items() if is_asked), "ppo")
    origin = origin_of(policy_model(spec))
    adapted = [first] if stages[first].HasField("lora_rank") else []
    if reads_untrained_policy(spec) and spec.preference_model.HasField("lora_rank"):
        adapted.append("preference_model")
    if adapted and origin is not None and origin.new_tokens:
        sections = " and ".join(f"{name}.lora_rank" for name in adapted)
        raise RunError(
            f"{sections} trains no embeddings, and policy.chat_template adds tokens that {spec.policy.model} "
            f"has never seen: {', '.join(origin.new_tokens)}. Train every weight (leave {sections} out), or take a "
            "template of tokens that the model has"
        )
    if needs_preference_model(spec) and spec.preference_model.HasField("lora_rank"):
        layers_to_adapt(_architecture(spec.preference_model.model))


def _architecture(name: str) -> PreTrainedModel:
    """A causal language model without the data of its weights."""
    with loading(name), torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name))
    return model
