"""Brings the artifacts of a run here: its report and its model."""

from collections.abc import Callable
from pathlib import Path

import grpc

from charter.cli.patience import Patience
from charter.cli.services import home
from charter.rpc.channel import BATCH, QUICK
from charter.rpc.stalled import unless_stalled
from charter.v1 import trainer_pb2, trainer_pb2_grpc


def fetch(
    stub: trainer_pb2_grpc.TrainerServiceStub, run_id: str, progress: Callable[[str, int], None] | None = None
) -> Path:
    """Copy a run's files, without checkpoints, to CHARTER_HOME/runs and return the folder.

    What is here already is not copied again, and a broken download goes on where it stopped. ``progress`` hears each
    file's path and size before it is copied. Raises ``grpc.RpcError`` when the trainer stays away, ``ValueError`` for a
    path that would leave the folder.
    """
    folder = home() / "runs" / run_id
    request = trainer_pb2.ListArtifactsRequest(run_id=run_id)
    for artifact in stub.ListArtifacts(request, timeout=QUICK).artifacts:
        target = (folder / artifact.path).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ValueError(f"the trainer names a file outside the run's folder: {artifact.path}")
        if target.exists() and target.stat().st_size == artifact.size:
            continue
        if progress:
            progress(artifact.path, artifact.size)
        _copy(stub, run_id, artifact, target)
    return folder


def _copy(stub: trainer_pb2_grpc.TrainerServiceStub, run_id: str, artifact: trainer_pb2.Artifact, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    patience = Patience()
    while True:
        offset = part.stat().st_size if part.exists() else 0
        request = trainer_pb2.ReadArtifactRequest(run_id=run_id, path=artifact.path, offset=offset)
        try:
            with part.open("ab") as file:
                for response in unless_stalled(stub.ReadArtifact(request), BATCH):
                    file.write(response.content)
                    patience.renew()
            break
        except grpc.RpcError as error:
            patience.wait(error)
    part.replace(target)
