"""What a worker said last, worded for a person."""

import json

_MOST_CHARACTERS = 500


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
    return f"{message}: {exception[-1]}" if exception else message
