"""Serves the models and judges of an evaluation, one at a time; those that run already are taken as they are."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rich.console import Console

from charter.cli.local.meanwhile import served_meanwhile, stop_left_over
from charter.cli.local.processes import engine_here, judge_options, limit_options, model_options
from charter.evaluation.compare.checkpoints import exported
from charter.v1 import evaluation_pb2


class LocalServers:
    """Processes of this machine, by `charter serve`, on free ports.

    ``folder`` is the evaluation's: it has their state, and remembers the one that runs, so that the next command stops
    what one that was killed has left.
    """

    def __init__(self, name: str, folder: Path, say: Console) -> None:
        self._name, self._folder, self._say = name, folder, say

    @contextmanager
    def model(self, model: evaluation_pb2.EvaluatedModel) -> Iterator[str]:
        """A policy service of the model, while the block lasts."""
        if model.address:
            yield model.address
            return
        served = self._policy_of(model) if model.run else model.model
        options = [*model_options(served, model.chat_template, model.eos_token)]
        options += ["--engine", engine_here(model.engine or "auto")]
        if model.endpoint:
            options += ["--setting", f"endpoint={model.endpoint}"]
        options += limit_options(model.limits)
        with self._served("policy", options) as address:
            yield address

    @contextmanager
    def judge(self, judge: evaluation_pb2.EvaluationJudge) -> Iterator[str]:
        """A judge service, while the block lasts."""
        if judge.address:
            yield judge.address
            return
        with self._served("judge", judge_options(judge, model_options(judge.model))) as address:
            yield address

    def _policy_of(self, model: evaluation_pb2.EvaluatedModel) -> str:
        """Folder of the policy of a run, or of its checkpoint, which is written once."""
        run = Path(model.run)
        if not model.HasField("step"):
            return str(run / "policy")
        folder = exported(self._folder, model)
        if not folder.is_dir():
            # Here, not at the top: of other models nothing needs torch.
            from charter.worker.training.export import export_policy

            self._say.print(f"writing the policy of step {model.step} of {run.name}")
            export_policy(run, model.step, folder)
        return str(folder)

    def stop_left_over(self) -> None:
        """End what a command that was killed had started."""
        stop_left_over(self._folder)

    def _served(self, service: str, options: Sequence[str]) -> AbstractContextManager[str]:
        return served_meanwhile(service, options, f"{self._name}-{service}", self._folder, self._say)
