"""From what a person calls a run, an evaluation or a study to its id, or its folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from charter.cli.calls import channel_to
from charter.cli.output import fail
from charter.cli.services import home
from charter.rpc.channel import QUICK
from charter.rpc.errors import ServiceError
from charter.v1 import preference_pb2, preference_pb2_grpc, trainer_pb2, trainer_pb2_grpc

if TYPE_CHECKING:
    from charter.evaluation.compare.folder import EvaluationFolder
    from charter.study.folder import StudyFolder


def run_id_of(run: str, preference: str = "") -> str:
    """Id of a run whose comparisons are asked for, by its id or the name of the newest such run; empty for none.

    Ends the command when there is no such run. The trainer is asked only where the preference service (at the address
    ``preference``) knows no such id: comparisons may be older than the trainer's runs.
    """
    if not run:
        return ""
    with channel_to("preference", preference) as channel:
        chosen = preference_pb2.ComparisonFilter(run_id=run)
        request = preference_pb2.GetStatsRequest(filter=chosen)
        if preference_pb2_grpc.PreferenceServiceStub(channel).GetStats(request, timeout=QUICK).total:
            return run
    try:
        with channel_to("trainer") as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            return stub.GetRun(trainer_pb2.GetRunRequest(run_id=run), timeout=QUICK).run.id
    except ServiceError as error:
        nothing = f"the preference service holds no comparison of a run with the id `{run}`"
        if error.code is grpc.StatusCode.NOT_FOUND:
            fail(f"{nothing}, and there is no run of this name; `charter runs list` shows all runs")
        fail(f"{nothing}. For a run's name the trainer service is needed, but {error}")


def study_of(name: str) -> "StudyFolder":
    """By its folder, its name in ``CHARTER_HOME/studies``, or its spec. Ends the command where there is none."""
    # Here, not at the top: who asks for help waits for none of it.
    from charter.study.folder import StudyFolder

    return StudyFolder(_folder_of(name, "studies", "no study", "`charter compare STUDY` begins one"))


def evaluation_of(name: str) -> "EvaluationFolder":
    """By its folder, or its name in ``CHARTER_HOME/evaluations``. Ends the command where there is none."""
    # Here, not at the top: who asks for help waits for none of it.
    from charter.evaluation.compare.folder import EvaluationFolder

    return EvaluationFolder(_folder_of(name, "evaluations", "no evaluation", "`charter evaluate SPEC` makes one"))


def _folder_of(name: str, room: str, nothing: str, advice: str) -> Path:
    places = [Path(name).expanduser(), *([home() / room / name] if Path(name).name == name else [])]
    found = next((place for place in places if (place / "spec.json").is_file()), None)
    if found is None:
        fail(f"{nothing}: {' and '.join(map(str, places))} hold no spec.json. {advice}")
    return found
