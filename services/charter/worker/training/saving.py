"""The policy that has learned, as a folder that loads anywhere."""

import shutil
from pathlib import Path

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from charter.worker.training import ranks
from charter.worker.training.lead import Leader
from charter.worker.training.lora import merged_tensors
from charter.worker.training.models import named_tensors
from charter.worker.training.trainable import PolicyTrainable


def save_policy(leader: Leader, learner: PolicyTrainable, tokenizer: str, folder: Path) -> None:
    """Write the policy of the leader's learner, adapters merged, in the Hugging Face layout.

    The folder appears when it is whole, in place of one that is there. ``tokenizer`` is the hub id or folder that the
    tokenizer is copied from.
    """
    save_model(learner.actor.model, leader.with_learner(_actor_tensors), tokenizer, folder)


def save_model(model: PreTrainedModel, tensors: dict[str, Tensor], tokenizer: str, folder: Path) -> None:
    """As ``save_policy``, of a model whose tensors are ``tensors``, by name."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, state_dict=merged_tensors(model, tensors))
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _actor_tensors(learner: PolicyTrainable) -> dict[str, Tensor]:
    return ranks.whole(named_tensors(learner.actor.model))
