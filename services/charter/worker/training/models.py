"""The models that learn or are learned from: policy, frozen reference, critic; and their tensors by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from charter.inference.local.cpu_memory import keep_freed_memory
from charter.inference.local.model import config_without_dropout, load_whole
from charter.inference.local.model_check import agrees, backbone_of, own_logprobs, probes, state_width
from charter.inference.preference_model import PreferenceModel
from charter.worker.errors import RunError
from charter.worker.training.batches import MicroBatch, pack
from charter.worker.training.logprobs import statistics_of_logits, token_logprobs, token_logprobs_and_entropies
from charter.worker.training.packing import longest_packed, packed_hidden, packed_logits


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
    # Most tokens of each sequence of a packed row; longer ones go through the model alone.
    longest_packed: int
    # Nothing but a matrix makes logits of hidden states: they need not all be held.
    plain_head: bool

    def __init__(self, model: PreTrainedModel, *, shared_trunk: bool = False) -> None:
        """Raises ``RunError`` for a model that cannot be trained."""
        super().__init__()
        self.model = model
        self.eval()
        head = model.get_output_embeddings()
        if head is None:
            raise RunError(f"{type(model).__name__} has no language-model head: use a causal language model")
        self.value_head = None
        longest = longest_packed(model)
        for self.plain_head, self.longest_packed in ((True, longest), (False, longest), (False, 0)):
            if self._is_right():
                break
        else:
            raise RunError(f"{type(model).__name__} does not give the same log-probs twice: use another model")
        if shared_trunk and not self.plain_head:
            raise RunError(f"{type(model).__name__} changes its logits behind the head: unset ppo.shared_trunk")
        if shared_trunk:
            self.value_head = ValueHead(head.in_features).to(head.weight.device)

    @classmethod
    def load(cls, name: str | Path, device: torch.device, *, shared_trunk: bool = False) -> "LanguageModel":
        """Load a folder or hub id. Raises ``OSError`` when there is none, ``RunError`` for an unsupported model."""
        keep_freed_memory()
        config = config_without_dropout(name)
        model = load_whole(AutoModelForCausalLM, name, config=config, dtype=torch.float32)
        return cls(model.to(device), shared_trunk=shared_trunk)

    def logprobs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """Log-prob of each answer token, in nats, float32 [answer tokens]."""
        return self.logprobs_and_values(batch, temperature)[0]

    def logprobs_and_values(self, batch: MicroBatch, temperature: float) -> tuple[Tensor, Tensor | None]:
        """``logprobs``, and with a value head the value of the state before each token, both [answer tokens]."""
        logprobs, _, values = self(batch, temperature, False)
        return logprobs, values

    def logprobs_entropies_and_values(
        self, batch: MicroBatch, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``logprobs_and_values`` with the entropy of each distribution, in nats, between; each [answer tokens]."""
        found: tuple[Tensor, Tensor, Tensor | None] = self(batch, temperature, True)
        return found

    def forward(
        self, batch: MicroBatch, temperature: float, entropies_too: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probs, entropies if asked for, values. Only inside this call are sharded weights whole."""
        if not self.plain_head:
            logits = packed_logits(self.model, batch, self.precision, self.longest_packed)
            return *statistics_of_logits(logits, batch.targets, temperature), None
        hidden = packed_hidden(backbone_of(self.model), batch, self.precision, self.longest_packed)
        values = self.value_head(hidden).squeeze(-1) if self.value_head is not None else None
        read = hidden, self.model.get_output_embeddings().weight, batch.targets, temperature, self.precision
        if entropies_too:
            return *token_logprobs_and_entropies(*read), values
        return token_logprobs(*read), None, values

    @torch.no_grad()
    def sample(self, prompt: Sequence[int], count: int, temperature: float, seed: int) -> list[int]:
        """``count`` token ids behind those of a prompt, one whole pass for each: a few, to look at.

        Without the cache of a generation, which gradient checkpointing rules out. Called as a method of a sharded model
        it must be registered with FSDP.
        """
        generator = torch.Generator().manual_seed(seed)
        ids = torch.tensor([list(prompt)], device=self.device)
        for _ in range(count):
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                logits: Tensor = self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            drawn = torch.multinomial((logits.float().cpu() / temperature).softmax(dim=1), 1, generator=generator)
            ids = torch.cat([ids, drawn.to(self.device)], dim=1)
        found: list[int] = ids[0, len(prompt) :].tolist()
        return found

    @torch.no_grad()
    def _is_right(self) -> bool:
        """Compare with the log-probs of whole texts, by the model's own head."""
        sequences = probes(self.model)
        batch = pack([(ids[:1], ids[1:]) for ids in sequences], self.device)

        def own() -> list[Tensor]:
            return [torch.cat([own_logprobs(self.model, ids[:1], ids[1:]) for ids in sequences])]

        return agrees(self.model, lambda: [self.logprobs(batch, 1.0).cpu()], own, "a head that is one matrix")

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
    # As of ``LanguageModel``.
    longest_packed: int

    def __init__(self, backbone: PreTrainedModel, head: ValueHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.eval()
        self.longest_packed = longest_packed(backbone)

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
        backbone = load_whole(AutoModel, name, config=config_without_dropout(name), dtype=torch.float32).eval()
        return cls(backbone, ValueHead(state_width(backbone))).to(device)

    def values(self, batch: MicroBatch) -> Tensor:
        """Value of the state before each answer token, float32 [answer tokens]."""
        values: Tensor = self(batch).squeeze(-1)
        return values

    def forward(self, batch: MicroBatch) -> Tensor:
        """``values``, [answer tokens, 1]. Only inside this call are sharded weights whole."""
        values: Tensor = self.head(packed_hidden(self.backbone, batch, self.precision, self.longest_packed))
        return values.float()


def layers_to_checkpoint(model: PreTrainedModel) -> list[GradientCheckpointingLayer]:
    """The layers whose inputs alone can be kept. Raises ``RunError`` when there is none."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise RunError(f"{type(model).__name__} has no gradient checkpointing: unset gradient_checkpointing")
    return layers


def checkpoint_gradients(model: PreTrainedModel) -> None:
    """Keep only the inputs of the layers for the backward pass, which computes the rest again (Chen et al. 2016).

    Raises ``RunError`` for a model whose layers cannot.
    """
    layers = layers_to_checkpoint(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        # Transformers does it in training mode only. The modules inside stay in evaluation mode, and what drops by the
        # layer's own mode has nothing to drop (``config_without_dropout``).
        layer.training = True


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, each tied tensor once, without copying."""
    tensors: dict[str, Tensor] = {name: parameter.detach() for name, parameter in module.named_parameters()}
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return tensors | {name: tensor for name, tensor in module.state_dict().items() if name not in tied}
