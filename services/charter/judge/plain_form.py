"""Critique and revision as plain text that a base model goes on with (Bai et al. 2022, arXiv 2212.08073, appendix C.1).

A model that has learned no chat template takes its turns for anything; headers at the beginning of a line it knows from
what it has read.
"""

import re

from charter.chat import ChatMessage
from charter.judge.drafts import Draft
from charter.judge.pairs import marked_lines

_NAMES = {"system": "System", "user": "Human", "assistant": "Assistant"}
_HEADERS = r"(?:System|Human|Assistant|Critique ?Request|Critique|Revision ?Request|Revision)[^\S\n]*:"
_NEXT = re.compile(rf"^[^\S\n]*{_HEADERS}", re.MULTILINE)
_QUOTED = marked_lines(_HEADERS)


def critique_text(draft: Draft) -> str:
    """The examples and the answer, up to where its critique begins."""
    shown = [f"{_asked_to_criticise(one)} {_quoted(one.critique)}" for one in draft.examples()]
    return "\n\n".join([*shown, _asked_to_criticise(draft)])


def revision_text(draft: Draft) -> str:
    """The examples, the answer and its critique, up to where its revision begins."""
    shown = [
        f"{_asked_to_revise(one)} {_quoted(example.revision)}"
        for one, example in zip(draft.examples(), draft.principle.revisions, strict=True)
    ]
    return "\n\n".join([*shown, _asked_to_revise(draft)])


def before_next_header(text: str) -> tuple[str, bool]:
    """What was written up to the next header, and whether there is one: a base model seldom ends by itself."""
    found = _NEXT.search(text)
    # One at the very beginning stands behind our own header, on its line.
    while found is not None and "\n" not in text[: found.start()]:
        found = _NEXT.search(text, found.end())
    return (text, False) if found is None else (text[: found.start()], True)


def _asked_to_criticise(draft: Draft) -> str:
    return f"{_conversation(draft)}\n\nCritiqueRequest: {draft.principle.critique}\n\nCritique:"


def _asked_to_revise(draft: Draft) -> str:
    asked = _asked_to_criticise(draft) + f" {_quoted(draft.critique)}" if draft.critique else _conversation(draft)
    return f"{asked}\n\nRevisionRequest: {draft.principle.revise}\n\nRevision:"


def _conversation(draft: Draft) -> str:
    turns = [*draft.prompt, ChatMessage("assistant", draft.answer)]
    return "\n\n".join(f"{_NAMES[turn.role]}: {_quoted(turn.content)}" for turn in turns)


def _quoted(text: str) -> str:
    return _QUOTED.sub("> ", text)
