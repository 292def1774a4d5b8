"""The folder that prompts are written to, line by line: a command that is killed loses nothing and repeats nothing.

``train.jsonl`` and ``held_out.jsonl`` are what a run spec names as ``prompts``. ``tries.jsonl`` has a line for each
try, written behind its prompts: what became of each of its texts. ``generation.json`` says what all was drawn by.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from charter.atomic_files import write_json, write_text
from charter.jsonl import append_line, recover_lines
from charter.prompts.split import HELD_OUT, TRAIN
from charter.state_files import read_json, read_log

ACCEPTED = "accepted"
_ADVICE = "Take another folder, or bring it back from a copy"


class AnotherGenerationError(ValueError):
    """The folder was begun by other options, or holds something else."""


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt that was accepted: its side, and its row as the file has it."""

    side: str
    row: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The prompt."""
        return str(self.row["prompt"])

    @property
    def place(self) -> tuple[int, int]:
        """The number of its try, and its place in what the try gave."""
        generated = self.row["generated"]
        return int(generated["try"]), int(generated["place"])


@dataclass(slots=True)
class Folder:
    """What is there, kept in step with the files."""

    path: Path
    prompts: list[Written] = field(default_factory=list)
    # Of each try what became of its texts.
    outcomes: list[Sequence[str]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, drawn_by: Mapping[str, Any]) -> "Folder":
        """Begin or go on. Raises ``AnotherGenerationError``, and ``StateFileError`` for a damaged file."""
        path.mkdir(parents=True, exist_ok=True)
        settings = path / "generation.json"
        # Nothing was drawn by the options of a command that failed before its first try.
        if settings.exists() and (path / "tries.jsonl").exists():
            before = read_json(settings, dict, _ADVICE)
            changed = sorted(name for name in before.keys() | drawn_by.keys() if before.get(name) != drawn_by.get(name))
            if changed:
                raise AnotherGenerationError(
                    f"{path} was begun with another {', '.join(changed)}: take another folder, or the same options"
                )
        elif not settings.exists() and any(path.iterdir()):
            raise AnotherGenerationError(f"{path} holds something else: name a new or empty folder")
        write_json(settings, dict(drawn_by))
        folder = cls(path)
        folder._recover()
        return folder

    def file(self, side: str) -> Path:
        """The prompts of a side."""
        return self.path / f"{side}.jsonl"

    def add(self, outcomes: Sequence[str], written: Sequence[Written]) -> None:
        """Write down a try: its prompts, then its line, so that a try without its line is made again."""
        for one in written:
            append_line(self.file(one.side), json.dumps(one.row, ensure_ascii=False))
        append_line(self._tries, json.dumps({"try": len(self.outcomes), "outcomes": list(outcomes)}))
        self.prompts += written
        self.outcomes.append(tuple(outcomes))

    def counts(self) -> Counter[str]:
        """How many texts each outcome had."""
        return Counter(one for outcomes in self.outcomes for one in outcomes)

    def tries_since_accepted(self) -> int:
        """Tries at the end that gave nothing."""
        last = max((place for place, one in enumerate(self.outcomes) if ACCEPTED in one), default=-1)
        return len(self.outcomes) - 1 - last

    @property
    def _tries(self) -> Path:
        return self.path / "tries.jsonl"

    def _recover(self) -> None:
        self.outcomes = read_log(self._tries, lambda line: tuple(map(str, json.loads(line)["outcomes"])), _ADVICE)
        for side in (TRAIN, HELD_OUT):
            lines = recover_lines(self.file(side))
            found = [Written(side, row) for row in read_log(self.file(side), json.loads, _ADVICE)]
            # What was written of a try whose line is missing.
            whole = [one for one in found if one.place[0] < len(self.outcomes)]
            if len(whole) < len(lines) or not self.file(side).exists():
                write_text(self.file(side), "".join(f"{line}\n" for line in lines[: len(whole)]))
            self.prompts += whole
        self.prompts.sort(key=lambda one: one.place)
