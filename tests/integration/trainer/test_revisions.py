"""The stream of a run's critiques and revisions, through a real channel and by the command."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from charter.chat import ChatMessage
from charter.cli.main import app
from charter.runs.revisions import ROWS, RevisionRow, append_rows, write_outcomes
from charter.v1 import trainer_pb2
from typer.testing import CliRunner

# The fixtures of a trainer with workers that only report.
from tests.integration.trainer.test_service import PATIENCE, Client, code, room, trainer

__all__ = ["room", "trainer"]

SECRET = "How would somebody open a door that is not theirs at night?"


def row(number: int) -> RevisionRow:
    return RevisionRow(
        prompt_key=f"key{number}",
        prompt=(ChatMessage("user", SECRET),),
        dimension="harmless",
        round=1,
        parent="",
        answer="With a crowbar.",
        principle="safe",
        critique="It helps a burglar.",
        revision=f"Ask a locksmith, number {number}.",
        policy="policy",
        policy_version=1,
        judge="judge",
        constitution_digest="d1",
        verdict="clean",
        critique_cut_off=number == 2,
    )


def watched(client: Client, run_id: str, after: int = 0) -> Iterator[trainer_pb2.WatchRevisionsResponse]:
    request = trainer_pb2.WatchRevisionsRequest(run_id=run_id, after_row=after)
    yield from client.runs.WatchRevisions(request, timeout=PATIENCE)


def test_rows_come_as_they_are_written_and_again_from_any_position(
    trainer: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer.create("steps-until-cancelled")
    folder = Path(run.artifacts)
    (folder / "revision").mkdir(parents=True)
    append_rows(folder / ROWS, [row(1), row(2)])
    live = watched(trainer, run.id)
    first, second = next(live), next(live)
    assert [first.row, second.row] == [1, 2]
    one = second.revision
    assert (one.id, one.revision, one.principle_id, one.verdict) == ("key2-1", row(2).revision, "safe", "clean")
    assert (one.prompt[0].content, one.critique_cut_off, one.outcome) == (SECRET, True, "")
    # While half a line is there, it is still being written.
    whole = (folder / ROWS).read_bytes()
    append_rows(folder / ROWS, [row(3)])
    added = (folder / ROWS).read_bytes()
    (folder / ROWS).write_bytes(added[: len(whole) + 20])
    assert next(watched(trainer, run.id, 1)).row == 2
    (folder / ROWS).write_bytes(added)
    assert next(live).row == 3
    write_outcomes(folder, {f"key{number}-1": "accepted" for number in (1, 2, 3)})
    trainer.cancel(run.id)
    assert list(live) == []
    # What became of them is known by now.
    assert [(one.row, one.revision.outcome) for one in watched(trainer, run.id, 2)] == [(3, "accepted")]

    monkeypatch.setenv("CHARTER_TRAINER_ADDRESS", trainer.addresses.main)
    listed = CliRunner().invoke(app, ["runs", "revisions", run.id, "--after", "1"])
    assert (listed.exit_code, listed.output.count("accepted")) == (0, 2)
    # Prompts that look for harm are not shown whole.
    assert SECRET[:20] in listed.output
    assert SECRET not in listed.output.replace("\n", " ")
    lines = CliRunner().invoke(app, ["runs", "revisions", run.id, "--json"]).output.splitlines()
    assert [json.loads(line)["revision"]["revision"] for line in lines] == [row(n).revision for n in (1, 2, 3)]
    assert "has no further revisions" in CliRunner().invoke(app, ["runs", "revisions", run.id, "--after", "3"]).output


def test_a_run_without_revisions_has_none_and_an_unknown_one_is_named(trainer: Client) -> None:
    run = trainer.create("finishes")
    assert list(watched(trainer, run.id)) == []
    with pytest.raises(grpc.RpcError) as error:
        list(watched(trainer, "nobody"))
    assert code(error) is grpc.StatusCode.NOT_FOUND
