"""Shows a run while it goes: a bar for each phase, with the newest numbers."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import grpc
from rich.console import Console
from rich.markup import escape
from rich.progress import TextColumn
from rich.table import Column

from charter.cli.bars import Bars, bar_column, count_column
from charter.cli.patience import Patience
from charter.rpc.channel import BATCH
from charter.spec.facts import algorithm_title
from charter.v1 import run_pb2, trainer_pb2, trainer_pb2_grpc

PHASES = {
    run_pb2.PHASE_STARTING: "starting",
    run_pb2.PHASE_CHECKING_JUDGE: "checking the judge",
    run_pb2.PHASE_PRETRAINING: "learning from text",
    run_pb2.PHASE_SUPERVISED: "supervised fine-tuning",
    run_pb2.PHASE_REVISING: "critique and revision",
    run_pb2.PHASE_DPO: "DPO on comparisons",
    run_pb2.PHASE_KTO: "KTO on thumbs",
    run_pb2.PHASE_SAMPLING_PAIRS: "sampling pairs",
    run_pb2.PHASE_JUDGING: "judging",
    run_pb2.PHASE_FITTING_PREFERENCE_MODEL: "fitting the preference model",
    run_pb2.PHASE_PPO: "reinforcement learning",
    run_pb2.PHASE_EVALUATING: "evaluating",
    run_pb2.PHASE_COMPARING: "comparing the stages",
    run_pb2.PHASE_REPORTING: "reporting",
}
# Metrics that are shown behind the bars.
NUMBERS = {
    "judge_accuracy": "accuracy {:.0%}",
    "train_loss": "loss {:.3f}",
    "held_out_loss": "held out {:.3f}",
    "held_out_accuracy": "agreement {:.0%}",
    # Of comparisons and of thumbs.
    "held_out_reward_accuracy": "labels met {:.0%}",
    "reward_mean": "reward {:+.3f}",
    "judge_certainty": "judge's certainty {:.0%}",
    "kl_k1": "KL {:.3f}",
    "tokens_per_second": "{:.0f} tokens/s",
    "learning_rate": "rate {:.1e}",
    "gate_probability": "preferred {:.0%}",
    "accepted_share": "accepted {:.0%}",
    "win_rate": "win rate {:.0%}",
}

# Columns of a terminal in which there is room for bars, and for several numbers side by side.
_BARS_FROM, _NUMBERS_FROM = 76, 100


def phase_name(phase: "run_pb2.Phase.ValueType", spec: run_pb2.RunSpec) -> str:
    """What a run does in a phase, in words; the phase of RL by the name of the spec's algorithm."""
    return algorithm_title(spec.ppo) if phase == run_pb2.PHASE_PPO else PHASES.get(phase, "working")


ACTIVE = (run_pb2.RUN_STATE_PENDING, run_pb2.RUN_STATE_RUNNING)


def watch(
    stub: trainer_pb2_grpc.TrainerServiceStub, run_id: str, after: int = 0
) -> Iterator[trainer_pb2.WatchRunResponse]:
    """Events of a run until it ends, however long that takes.

    A connection that breaks, and a trainer that starts again, are waited for. Raises ``grpc.RpcError`` when that takes
    longer than ``Patience`` lasts, and for any other failure.
    """
    patience = Patience()
    while True:
        try:
            request = trainer_pb2.WatchRunRequest(run_id=run_id, after_sequence=after)
            for response in stub.WatchRun(request, timeout=BATCH):
                after = max(after, response.event.sequence)
                patience.renew()
                yield response
            return
        except grpc.RpcError as error:
            # The deadline of one call; the run may go on for days.
            if not (isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED):
                patience.wait(error)


class RunProgress(Bars):
    """Context in which events of a run by a spec are shown: live bars on a terminal, one line an event elsewhere."""

    def __init__(self, console: Console, spec: run_pb2.RunSpec) -> None:
        self._spec = spec
        # In a narrow terminal each number has a line, and in a very narrow one there is no bar; count and time stay.
        wide = console.width >= _BARS_FROM
        super().__init__(
            console,
            TextColumn("{task.description:<27}" if wide else "{task.description}"),
            *([bar_column()] if wide else []),
            count_column(),
            TextColumn(
                "{task.fields[clock]}", style="progress.elapsed", table_column=Column(no_wrap=True, min_width=7)
            ),
            TextColumn("{task.fields[numbers]}", table_column=Column(min_width=16)),
        )
        # The newest bar and the phase it stands for; when (Unix seconds) that phase began, and the last event's time.
        self._bar = self._bars.add_task("waiting for the worker", total=None, numbers="", clock="")
        self._phase = run_pb2.PHASE_UNSPECIFIED
        self._begin = self._last = 0.0

    def show(self, event: run_pb2.RunEvent) -> None:
        """Draw one event."""
        name = phase_name(event.phase, self._spec)
        between = "  " if self._console.width >= _NUMBERS_FROM or not self._console.is_terminal else "\n"
        numbers = between.join(
            text.format(event.metrics[name]) for name, text in NUMBERS.items() if name in event.metrics
        )
        seconds = event.time.ToNanoseconds() / 1e9
        if not self._console.is_terminal:
            clock = f"{datetime.fromtimestamp(seconds):%H:%M:%S}"
            count = f"{event.done}/{event.total}" if event.total else ""
            parts = (clock, name, count, numbers, escape(event.text))
            self._console.print("  ".join(part for part in parts if part), soft_wrap=True)
            return
        if event.text:
            self._bars.console.print(f"[dim]{escape(event.text)}[/]")
        if event.phase != self._phase:
            if not self._phase:
                self._bars.remove_task(self._bar)
            self._phase, self._begin = event.phase, self._last or seconds
            self._bar = self._bars.add_task(name, total=None, numbers="", clock="")
        # From the events' own times, so that a replayed run shows what it took.
        clock = str(timedelta(seconds=round(seconds - self._begin)))
        self._last = seconds
        self._bars.update(self._bar, clock=clock)
        if event.total:
            self._bars.update(self._bar, completed=event.done, total=event.total)
        if numbers:
            self._bars.update(self._bar, numbers=numbers)
