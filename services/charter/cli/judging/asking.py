"""Asks the judge service about many pairs, and keeps what it said in a file from which an interrupted try goes on."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import grpc
from google.protobuf import json_format
from rich.progress import Progress

from charter.cli.calls import channel_to
from charter.cli.output import errors
from charter.data.pairs.labelled import LabelledPair
from charter.evaluation.judge.judged import JudgedPair
from charter.rpc.channel import BATCH
from charter.rpc.errors import ServiceError
from charter.rpc.messages import proto_messages
from charter.rpc.stalled import StalledError, unless_stalled
from charter.state_files import read_log
from charter.v1 import judge_pb2, judge_pb2_grpc, types_pb2

_PAIRS_PER_CALL = 64


class DetailsError(ValueError):
    """A file of judgements is not one, or is another judge's; the message names the file."""


def judge_pairs(
    pairs: Sequence[LabelledPair],
    options: judge_pb2.JudgingOptions,
    address: str,
    *,
    own_dimension: bool = False,
    details: Path | None = None,
) -> list[JudgedPair]:
    """Judge all pairs, with a progress bar when there are several.

    With ``own_dimension`` each pair is judged by principles of its dimension. Every judgement is added to the file
    ``details`` as it comes, and pairs that the file already has, asked in the same way, are not asked again. Raises
    ``DetailsError``, ``StateFileError``, ``OSError`` for the file.
    """
    items = [
        judge_pb2.ComparisonItem(
            id=str(index),
            prompt=proto_messages(pair.prompt),
            answer_a=pair.answer_a,
            answer_b=pair.answer_b,
            dimension=pair.dimension if own_dimension else "",
        )
        for index, pair in enumerate(pairs)
    ]
    keys = [_key(item, options) for item in items]
    known = _read(details) if details is not None else {}
    judgements = {item.id: known[key] for item, key in zip(items, keys, strict=True) if key in known}
    if judgements:
        errors.print(f"{len(judgements)} of {len(items)} pairs are in {details} and are not asked again.")
    with (
        channel_to("judge", address) as channel,
        Progress(console=errors, transient=True, disable=len(items) <= 1 or not errors.is_terminal) as progress,
        details.open("a", encoding="utf-8") if details is not None else nullcontext() as file,
    ):
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        task = progress.add_task("judging", total=len(items), completed=len(judgements))
        while waiting := [item for item in items if item.id not in judgements]:
            asked = waiting[:_PAIRS_PER_CALL]
            request = judge_pb2.CompareRequest(items=asked, options=options)
            before = len(judgements)
            try:
                for response in unless_stalled(stub.Compare(request), BATCH):
                    judgements[response.item_id] = response.judgement
                    if file is not None:
                        place = int(response.item_id)
                        _add(file, keys[place], pairs[place], response.judgement)
                    progress.advance(task)
            except StalledError:
                # The next call asks for what this one did not get to.
                if len(judgements) == before:
                    raise
                continue
            if left := sum(item.id not in judgements for item in asked):
                problem = f"it left out {left} of {len(asked)} judgements; see its log"
                raise ServiceError("judge", address, grpc.StatusCode.DATA_LOSS, problem)
    judged = [JudgedPair(pair, judgements[item.id]) for pair, item in zip(pairs, items, strict=True)]
    if len({(one.judgement.model, one.judgement.constitution_digest) for one in judged}) > 1:
        raise DetailsError(f"{details} has judgements of another model or constitution: name another file")
    return judged


def _key(item: judge_pb2.ComparisonItem, options: judge_pb2.JudgingOptions) -> str:
    """A digest of what is asked about a pair. Its place is part of it: the principle is drawn by that."""
    asked = (item.SerializeToString(deterministic=True), options.SerializeToString(deterministic=True))
    return hashlib.sha256(b"\x00".join(asked)).hexdigest()[:32]


def _add(file: IO[str], key: str, pair: LabelledPair, judgement: judge_pb2.Judgement) -> None:
    about = {"key": key, "group": pair.group, "dimension": pair.dimension, "source": pair.source, "label": pair.label}
    lengths = {"characters_a": len(pair.answer_a), "characters_b": len(pair.answer_b)}
    found = json_format.MessageToDict(judgement, preserving_proto_field_name=True)
    file.write(json.dumps(about | lengths | {"judgement": found}) + "\n")
    file.flush()


def _read(path: Path) -> dict[str, judge_pb2.Judgement]:
    """The judgements in the file, by key, those aside that the judge's model could not be reached for.

    A last line that was cut off when it was written is removed.
    """
    rows = read_log(path, _row, "It is not a file of `charter judge calibrate`: name another, or delete that line")
    return {key: judgement for key, judgement in rows if judgement.outcome != types_pb2.OUTCOME_UNAVAILABLE}


def _row(line: str) -> tuple[str, judge_pb2.Judgement]:
    row: dict[str, Any] = json.loads(line)
    try:
        return str(row["key"]), json_format.ParseDict(row["judgement"], judge_pb2.Judgement())
    except json_format.ParseError as error:
        raise ValueError(str(error)) from error
