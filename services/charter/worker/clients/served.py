"""Which weights the services hold for this run. Their digests are kept in ``run.json``, so that nobody else's pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from charter.inference.preference_model import PreferenceModel
from charter.weights.sender import WeightUpdate
from charter.worker.context import Run
from charter.worker.errors import RunError
from charter.worker.training import ranks
from charter.worker.training.lora import adapter_tensors, frozen_tensors
from charter.worker.training.models import LanguageModel, named_tensors
from charter.worker.training.trainable import PolicyTrainable


def serve_start(run: Run) -> int:
    """See that the policy service serves what the run starts from; returns its version."""
    model, version = run.start
    if not policy_serves(run, version):
        serve_saved_policy(run, model, version)
    return version


def serve_saved_policy(run: Run, model: str, version: int) -> None:
    """Serve a saved policy: its hub id or folder."""
    # On the CPU, where it fits even if the GPUs hold it only together.
    loaded = LanguageModel.load(model, torch.device("cpu")).model
    serve_policy(run, named_tensors(loaded), version)


def serve_learner(run: Run, version: int) -> float:
    """Serve the policy as it learns, as ``serve_policy``; of one with LoRA adapters only these travel."""
    if not run.spec.ppo.HasField("lora_rank"):
        return serve_policy(run, run.leader.with_learner(_policy_tensors), version)
    adapter = run.leader.with_learner(_adapter_tensors)
    update = run.services.policy.send_adapter(
        adapter, version, lambda: run.leader.with_learner(_policy_tensors), run.start.version
    )
    return _remember(run, "policy", update)


def serve_policy(run: Run, tensors: Mapping[str, Tensor], version: int) -> float:
    """Serve a policy on every replica, whatever they serve; returns the seconds it took."""
    return _remember(run, "policy", run.services.policy.send(tensors, version))


def serve_preference_model(run: Run, model: PreferenceModel, version: int) -> float:
    """Serve a preference model in place of whatever is served; returns the seconds it took."""
    return _remember(run, "preference", run.services.preference.send(model.state_tensors(), version))


def policy_serves(run: Run, version: int) -> bool:
    """Whether this process sent ``version`` last, and so keeps every replica at it."""
    return run.services.policy.serves(version)


def preference_serves(run: Run, version: int) -> bool:
    """Whether the preference service serves this run's preference model, as ``version``."""
    info = run.services.preference.info()
    sent = _sent(run, "preference")
    return sent["version"] == version and (info.weight_version, info.weight_digest) == (version, sent["digest"])


def check_served(run: Run, preference_version: int) -> None:
    """Raise ``RunError`` unless policy and preference model are this run's; a number from others must not be used."""
    run.services.policy.replicas.check_own()
    if run.needs_preference_model and not preference_serves(run, preference_version):
        raise RunError(
            "the preference service does not serve this run's weights any more: another run uses it, or it was "
            "restarted. See to it that this run has it alone, then resume the run"
        )


def _policy_tensors(learner: PolicyTrainable) -> dict[str, Tensor]:
    """Without adapters."""
    model = learner.actor.model
    return ranks.whole(frozen_tensors(model, named_tensors(model)))


def _adapter_tensors(learner: PolicyTrainable) -> dict[str, Tensor]:
    return ranks.whole(adapter_tensors(learner.actor.model))


def _remember(run: Run, service: str, update: WeightUpdate) -> float:
    run.artifacts.record.setdefault("served", {})[service] = {"version": update.version, "digest": update.sha256}
    run.artifacts.save_record()
    return update.seconds


def _sent(run: Run, service: str) -> dict[str, Any]:
    sent: dict[str, Any] = run.artifacts.record.get("served", {}).get(service, {"version": None, "digest": None})
    return sent
