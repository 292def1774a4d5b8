"""What every training loop learns with: models, each with its optimizer."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from charter.worker.errors import NotFiniteError
from charter.worker.training import ranks
from charter.worker.training.models import LanguageModel


class Trainable(Protocol):
    """What a rank holds while it learns; a checkpoint saves its parts, and any number of ranks reads them back."""

    def learning(self) -> dict[str, tuple[nn.Module, torch.optim.Optimizer]]:
        """Every part that learns, with its optimizer, by a name that stays."""
        ...


class PolicyTrainable(Trainable, Protocol):
    """One of whose parts is the policy."""

    @property
    def actor(self) -> LanguageModel:
        """The policy as it learns."""
        ...


def adam(rates: Mapping[nn.Module, float], epsilon: float = 1e-5) -> torch.optim.AdamW:
    """AdamW over what learns of the modules, each at its learning rate; no weight decay.

    The default of ``epsilon`` is that of reinforcement learning (N+, arXiv 2403.17031).
    """
    groups = [
        {**group, "lr": rate, "initial_lr": rate}
        for module, rate in rates.items()
        for group in ranks.parameter_groups(one for one in module.parameters() if one.requires_grad)
    ]
    # Fused: without the temporary copies of every parameter.
    return torch.optim.AdamW(groups, eps=epsilon, weight_decay=0.0, fused=True)


def optimiser_step(
    module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float, *, name: str, rates: str
) -> float:
    """Clip the gradient over all ranks to ``max_norm``, update the module with it and drop it; returns its norm before.

    Raises ``NotFiniteError`` when it is not finite: nothing is updated then. ``name`` is the module's, ``rates`` the
    fields of the spec that hold its learning rate.
    """
    ranks.sum_gradients(module.parameters())
    norm = ranks.clip_gradients(module.parameters(), max_norm)
    if not norm < float("inf"):
        raise NotFiniteError(
            f"the {name}'s gradient is not finite ({norm}); nothing was updated. {rates} may be too high"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def move_moments(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Move an optimizer's moments to where its parameters have gone."""
    for state in optimizer.state.values():
        state.update({name: tensor.to(device) for name, tensor in state.items()})
