"""What a worker said last, worded for a person."""

import json
import re

_MOST_CHARACTERS = 500
# The line of a traceback that names the exception, which stands at its margin.
_RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt)\b")


def last_line(log: str) -> str:
    """The last line of a log that says something; a structured line as its message and the end of its exception."""
    lines = [line for line in log.split("\n") if line.strip()]
    return _plain(lines[-1]) if lines else ""


def _plain(line: str) -> str:
    try:
        fields = json.loads(line)
        message = str(fields["message"])
    except (ValueError, TypeError, KeyError):
        return line.strip()[:_MOST_CHARACTERS]
    exception = str(fields.get("exception", "")).strip().splitlines()
    if not exception:
        return message
    # What an exception says may have several lines, of which the first matters most.
    begins = [place for place, text in enumerate(exception) if _RAISED.match(text)]
    said = " ".join(text.strip() for text in exception[begins[-1] if begins else -1 :])
    return f"{message}: {said}"[:_MOST_CHARACTERS]
