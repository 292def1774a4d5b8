"""What a chat template puts around messages: found by rendering conversations of marked messages.

Templates are programs, and no list of model names says what they write. Some part turns by special tokens, others by
plain text (``[INST]`` of Llama 2, ``USER:`` of Vicuna); some refuse a system turn, or leave it out.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import jinja2

# Renders a conversation up to the start of the assistant's turn; raises ``jinja2.TemplateError`` when it is refused.
Render = Callable[[Sequence[Mapping[str, str]]], str]

Roles = tuple[str, ...]

_USER: Roles = ("user",)
_TURNS: Roles = ("user", "assistant", "user")
_SYSTEM: Roles = ("system", "user")
_SYSTEM_AND_TURNS: Roles = ("system", *_TURNS)
_LATER_SYSTEM: Roles = ("user", "assistant", "system", "user")
# A word of the template such as [INST] or <<SYS>>.
_BRACKETED = re.compile(r"(?<!\S)[<\[＜【]\S+[>\]＞】](?!\S)")


@dataclass(frozen=True, slots=True)
class TemplateForm:
    """What lies around the messages.

    ``tokens`` and ``phrases`` are what parts the turns: tokens of the tokenizer, and plain text. ``opening`` stands
    between the last user message and the answer. ``gap`` is white space that the template puts between ``opening`` and
    an answer that it is given, and leaves to the model where an answer is to be written. ``shows_system`` and
    ``shows_later_system`` say whether a system turn at the beginning, or behind other turns, reaches the model.
    """

    tokens: frozenset[str]
    phrases: frozenset[str]
    opening: str
    gap: str
    shows_system: bool
    shows_later_system: bool


def read_form(render: Render, tokens: Collection[str]) -> TemplateForm:
    """Learn the form of a template. ``tokens`` are the texts that its tokenizer reads as one token each.

    A template that refuses every conversation has an empty form. Raises ``ValueError``, whose text goes on after "the
    chat template", for one that leaves out what somebody says or has nothing between turns.
    """
    rendered = {
        roles: _around_messages(render, roles) for roles in (_USER, _SYSTEM, _TURNS, _SYSTEM_AND_TURNS, _LATER_SYSTEM)
    }
    for roles in (_USER, _TURNS):
        if rendered[roles] == []:
            raise ValueError(f"leaves out messages of a conversation ({', '.join(roles)}): mend it")
    shown = {roles: around for roles, around in rendered.items() if around}
    used: set[str] = set()
    phrases: set[str] = set()
    for roles, around in shown.items():
        for place, text in enumerate(around):
            tokens_here = {token for token in tokens if token in text}
            phrases_here = _phrases(text, tokens_here, before_all=place == 0)
            parts_turns = 0 < place < len(roles) and roles[place - 1] != "system"
            if parts_turns and not tokens_here and not phrases_here:
                if not text.strip():
                    raise ValueError("puts nothing between turns, so that a message could go on as the next: mend it")
                phrases_here = {text.strip()}
            used |= tokens_here
            phrases |= phrases_here
    opening = next((around[-1] for around in shown.values()), "")
    return TemplateForm(
        tokens=frozenset(used),
        phrases=frozenset(phrases),
        opening=opening,
        gap=_gap(shown, opening),
        shows_system=_SYSTEM in shown and (_TURNS not in shown or _SYSTEM_AND_TURNS in shown),
        shows_later_system=_LATER_SYSTEM in shown,
    )


def breaker(markers: Collection[str]) -> Callable[[str], str]:
    """A function that puts a space into each of the markers in a text, so that nobody reads it as one any more."""
    longest_first = sorted(markers, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def break_up(text: str) -> str:
        while pattern.search(text):
            text = pattern.sub(lambda found: with_space(found[0]), text)
        return text

    return break_up


def with_space(marker: str) -> str:
    """A marker with a space in it: ``< |user|>``, ``USER :``. One of a single character becomes a space."""
    if len(marker) == 1:
        return " "
    place = -1 if marker[0].isalnum() else 1
    return f"{marker[:place]} {marker[place:]}"


def has_symbol(text: str) -> bool:
    """Whether there is more in a text than letters, digits and white space."""
    return any(not (character.isalnum() or character.isspace()) for character in text)


def _around_messages(render: Render, roles: Roles) -> list[str] | None:
    """The texts before, between and behind the messages; empty where one is missing, None where it is refused."""
    marks = [f"Qz{place}zQ" for place in range(len(roles))]
    try:
        text = render([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
    except jinja2.TemplateError:
        return None
    around = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found:
            return []
        around.append(before)
    return [*around, text]


def _phrases(text: str, tokens: Collection[str], *, before_all: bool) -> set[str]:
    """The plain text between tokens and line ends that is more than words: ``USER:``, ``### Response:``, ``[/INST]``.

    Before all messages a template may say more, such as a default system text: there only what is in brackets, and the
    last piece.
    """
    pieces = [piece.strip() for piece in re.split("|".join(map(re.escape, ["\n", *tokens])), text)]
    pieces = [piece for piece in pieces if piece]
    bracketed = {word for piece in pieces for word in _BRACKETED.findall(piece)}
    whole = pieces[-1:] if before_all else pieces
    return bracketed | {piece for piece in whole if len(piece) > 1 and has_symbol(piece)}


def _gap(shown: Mapping[Roles, Sequence[str]], opening: str) -> str:
    for roles in (_TURNS, _SYSTEM_AND_TURNS):
        if roles in shown and opening:
            before_answer = shown[roles][roles.index("assistant")]
            rest = before_answer.removeprefix(opening)
            return rest if before_answer.startswith(opening) and rest.isspace() else ""
    return ""
