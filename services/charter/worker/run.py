"""One run from its first check to its report: the order of the stages."""

import logging
import random

import numpy as np
import torch

from charter.runs.artifacts import Artifacts
from charter.v1 import run_pb2
from charter.worker.clients.served import policy_serves, serve_starting_policy
from charter.worker.clients.services import Services
from charter.worker.context import STARTING_VERSION, Run
from charter.worker.reporter import Reporter
from charter.worker.seeds import derive_seed
from charter.worker.sinks import open_sinks
from charter.worker.stages.answers import sample_held_out
from charter.worker.stages.evaluate import evaluate
from charter.worker.stages.fit import fit_preference_model, is_fitted
from charter.worker.stages.judge_check import check_judge
from charter.worker.stages.label import label_pairs
from charter.worker.stages.ppo import run_ppo
from charter.worker.stages.publish import publish
from charter.worker.stages.sample_pairs import sample_pairs
from charter.worker.stages.start import check_services, check_spec, load_prompts
from charter.worker.stages.watch import sample_watched
from charter.worker.training import ranks
from charter.worker.training.architecture import check_architectures
from charter.worker.training.lead import Leader
from charter.worker.training.models import LanguageModel, named_tensors

logger = logging.getLogger("charter.worker")


def execute(
    run_id: str, attempt: int, spec: run_pb2.RunSpec, artifacts: Artifacts, reporter: Reporter, leader: Leader
) -> None:
    """Do everything that a filled spec asks for. A stage that an earlier attempt finished is read from its file.

    Raises ``Cancelled`` when asked to stop, ``Superseded`` when a newer worker took over, ``RunError`` or
    ``ServiceError`` when the run cannot go on.
    """
    # Before the seeds, because a library may draw random numbers when it starts.
    reporter.sinks = open_sinks(run_id, spec, artifacts.folder)
    _seed_everything(spec.seed)
    services = Services(spec.services, reporter)
    try:
        with reporter.in_phase(run_pb2.PHASE_STARTING):
            reporter.report(0, 1, text=f"attempt {attempt}")
            check_spec(spec)
            prompts = load_prompts(spec, artifacts)
            constitution = check_services(spec, services, artifacts)
            check_architectures(spec)
            run = Run(run_id, spec, artifacts, services, reporter, leader, prompts, constitution)
            _serve_starting_policy(run)
            reporter.report(1, 1)
        check_judge(run)
        if run.needs_preference_model:
            if not is_fitted(run, 0):
                label_pairs(run, sample_pairs(run))
            fit_preference_model(run)
        with reporter.in_phase(run_pb2.PHASE_EVALUATING):
            # In this order: the answers before PPO tell a later attempt that the starting weights are not needed.
            sample_watched(run)
            sample_held_out(run, "before", STARTING_VERSION)
        run_ppo(run)
        evaluate(run)
        publish(run)
    finally:
        services.close()


def _serve_starting_policy(run: Run) -> None:
    """Have the policy service hold the starting weights as version 1, unless everything they are for is done."""
    if run.artifacts.answers("before").exists() or policy_serves(run, STARTING_VERSION):
        return
    model = LanguageModel.load(run.spec.policy.model, torch.device("cpu"))
    serve_starting_policy(run, named_tensors(model.model))


def _seed_everything(seed: int) -> None:
    """Seed the global random states, for library code; our own draws derive their seeds."""
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)
    torch.manual_seed(derive_seed(seed, "torch"))
    ranks.use_cores()
