"""Pairs that people draw from the served policy by chatting with it, kept until they are labelled and after."""

import json
import uuid
from pathlib import Path

from charter.data.pairs.read import split_of
from charter.feedback.pairs import Pair
from charter.jsonl import append_line
from charter.rpc.messages import chat_messages
from charter.state_files import read_log
from charter.storage.comparisons import comparison_from_row, comparison_to_row, row_to_json
from charter.v1 import types_pb2

# Share of the conversations' prompts that are held out from fits.
_HELD_OUT_FRACTION = 0.2


class Chats:
    """Chat pairs by id, in a JSONL file, so that a label sent after a restart still finds its pair.

    Raises ``StateFileError`` when the file is damaged.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._pairs: dict[str, Pair] = {}
        # What is behind the last line's end was being written when the page was killed: nobody has seen that pair.
        for pair in read_log(file, _pair, "Delete that line: its pair can then no longer be labelled"):
            self._pairs[pair.id] = pair

    def get(self, pair_id: str) -> Pair | None:
        """A pair by its id."""
        return self._pairs.get(pair_id)

    def new_id(self) -> str:
        """Id of a pair to be: which answer is shown left depends on it, before there are answers."""
        return f"chat-{uuid.uuid4().hex}"

    def add(self, pair_id: str, messages: list[types_pb2.Message], answers: tuple[types_pb2.Answer, ...]) -> Pair:
        """Keep a finished pair; it is on the disk when this returns."""
        comparison = types_pb2.Comparison(
            prompt=messages,
            answer_a=answers[0],
            answer_b=answers[1],
            source=types_pb2.LABEL_SOURCE_HUMAN,
            outcome=types_pb2.OUTCOME_UNAVAILABLE,
            split=split_of(chat_messages(messages), _HELD_OUT_FRACTION),
        )
        self._file.parent.mkdir(parents=True, exist_ok=True)
        append_line(self._file, row_to_json({**comparison_to_row(comparison), "id": pair_id}))
        self._pairs[pair_id] = Pair(pair_id, comparison)
        return self._pairs[pair_id]


def _pair(line: str) -> Pair:
    row = json.loads(line)
    return Pair(row.pop("id"), comparison_from_row(row))
