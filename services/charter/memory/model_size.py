"""What a model's config says about its size. Nothing of the weights is read."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from charter.inference.chat_template import loading
from charter.inference.local.model_check import backbone_of


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Parameters and widths of a causal language model."""

    name: str
    # All parameters; a head that is tied to the embedding is not counted again.
    parameters: int
    # Those of a language-model head of its own; 0 for a tied one.
    head_parameters: int
    # In the linear layers but the head, and the sum of these layers' inputs and outputs.
    linear_parameters: int
    linear_ends: int
    layers: int
    # Of the residual stream, of the MLP's inner layer, and of all keys of a token in a layer.
    width: int
    inner_width: int
    key_width: int
    vocabulary: int
    context_tokens: int

    @property
    def backbone_parameters(self) -> int:
        """Without the head: what critic and preference model hold."""
        return self.parameters - self.head_parameters

    @property
    def cache_bytes_a_token(self) -> int:
        """Keys and values of one token in bfloat16: 2 x layers x KV heads x head size x 2."""
        return 2 * self.layers * self.key_width * 2


def model_size(model: str) -> ModelSize:
    """Size of a hub id or folder. Raises ``OSError`` that says what to do when there is no config."""
    with loading(model):
        config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    head = skeleton.get_output_embeddings().weight
    linear = [module for module in backbone_of(skeleton).modules() if isinstance(module, nn.Linear | Conv1D)]
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return ModelSize(
        name=model,
        parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        head_parameters=0 if head is skeleton.get_input_embeddings().weight else head.numel(),
        linear_parameters=sum(layer.weight.numel() for layer in linear),
        linear_ends=sum(sum(layer.weight.shape) for layer in linear),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        inner_width=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        key_width=head_size * (getattr(text, "num_key_value_heads", None) or heads),
        vocabulary=text.vocab_size,
        context_tokens=text.max_position_embeddings,
    )
