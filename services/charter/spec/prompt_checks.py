"""Rules of a run spec about its prompts: counts that they must allow, and dimensions that they must have."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from charter.spec import facts
from charter.spec.problems import Problem
from charter.v1 import run_pb2

if TYPE_CHECKING:
    from charter.spec.contents import Contents

# How often one prompt is answered for one purpose; a count that needs more is a slip.
MOST_ANSWERS_TO_A_PROMPT = 100


def pairs(spec: run_pb2.RunSpec, contents: "Contents") -> Iterator[Problem]:
    """Pairs and episodes against the prompts that there are to answer."""
    if not contents.train:
        return
    alone = facts.label_sources(spec.feedback) == {facts.AI}
    if facts.needs_preference_model(spec) and alone and len(contents.train) == 1:
        yield Problem(
            "prompts.train",
            "holds one prompt: some prompts are held out from the fit of the preference model, and none would be left",
            ("feedback", "reward.preference_weight", "ppo.algorithm"),
        )
    there, most = len(contents.train), MOST_ANSWERS_TO_A_PROMPT * len(contents.train)
    counts = {"ppo.episodes_per_step": spec.ppo.episodes_per_step // max(spec.ppo.samples_per_prompt, 1)}
    if facts.needs_preference_model(spec) and facts.AI in facts.label_sources(spec.feedback):
        counts["comparisons.pairs"] = spec.comparisons.pairs
        if spec.comparisons.HasField("refresh_every_steps"):
            counts["comparisons.refresh_pairs"] = spec.comparisons.refresh_pairs
    for field, count in counts.items():
        if count > most:
            yield Problem(
                field,
                f"takes each prompt {count / there:,.0f} times: prompts.train has {there} different ones, and over "
                f"{MOST_ANSWERS_TO_A_PROMPT} times is a slip. Lower it, or add prompts",
                ("prompts.train", "ppo.samples_per_prompt"),
            )


def held_out(spec: run_pb2.RunSpec, contents: "Contents") -> Iterator[Problem]:
    """Comparisons against the held-out prompts that there are."""
    if not contents.held_out:
        return
    evaluation, count = spec.evaluation, len(contents.held_out)
    there = f"prompts.held_out holds {count} different ones: lower it, or add some"
    if evaluation.HasField("prompts") and evaluation.prompts > count:
        yield Problem("evaluation.prompts", f"is {evaluation.prompts}, and {there}", ("prompts.held_out",))
    elif evaluation.HasField("every_steps"):
        final = facts.evaluated_prompts(spec, count)
        if final + evaluation.watched_prompts > count:
            yield Problem(
                "evaluation.watched_prompts",
                f"is {evaluation.watched_prompts}, for evaluation.every_steps and behind the {final} of "
                f"evaluation.prompts, and {there}",
                ("prompts.held_out", "evaluation.prompts", "evaluation.every_steps"),
            )


def dimensions(spec: run_pb2.RunSpec, contents: "Contents") -> Iterator[Problem]:
    """Dimensions that nothing has, and ensembles larger than the principles of one."""
    of_prompts = {prompt.dimension for prompt in contents.train or ()}
    if contents.train and facts.needs_preference_model(spec):
        for dimension in spec.feedback.by_dimension:
            if dimension not in of_prompts and facts.AI in facts.label_shares(spec.feedback, dimension):
                has = ", ".join(sorted(of_prompts - {""})) or "none"
                yield Problem(
                    f"feedback.by_dimension.{dimension}",
                    f"gives ai a share, and no prompt of prompts.train is of this dimension (they have {has})",
                    ("prompts.train",),
                )
    if contents.constitution is None:
        return
    principles, size = contents.constitution.principles, spec.judge.ensemble_size
    # A prompt whose dimension has no principles is judged by all.
    for dimension in ("", *sorted(of_prompts & {one.dimension for one in principles})):
        count = len(contents.constitution.of_dimension(dimension))
        if size > count:
            of = f" of the dimension {dimension}, which prompts have" if dimension else ""
            yield Problem(
                "judge.ensemble_size",
                f"is {size}, and the constitution has {count} principles{of}: lower it",
                ("judge.constitution", "prompts.train"),
            )
            return
