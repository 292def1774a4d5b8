"""The policy of a checkpoint as a folder that loads anywhere, without the run that it is of."""

from pathlib import Path

import torch

from charter.runs.artifacts import CHECKPOINTS, checkpoints_of, learned_of
from charter.spec.defaults import fill_defaults
from charter.spec.load import spec_from_json
from charter.v1 import run_pb2
from charter.worker.errors import RunError
from charter.worker.training import checkpoint
from charter.worker.training.lora import add_lora
from charter.worker.training.models import LanguageModel, named_tensors
from charter.worker.training.saving import save_model
from charter.worker.training.starting import policy_model

# What every learner calls the policy.
_POLICY = "actor"

_Settings = run_pb2.PpoSpec | run_pb2.PretrainingSpec | run_pb2.SupervisedSpec | run_pb2.DpoSpec | run_pb2.KtoSpec


def export_policy(run: Path, step: int, folder: Path) -> None:
    """Write the policy of the run's checkpoint after ``step`` steps as ``save_policy`` writes it at the end.

    ``step`` is one of ``checkpoints_of``. Raises ``RunError`` when it is damaged, and as ``LanguageModel.load`` when
    the model that the stage started from is not here: its configuration and tokenizer are.
    """
    path = checkpoints_of(run)[step]
    if not checkpoint.is_undamaged(path):
        raise RunError(f"checkpoint {path} is damaged: a digest differs. Evaluate another step")
    spec = fill_defaults(spec_from_json((run / "spec.json").read_text(encoding="utf-8")))
    learned = learned_of(run)
    start = str(run / learned[-1]) if learned else policy_model(spec)
    settings = _settings(spec, path.parent.name)
    actor = LanguageModel.load(start, torch.device("cpu"), shared_trunk=getattr(settings, "shared_trunk", False))
    if settings.HasField("lora_rank"):
        # They get the values of the checkpoint.
        add_lora(actor.model, settings.lora_rank, seed=0)
    checkpoint.restore_weights(actor, path, _POLICY)
    folder.parent.mkdir(parents=True, exist_ok=True)
    save_model(actor.model, named_tensors(actor.model), start, folder)


def _settings(spec: run_pb2.RunSpec, stage: str) -> _Settings:
    """Of the stage whose checkpoints are in a folder of this name."""
    sections: dict[str, _Settings] = {
        CHECKPOINTS: spec.ppo,
        "pretraining": spec.pretraining,
        "supervised": spec.supervised,
        "revised": spec.revision.learning,
        "dpo": spec.dpo,
        "kto": spec.kto,
    }
    return sections[stage]
