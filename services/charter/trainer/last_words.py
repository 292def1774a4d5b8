"""What a worker said last, worded for a person."""

import json
import re
from typing import NamedTuple

_MOST_CHARACTERS = 500
# Exit statuses of a worker that has said why it cannot go on (charter.worker.__main__). One that was killed had not
# come to that, whatever it wrote last.
_SAID_WHY = (1, 2)
# The line of a traceback that names the exception, which stands at its margin.
_RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")


class LastWords(NamedTuple):
    """The last line of a log that says something; empty without one."""

    text: str
    # Whether it is an error that is worded for a person, and no exception or anything else of the process.
    worded: bool

    def why(self, status: int | None) -> str:
        """Why a worker that ended with this status could not go on, by its own words; empty where it did not say."""
        return self.text if self.worded and status in _SAID_WHY else ""


def last_words(log: str) -> LastWords:
    """The last line of a log; a structured line as its message and the end of its exception."""
    lines = [line for line in log.split("\n") if line.strip()]
    return _plain(lines[-1]) if lines else LastWords("", worded=False)


def _plain(line: str) -> LastWords:
    try:
        fields = json.loads(line)
        message = str(fields["message"])
    except (ValueError, TypeError, KeyError):
        return LastWords(line.strip()[:_MOST_CHARACTERS], worded=False)
    exception = str(fields.get("exception", "")).strip().splitlines()
    if not exception:
        return LastWords(message, worded=fields.get("level") == "error")
    # What an exception says may have several lines, of which the first matters most.
    begins = [place for place, text in enumerate(exception) if _RAISED.match(text)]
    said = " ".join(text.strip() for text in exception[begins[-1] if begins else -1 :])
    return LastWords(f"{message}: {said}"[:_MOST_CHARACTERS], worded=False)
