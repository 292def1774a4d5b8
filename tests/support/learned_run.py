"""The folder of a run that was left on the way: a spec, and checkpoints of a tiny model that really learned."""

from pathlib import Path
from typing import Any

from charter.spec.load import spec_to_json
from charter.v1 import run_pb2
from charter.worker.reinforcement.progress import Progress, save_progress
from charter.worker.reinforcement.step import Controls, learn
from charter.worker.reinforcement.update import Learner

from tests.support.learners import make_episodes, make_learner


def learned_run(folder: Path, model: Path, stage: str = "", **ppo: Any) -> Learner:
    """A run's folder with the checkpoints of steps 1 and 2, and the learner of the last."""
    learner = make_learner(model, learning_rate=1e-2, **ppo)
    spec = run_pb2.RunSpec(policy=run_pb2.PolicySpec(model=str(model)), ppo=run_pb2.PpoSpec(**ppo))
    if stage:
        spec.dpo.lora_rank = ppo["lora_rank"]
        spec.ppo.ClearField("lora_rank")
    folder.mkdir()
    (folder / "spec.json").write_text(spec_to_json(spec))
    (folder / "run.json").write_text("{}")
    for step in (1, 2):
        learn(learner, make_episodes(step), step, Controls(0.05))
        save_progress(learner, folder / "checkpoints" / stage, Progress(step, 0, 1, Controls(0.05)), {}, keep=2)
    return learner
