"""The models of PPO: policy, frozen reference, critic; and their tensors by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from charter.inference.local.cpu_memory import keep_freed_memory
from charter.inference.preference_model import PreferenceModel
from charter.worker.errors import RunError
from charter.worker.training.batches import MicroBatch, pack
from charter.worker.training.logprobs import token_logprobs, token_logprobs_and_entropies
from charter.worker.training.packing import packed_hidden, use_packed_attention

V = TypeVar("V")

# Largest difference between our log-probs and the model's own before the model counts as unsupported.
_TOLERANCE = 1e-2


class ValueHead(nn.Linear):
    """A scalar from each hidden state; begins with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def rescale(self, slope: float, intercept: float) -> None:
        """Make every value ``slope * value + intercept``."""
        self.weight.mul_(slope)
        self.bias.mul_(slope).add_(intercept)


class LanguageModel(nn.Module):
    """A causal language model that computes logits only where they are needed. Dropout is off, weights are float32.

    With ``shared_trunk`` it has a second head, which is the critic.
    """

    model: Any
    value_head: ValueHead | None
    # Of the matrix products.
    precision = torch.float32

    def __init__(self, model: PreTrainedModel, *, shared_trunk: bool = False) -> None:
        super().__init__()
        self.model = model
        head = model.get_output_embeddings()
        self.value_head = ValueHead(head.in_features).to(head.weight.device) if shared_trunk else None
        use_packed_attention(model)
        self.eval()

    @classmethod
    def load(cls, name: str | Path, device: torch.device, *, shared_trunk: bool = False) -> "LanguageModel":
        """Load a folder or hub id. Raises ``OSError`` when there is none, ``RunError`` for an unsupported model."""
        keep_freed_memory()
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)
        loaded = cls(model, shared_trunk=shared_trunk)
        loaded.check()
        return loaded

    def logprobs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """Log-prob of each answer token, in nats, float32 [answer tokens]."""
        return self.logprobs_and_values(batch, temperature)[0]

    def logprobs_and_values(self, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor | None]:
        """``logprobs``, and with a value head the value of the state before each token, both [answer tokens]."""
        found: tuple[Tensor, Tensor | None] = self(batch, temperature, token_logprobs)
        return found

    def logprobs_entropies_and_values(
        self, batch: MicroBatch, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``logprobs_and_values`` with the entropy of each distribution, in nats, between; each [answer tokens]."""
        (logprobs, entropies), values = self(batch, temperature, token_logprobs_and_entropies)
        return logprobs, entropies, values

    def forward(self, batch: MicroBatch, temperature: float, statistics: Callable[..., V]) -> tuple[V, Tensor | None]:
        """``statistics`` of the answer tokens, and values. Only inside this call are sharded weights whole."""
        hidden = packed_hidden(self.model.base_model, batch, self.precision)
        weight = self.model.get_output_embeddings().weight
        values = self.value_head(hidden).squeeze(-1) if self.value_head is not None else None
        return statistics(hidden, weight, batch.targets, temperature, self.precision), values

    @torch.no_grad()
    def check(self) -> None:
        """Compare with the model's own logits on three packed sequences, two of which begin alike.

        Some architectures cap, scale or bias their logits after the head, or do not let attention be replaced. Raises
        ``RunError`` when they differ.
        """
        device = self.model.get_output_embeddings().weight.device
        answers = [list(range(2, 14)), [*range(2, 11), 20, 21, 22], list(range(30, 35))]
        packed = self.logprobs(pack([([1], answer) for answer in answers], device), 1.0)
        for answer, found in zip(answers, torch.split(packed, [len(answer) for answer in answers]), strict=True):
            ids = torch.tensor([1, *answer], device=device)
            logits: Tensor = self.model(input_ids=ids[:-1].unsqueeze(0), use_cache=False).logits[0].float()
            own = logits.log_softmax(dim=1).gather(1, ids[1:].unsqueeze(1)).squeeze(1)
            if not (own - found).abs().max() <= _TOLERANCE:
                raise RunError(
                    f"{type(self.model).__name__} changes its logits behind the language-model head or its attention "
                    "cannot be replaced, which the training here relies on: use another model"
                )

    @property
    def device(self) -> torch.device:
        """Where it is now."""
        place: torch.device = self.model.get_output_embeddings().weight.device
        return place


class Critic(nn.Module):
    """A backbone with a scalar head: the value of the state before each answer token."""

    backbone: Any
    # Of the matrix products.
    precision = torch.float32

    def __init__(self, backbone: PreTrainedModel, head: ValueHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        use_packed_attention(backbone)
        self.eval()

    @classmethod
    def from_preference_model(cls, folder: Path, device: torch.device) -> "Critic":
        """Start as the preference model, its centring included (N+, arXiv 2403.17031, detail 22)."""
        model = PreferenceModel.load(folder)
        # Of an ensemble the mean of its members, or the first of those that have backbones of their own.
        members = slice(0, 1) if model.separate else slice(None)
        head = ValueHead(model.head.in_features)
        with torch.no_grad():
            head.weight.copy_(model.head.weight[members].mean(dim=0, keepdim=True))
            head.bias.copy_(model.head.bias[members].mean(dim=0, keepdim=True) - model.offset)
        return cls(model.backbone, head).to(device)

    @classmethod
    def from_policy(cls, name: str | Path, device: torch.device) -> "Critic":
        """Start as the policy with a head of zeros, for a preference model that reads other tokens than the policy."""
        backbone = AutoModel.from_pretrained(name, dtype=torch.float32)
        return cls(backbone, ValueHead(backbone.config.hidden_size)).to(device)

    def values(self, batch: MicroBatch) -> Tensor:
        """Value of the state before each answer token, float32 [answer tokens]."""
        values: Tensor = self(batch).squeeze(-1)
        return values

    def forward(self, batch: MicroBatch) -> Tensor:
        """``values``, [answer tokens, 1]. Only inside this call are sharded weights whole."""
        values: Tensor = self.head(packed_hidden(self.backbone, batch, self.precision))
        return values.float()


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """Keep only the inputs of the layers for the backward pass, which computes the rest again (Chen et al. 2016).

    Raises ``RunError`` for a model whose layers cannot.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RunError(f"{type(model).__name__} has no gradient checkpointing: unset ppo.gradient_checkpointing")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        # Transformers does it in training mode only. The modules inside stay in evaluation mode: dropout stays off.
        layer.training = True


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each tied tensor once, without copying."""
    tensors: dict[str, Tensor] = {name: parameter.detach() for name, parameter in module.named_parameters()}
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return tensors | {name: tensor for name, tensor in module.state_dict().items() if name not in tied}
