"""Rows of a run's critique and revision, as clients get them."""

from itertools import islice
from pathlib import Path

from charter.rpc.messages import proto_messages
from charter.runs.revisions import ROWS, RevisionRow, new_rows, read_outcomes
from charter.v1 import trainer_pb2

# Rows that are in memory at a time.
_AT_ONCE = 256


class RevisionReader:
    """Reads the rows in a run's folder, which may be growing, each once and without those up to ``after_row``."""

    def __init__(self, folder: Path, after_row: int) -> None:
        self._folder, self._after = folder, after_row
        self._row = self._offset = 0

    def read(self) -> list[trainer_pb2.WatchRevisionsResponse]:
        """The next rows, a part of them; none where there are no more yet. Blocks."""
        outcomes = read_outcomes(self._folder)
        responses: list[trainer_pb2.WatchRevisionsResponse] = []
        rows = new_rows(self._folder / ROWS, self._offset)
        while not responses and (some := list(islice(rows, _AT_ONCE))):
            for offset, row in some:
                self._offset, self._row = offset, self._row + 1
                if self._row > self._after:
                    revision = _revision(row, outcomes.get(row.id, ""))
                    responses.append(trainer_pb2.WatchRevisionsResponse(row=self._row, revision=revision))
        return responses


def _revision(row: RevisionRow, outcome: str) -> trainer_pb2.Revision:
    return trainer_pb2.Revision(
        id=row.id,
        parent=row.parent,
        prompt=proto_messages(row.prompt),
        dimension=row.dimension,
        round=row.round,
        answer=row.answer,
        principle_id=row.principle,
        critique=row.critique,
        critique_cut_off=row.critique_cut_off,
        revision=row.revision,
        policy=row.policy,
        policy_version=row.policy_version,
        judge=row.judge,
        constitution_digest=row.constitution_digest,
        verdict=row.verdict,
        outcome=outcome,
    )
