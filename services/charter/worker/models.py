"""The models of PPO: policy, frozen reference, critic; and their tensors by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from charter.inference.preference_model import PreferenceModel
from charter.worker.batches import MicroBatch
from charter.worker.errors import RunError
from charter.worker.logprobs import token_entropies, token_logprobs

# Largest difference between our log-probs and the model's own before the model counts as unsupported.
_TOLERANCE = 1e-2


class LanguageModel(nn.Module):
    """A causal language model that computes logits only where they are needed. Dropout is off, weights are float32."""

    model: Any

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.eval()

    @classmethod
    def load(cls, name: str | Path, device: torch.device) -> "LanguageModel":
        """Load a folder or hub id. Raises ``OSError`` when there is none, ``RunError`` for an unsupported model."""
        loaded = cls(AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device))
        loaded.check()
        return loaded

    def logprobs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """Log-prob of each answer token, in nats, float32 [answer tokens]."""
        return token_logprobs(self._hidden(batch), self._head_weight, batch.targets, temperature)

    def logprobs_and_entropies(self, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-prob of each answer token and entropy of its distribution, in nats, both float32 [answer tokens]."""
        hidden = self._hidden(batch)
        return (
            token_logprobs(hidden, self._head_weight, batch.targets, temperature),
            token_entropies(hidden, self._head_weight, temperature),
        )

    @torch.no_grad()
    def check(self) -> None:
        """Compare with the model's own logits: some architectures cap, scale or bias them after the head.

        Raises ``RunError`` when they differ.
        """
        device = self._head_weight.device
        ids = torch.arange(1, 9, device=device).unsqueeze(0)
        states = torch.ones_like(ids, dtype=torch.bool)
        states[:, -1] = False
        batch = MicroBatch([0], ids, states, ids[0, 1:])
        own: Tensor = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(dim=1)
        difference = own.gather(1, batch.targets.unsqueeze(1)).squeeze(1) - self.logprobs(batch, 1.0)
        if not difference.abs().max() <= _TOLERANCE:
            raise RunError(
                f"{type(self.model).__name__} changes its logits behind the language-model head, "
                "which PPO here does not reproduce: use another model"
            )

    @property
    def _head_weight(self) -> Tensor:
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight

    def _hidden(self, batch: MicroBatch) -> Tensor:
        # Causal attention never looks at padding on the right, so no mask is needed.
        output = self.model.base_model(input_ids=batch.input_ids, use_cache=False)
        hidden: Tensor = output.last_hidden_state[batch.states]
        return hidden


class Critic(nn.Module):
    """A backbone with a scalar head: the value of the state before each answer token."""

    backbone: Any

    def __init__(self, backbone: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.eval()

    @classmethod
    def from_preference_model(cls, folder: Path, device: torch.device) -> "Critic":
        """Start as the preference model, its centring included (N+, arXiv 2403.17031, detail 22)."""
        model = PreferenceModel.load(folder)
        # Of an ensemble, the mean of its members.
        head = nn.Linear(model.head.in_features, 1)
        with torch.no_grad():
            head.weight.copy_(model.head.weight.mean(dim=0, keepdim=True))
            head.bias.copy_(model.head.bias.mean(dim=0, keepdim=True) - model.offset)
        return cls(model.backbone, head).to(device)

    @classmethod
    def from_policy(cls, name: str | Path, device: torch.device) -> "Critic":
        """Start as the policy with a head of zeros, for a preference model that reads other tokens than the policy."""
        backbone = AutoModel.from_pretrained(name, dtype=torch.float32)
        head = nn.Linear(backbone.config.hidden_size, 1)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return cls(backbone, head).to(device)

    @torch.no_grad()
    def rescale(self, slope: float, intercept: float) -> None:
        """Make every value ``slope * value + intercept``."""
        self.head.weight.mul_(slope)
        self.head.bias.mul_(slope).add_(intercept)

    def values(self, batch: MicroBatch) -> Tensor:
        """Value of the state before each answer token, float32 [answer tokens]."""
        output = self.backbone(input_ids=batch.input_ids, use_cache=False)
        values: Tensor = self.head(output.last_hidden_state[batch.states]).squeeze(-1)
        return values.float()


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each tied tensor once, without copying."""
    tensors: dict[str, Tensor] = {name: parameter.detach() for name, parameter in module.named_parameters()}
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return tensors | {name: tensor for name, tensor in module.state_dict().items() if name not in tied}


@torch.no_grad()
def copy_tensors(path: Path, into: Mapping[str, Tensor]) -> None:
    """Overwrite tensors with those of a safetensors file. Raises ``ValueError`` when names or shapes differ."""
    with safe_open(path, framework="pt") as file:
        if set(file.keys()) != set(into):
            differing = sorted(set(file.keys()) ^ set(into))[:5]
            raise ValueError(f"{path} does not hold the expected tensors; differing: {', '.join(differing)}")
        for name, tensor in into.items():
            loaded = file.get_tensor(name)
            if loaded.shape != tensor.shape:
                raise ValueError(f"{path}: {name} has shape {tuple(loaded.shape)}, expected {tuple(tensor.shape)}")
            tensor.copy_(loaded)
