"""One run from its first check to its report: the order of the stages."""

import random

import numpy as np
import torch

from charter.runs.artifacts import Artifacts
from charter.v1 import run_pb2
from charter.worker.clients.services import Services
from charter.worker.context import Run
from charter.worker.leg import begin_leg, note_inputs
from charter.worker.reporter import Reporter
from charter.worker.seeds import derive_seed
from charter.worker.sinks.opening import open_sinks
from charter.worker.stages.answers import StartingAnswers
from charter.worker.stages.base import Stage
from charter.worker.stages.compare import StageComparison, check_compared
from charter.worker.stages.dpo import DirectPreferenceOptimisation
from charter.worker.stages.evaluate import FinalEvaluation
from charter.worker.stages.fit import PreferenceFitting
from charter.worker.stages.judge_check import JudgeCheck
from charter.worker.stages.kto import KahnemanTverskyOptimisation
from charter.worker.stages.label import PairLabelling
from charter.worker.stages.ppo import Reinforcement
from charter.worker.stages.pretraining import Pretraining
from charter.worker.stages.publish import Publishing
from charter.worker.stages.revise import Revising
from charter.worker.stages.revision_learning import RevisionLearning
from charter.worker.stages.sample_pairs import PairSampling
from charter.worker.stages.start import check_services, check_spec, check_template, load_prompts, with_pinned_data
from charter.worker.stages.supervised import SupervisedFineTuning
from charter.worker.supervised.loop import remove_checkpoints
from charter.worker.training import ranks
from charter.worker.training.architecture import check_architectures
from charter.worker.training.lead import Leader

STAGES: tuple[Stage, ...] = (
    JudgeCheck(),
    Pretraining(),
    SupervisedFineTuning(),
    Revising(),
    RevisionLearning(),
    DirectPreferenceOptimisation(),
    KahnemanTverskyOptimisation(),
    PairSampling(),
    PairLabelling(),
    PreferenceFitting(),
    # Before RL: they tell a later attempt that the starting weights are not needed.
    StartingAnswers(),
    Reinforcement(),
    FinalEvaluation(),
    StageComparison(),
    Publishing(),
)


def execute(
    run_id: str, attempt: int, spec: run_pb2.RunSpec, artifacts: Artifacts, reporter: Reporter, leader: Leader
) -> None:
    """Do everything that a filled spec asks for, but what earlier attempts have done.

    Raises ``Cancelled`` when asked to stop, ``Superseded`` when a newer worker took over, ``RunError``,
    ``ServiceError`` or ``EnvironmentVariableError`` when the run cannot go on.
    """
    # Before the seeds, because a library may draw random numbers when it starts.
    reporter.sinks = open_sinks(run_id, spec, artifacts.folder)
    _seed_everything(spec.seed)
    begin_leg(artifacts, attempt)
    services = Services(spec.services, reporter)
    try:
        with reporter.in_phase(run_pb2.PHASE_STARTING):
            reporter.report(0, 1, text=f"attempt {attempt}")
            check_spec(spec)
            spec = with_pinned_data(spec, artifacts)
            tokenizer = check_template(spec)
            prompts = load_prompts(spec, artifacts, tokenizer)
            constitution = check_services(spec, services, artifacts)
            check_compared(spec)
            check_architectures(spec)
            note_inputs(spec, artifacts)
            run = Run(run_id, spec, artifacts, services, reporter, leader, prompts, constitution, tokenizer)
            for name in artifacts.learned:
                # By an attempt that was killed before it came to this.
                remove_checkpoints(run, name)
            reporter.report(1, 1)
        for stage in STAGES:
            if stage.wanted(spec) and not stage.done(run):
                with reporter.in_phase(stage.phase):
                    stage.work(run)
    finally:
        services.close()


def _seed_everything(seed: int) -> None:
    """Seed the global random states, for library code; our own draws derive their seeds."""
    random.seed(derive_seed(seed, "python"))
    np.random.seed(derive_seed(seed, "numpy") % 2**32)
    torch.manual_seed(derive_seed(seed, "torch"))
    ranks.use_cores()
