"""What a worker said last, of logs as they end."""

import json

from charter.trainer.last_words import last_words


def line(message: str, exception: str = "") -> str:
    return json.dumps({"level": "error", "message": message} | ({"exception": exception} if exception else {}))


def test_a_line_is_its_message() -> None:
    assert last_words(f"{line('begun')}\n{line('lower the learning rate')}\n\n").text == "lower the learning rate"
    assert last_words("Killed\n").text == "Killed"
    assert last_words("").text == ""


def test_only_an_error_that_a_worker_words_says_why() -> None:
    said = last_words(line("kto.data: all have a thumb up"))
    assert [said.why(status) for status in (1, 2)] == ["kto.data: all have a thumb up"] * 2
    # Cancelled, killed, unseen: it had not come to say why.
    assert [said.why(status) for status in (0, 3, 137, 143, -9, None)] == [""] * 6
    crashed = line("the worker failed", "Traceback\nValueError: x")
    for other in (crashed, "Killed", "", json.dumps({"level": "info", "message": "step 3"})):
        assert last_words(other).why(1) == ""


def test_an_exception_says_all_of_its_lines() -> None:
    traceback = (
        'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    raise ValueError\nValueError: first\n\n'
        "The above exception was the direct cause of the following exception:\n\nTraceback (most recent call last):\n"
        '  File "b.py", line 2, in g\nOSError: the model cannot be loaded: give another.\nCheck your connection.\n'
    )
    said = last_words(line("the worker failed", traceback))
    assert said.text == "the worker failed: OSError: the model cannot be loaded: give another. Check your connection."


def test_what_is_no_traceback_is_its_last_line() -> None:
    assert last_words(line("failed", "one\ntwo")).text == "failed: two"
