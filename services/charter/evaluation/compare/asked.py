"""What the folders of an evaluation and of a study share: what served, and what people say."""

from pathlib import Path
from typing import Any

from charter.atomic_files import write_json
from charter.evaluation.compare.votes import Vote, vote_from_line, vote_to_line
from charter.jsonl import append_line, recover_lines
from charter.state_files import read_json, read_log

ADVICE = "Bring it back from a copy, or delete that line: what it held is then asked again"


class AskedFolder:
    """``served.json``, models and judges by their names, and ``votes.jsonl`` of a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.served = path / "served.json"
        self.votes = path / "votes.jsonl"

    def read_served(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What served: by ``models`` and ``judges``, by name."""
        if not self.served.exists():
            return {"models": {}, "judges": {}}
        return read_json(self.served, lambda found: {kind: dict(found[kind]) for kind in ("models", "judges")}, ADVICE)

    def note_served(self, kind: str, name: str, about: dict[str, Any]) -> None:
        """Keep what served a model or a judge."""
        found = self.read_served()
        found[kind][name] = about
        write_json(self.served, found)

    def read_votes(self) -> list[Vote]:
        """Every line of the votes in its order; a page may be adding to them. ``votes_that_count`` chooses."""
        return read_log(self.votes, vote_from_line, ADVICE, growing=True)

    def recover_votes(self) -> None:
        """Before more are added: cut off what a page that was killed has begun to write."""
        recover_lines(self.votes)

    def add_vote(self, vote: Vote) -> None:
        """Store a vote, or take one back."""
        append_line(self.votes, vote_to_line(vote))
