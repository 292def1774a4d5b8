"""Rules of a run spec about what is learned before RL, and the chat template for it."""

from collections.abc import Iterator
from typing import Any

from charter.spec.models import context_tokens
from charter.spec.problems import Problem
from charter.v1 import run_pb2


def chat_template(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """Template and EOS belong together."""
    template, eos = spec.policy.chat_template, spec.policy.eos_token
    if eos and not template:
        yield Problem("policy.eos_token", "belongs to policy.chat_template, which is not set: set both or none")
    if template.endswith((".jinja", ".j2", ".txt")) and not eos:
        text = "is required with a template file: the token that ends an answer"
        yield Problem("policy.eos_token", text, ("policy.chat_template",))


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
