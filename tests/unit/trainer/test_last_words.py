"""What a worker said last, of logs as they end."""

import json

from charter.trainer.last_words import last_line


def line(message: str, exception: str = "") -> str:
    return json.dumps({"level": "error", "message": message} | ({"exception": exception} if exception else {}))


def test_a_line_is_its_message() -> None:
    assert last_line(f"{line('begun')}\n{line('lower the learning rate')}\n\n") == "lower the learning rate"
    assert last_line("Killed\n") == "Killed"
    assert last_line("") == ""


def test_an_exception_says_all_of_its_lines() -> None:
    traceback = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    raise ValueError\nValueError: first\n\n'
        "The above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n"
        '  File "b.py", line 2, in g\nOSError: the model cannot be loaded: give another.\nCheck your connection.\n'
    )
    said = last_line(line("the worker failed", traceback))
    assert said == "the worker failed: OSError: the model cannot be loaded: give another. Check your connection."


def test_what_is_no_traceback_is_its_last_line() -> None:
    assert last_line(line("failed", "one\ntwo")) == "failed: two"
