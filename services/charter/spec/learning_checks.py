"""Rules of a run spec about what is learned before RL."""

from collections.abc import Iterator
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from charter.spec import facts
from charter.spec.lengths import LengthCounter
from charter.spec.models import context_tokens
from charter.spec.problems import Problem
from charter.v1 import run_pb2

if TYPE_CHECKING:
    from charter.spec.contents import Contents

# Of each source, prompts and conversations whose tokens are counted.
_COUNTED = 500


def prompt_weights(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """A weight for each source of prompts, or none."""
    weights, sources = len(spec.prompts.train_weights), len(spec.prompts.train)
    if weights and weights != sources:
        yield Problem(
            "prompts.train_weights",
            f"has {weights} weights for {sources} sources: give one for each, in their order",
            ("prompts.train",),
        )


def learned(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """What the stages before RL learn from, and how long it may be."""
    if spec.HasField("supervised") and not spec.supervised.data:
        yield Problem("supervised.data", "needs at least one source: what is learned from")
    if spec.pretraining.replay and spec.pretraining.replay_share == 0:
        yield Problem("pretraining.replay", "has no effect while pretraining.replay_share is 0: leave one out")
    if spec.revision.learning.data:
        yield Problem("revision.learning.data", "is what the stage makes: leave it out, or see revision.helpful")
    # A section that the spec leaves out is empty.
    stages: tuple[tuple[str, Any, tuple[str, ...], str], ...] = (
        ("pretraining", spec.pretraining, ("data", "replay"), "context_tokens"),
        ("supervised", spec.supervised, ("data",), "max_tokens"),
        ("revision.learning", spec.revision.learning, (), "max_tokens"),
        ("revision", spec.revision, ("helpful",), ""),
        ("dpo", spec.dpo, ("data",), "max_tokens"),
        ("kto", spec.kto, ("data",), "max_tokens"),
    )
    for section, stage, lists, limit in stages:
        named: list[str] = []
        for name in lists:
            sources = getattr(stage, name)
            if 0 < sum(one.HasField("weight") for one in sources) < len(sources):
                yield Problem(f"{section}.{name}", "gives some sources a weight and others none: set all, or none")
            for place, one in enumerate(sources):
                if one.source in named:
                    yield Problem(f"{section}.{name}[{place}].source", f"is named twice: {one.source}")
                named.append(one.source)
        try:
            context = context_tokens(spec.policy.model)
        except ValueError:
            # Said of policy.model itself.
            continue
        if context is not None and limit and stage.HasField(limit) and getattr(stage, limit) > context:
            yield Problem(
                f"{section}.{limit}",
                f"is {getattr(stage, limit)}, and the context of policy.model holds {context} tokens: lower it, or "
                "leave it out",
                ("policy.model",),
            )


def revised(spec: run_pb2.RunSpec, contents: "Contents") -> Iterator[Problem]:
    """What is revised, and what the gate asks about, against the prompts that there are."""
    if not spec.HasField("revision"):
        return
    revision = spec.revision
    wanted = set(revision.dimensions)
    if contents.train is not None:
        known = sorted({prompt.dimension for prompt in contents.train} - {""})
        for index, name in enumerate(revision.dimensions):
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}? They have" if close else "they have"
                text = f"is {name}, which no prompt of prompts.train has; {hint} {', '.join(known) or 'none'}"
                yield Problem(f"revision.dimensions[{index}]", text, ("prompts.train",))
        there = sum(facts.is_revised(revision, one) for one in contents.train)
        if there and revision.HasField("prompts") and revision.prompts > there:
            text = f"is {revision.prompts}, and prompts.train holds {there} {_kind(wanted)}: lower it, or leave it out"
            yield Problem("revision.prompts", text, ("prompts.train", "revision.dimensions"))
    if contents.held_out is not None:
        there = sum(facts.is_revised(revision, one) for one in contents.held_out)
        if not there:
            text = f"none of them is of {', '.join(sorted(wanted))}, and the gate of revision asks about such: add some"
            yield Problem("prompts.held_out", text, ("revision.dimensions",))
        elif revision.HasField("gate_prompts") and revision.gate_prompts > there:
            text = (
                f"is {revision.gate_prompts}, and prompts.held_out holds {there} {_kind(wanted)}: lower it, or leave "
                "it out"
            )
            yield Problem("revision.gate_prompts", text, ("prompts.held_out", "revision.dimensions"))


def too_long(spec: run_pb2.RunSpec, contents: "Contents") -> Iterator[Problem]:
    """Limits of tokens that leave nothing of a source."""
    for field, source, limit, most, lengths in _lengths(spec, contents):
        if lengths and min(lengths) > most:
            yield Problem(
                limit,
                f"is {most}, and {source} has at least {min(lengths)} tokens in each of the {len(lengths)} that were "
                "counted: nothing would be left. Raise it",
                (field, "policy.model"),
            )


def left_out(spec: run_pb2.RunSpec, contents: "Contents") -> Iterator[Problem]:
    """No mistakes, but worth a word: what limits of tokens leave out of a source."""
    for field, source, limit, most, lengths in _lengths(spec, contents):
        count = sum(length > most for length in lengths)
        if 0 < count < len(lengths):
            yield Problem(
                field,
                f"{count} of the {len(lengths)} of {source} that were counted are longer than {limit}, {most}, and "
                f"will be left out; the longest has at least {max(lengths)} tokens",
            )


def _lengths(spec: run_pb2.RunSpec, contents: "Contents") -> Iterator[tuple[str, str, str, int, list[int]]]:
    """Of each source that is here: its field and name, the field and value of its limit, and the lengths of some."""
    counter = LengthCounter.of(spec.policy.model) if spec.policy.engine != "fake" else None
    if counter is None:
        return
    try:
        context = context_tokens(spec.policy.model)
    except ValueError:
        # Said of policy.model itself.
        return
    for field, found in contents.conversations.items():
        section = "supervised" if field.startswith("supervised") else "revision.learning"
        settings = spec.supervised if section == "supervised" else spec.revision.learning
        lengths = counter.least(one.messages for one in found[:_COUNTED])
        yield (
            field,
            found[0].where.file,
            f"{section}.max_tokens",
            facts.longest_conversation(settings, context),
            lengths,
        )
    if facts.needs_reinforcement(spec):
        for part, prompts in (("train", contents.train), ("held_out", contents.held_out)):
            lengths = counter.least(one.messages for one in (prompts or ())[:_COUNTED])
            limit = "prompts.max_prompt_tokens"
            yield f"prompts.{part}", f"prompts.{part}", limit, spec.prompts.max_prompt_tokens, lengths


def _kind(dimensions: set[str]) -> str:
    return f"of {', '.join(sorted(dimensions))}" if dimensions else "different ones"
