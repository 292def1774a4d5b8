"""Every rule of a run spec that needs no model and no service: across its fields, and in the files that it names.

`charter check`, `plan`, `up` and `run`, the trainer's CreateRun and ResumeRun, and the worker all ask here.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from charter.spec import chat_checks, comparison_checks, facts, label_checks, learning_checks, prompt_checks
from charter.spec.chat_form import CHATML
from charter.spec.defaults import fill_defaults
from charter.spec.load import SpecFile
from charter.spec.models import context_tokens, folder_of
from charter.spec.problems import Problem
from charter.v1 import judge_pb2, run_pb2

if TYPE_CHECKING:
    from charter.spec.contents import Contents


@dataclass(frozen=True, slots=True)
class Findings:
    """Mistakes in a spec, what could not be looked into, and what is no mistake but worth a word."""

    problems: list[Problem]
    unread: list[Problem]
    remarks: list[Problem]


def findings(spec: run_pb2.RunSpec, *, absent_files: bool = False) -> Findings:
    """All that is to be said of a filled spec, in no order.

    With ``absent_files`` the run is for another machine: files and folders that are not here may be there.
    """
    # Here, not at the top: the help of a command that checks specs waits for no reader of files.
    from charter.spec.contents import read_contents

    contents = read_contents(spec, absent_files)
    found = list(contents.problems)
    for rule in _RULES:
        found += rule(spec)
    for rule_of_contents in _RULES_OF_CONTENTS:
        found += rule_of_contents(spec, contents)
    unread = [*contents.unread, *_absent_models(spec)]
    return Findings(found, unread, list(learning_checks.left_out(spec, contents)))


def problems(spec: run_pb2.RunSpec, *, absent_files: bool = False) -> list[Problem]:
    """Every mistake in a filled spec, in no order; ``absent_files`` as in ``findings``."""
    return findings(spec, absent_files=absent_files).problems


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A spec's file with all that was found in it; ``unread`` and ``remarks`` are of fields without a mistake."""

    file: SpecFile
    unread: Sequence[Problem]
    remarks: Sequence[Problem]


def check_file(path: Path, remote: bool = False, to_serve: bool = False) -> CheckedFile:
    """Look at the spec in a file; ``to_serve`` looks for what `charter up` needs, too.

    With ``remote`` the run is for another machine. Raises ``SpecError`` for a file that cannot be read, or is not YAML.
    """
    file = SpecFile(path, remote)
    filled = fill_defaults(file.spec)
    # The file itself was asked which files are missing.
    found = findings(filled, absent_files=True)
    file.add(found.problems)
    if to_serve:
        file.add(service_problems(filled))
    wrong = {one.field for one in file.problems}
    return CheckedFile(
        file,
        [one for one in found.unread if one.field not in wrong],
        [one for one in found.remarks if one.field not in wrong],
    )


def load_checked(path: Path, remote: bool = False, to_serve: bool = False) -> run_pb2.RunSpec:
    """The spec in a file, not filled. Raises ``SpecError`` with every mistake that ``check_file`` finds."""
    file = check_file(path, remote, to_serve).file
    file.raise_if_wrong()
    return file.spec


def service_problems(spec: run_pb2.RunSpec) -> list[Problem]:
    """What is missing in a filled spec for `charter up` to start the services that it needs."""
    if facts.needs_reinforcement(spec) and spec.judge.engine != "external" and not spec.judge.constitution:
        return [Problem("judge.constitution", "is required to start a judge: name the file of a constitution")]
    return []


def _absent_models(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """Models that are read where they are here: for their context and chat template."""
    models = {"policy.model": spec.policy.model if spec.policy.engine != "fake" else ""}
    if facts.needs_preference_model(spec):
        models["preference_model.model"] = spec.preference_model.model
    if spec.policy.chat_template != CHATML and not os.path.isfile(spec.policy.chat_template):
        models["policy.chat_template"] = spec.policy.chat_template
    for field, model in models.items():
        if model and folder_of(model) is None:
            yield Problem(field, f"{model} is not in the hub's cache of this machine")


def _sections(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """What is there because something needs it."""
    if facts.needs_reinforcement(spec) and not spec.judge.model:
        yield Problem("judge.model", "is required: the judge compares the aligned policy with the one before")
    if facts.needs_reinforcement(spec):
        for name, use in (("train", "the policy answers them"), ("held_out", "the evaluation takes them")):
            if not getattr(spec.prompts, name):
                yield Problem(f"prompts.{name}", f"needs at least one file: {use}")


def _groups(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """Episodes, the answers to one prompt, and minibatches."""
    ppo, name = spec.ppo, facts.algorithm_name(spec.ppo)
    group, episodes = ppo.samples_per_prompt, ppo.episodes_per_step
    fields = ("ppo.algorithm", "ppo.samples_per_prompt", "ppo.episodes_per_step")
    if ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO and group != 2:
        yield Problem("ppo.samples_per_prompt", f"is {group}, but online_dpo learns from pairs: leave it out", fields)
    elif ppo.algorithm in facts.COMPARE_ANSWERS and group < 2:
        yield Problem(
            "ppo.samples_per_prompt", f"is {group}, but {name} compares the answers to a prompt: set 2 or more", fields
        )
    if episodes % group:
        yield Problem(
            "ppo.episodes_per_step", f"is {episodes}, not a multiple of ppo.samples_per_prompt, {group}", fields
        )
    if ppo.minibatches * facts.episodes_together(ppo) > episodes:
        yield Problem(
            "ppo.minibatches", f"is {ppo.minibatches}, too many for ppo.episodes_per_step, {episodes}", fields
        )


def _critic(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    ppo = spec.ppo
    if ppo.shared_trunk and not facts.needs_critic(ppo):
        yield Problem(
            "ppo.shared_trunk",
            f"makes the critic a head of the policy, and {facts.algorithm_name(ppo)} has no critic: leave it out",
            ("ppo.algorithm",),
        )
    if ppo.shared_trunk and ppo.critic_warmup_steps:
        yield Problem(
            "ppo.shared_trunk",
            "makes the critic a part of the policy, and in the steps of ppo.critic_warmup_steps only the critic "
            "learns: leave one out",
            ("ppo.critic_warmup_steps",),
        )
    if ppo.HasField("kl_target") and not ppo.kl_coefficient:
        yield Problem(
            "ppo.kl_target",
            "adapts ppo.kl_coefficient by factors, and that is 0: set it above 0",
            ("ppo.kl_coefficient",),
        )


def _reward(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    reward = spec.reward
    weights = ("reward.preference_weight", "reward.judge_weight", "reward.service_weight")
    if spec.ppo.algorithm != run_pb2.ALGORITHM_ONLINE_DPO and not (
        reward.preference_weight or reward.judge_weight or reward.service_weight
    ):
        yield Problem("reward", "has every weight 0, so that nothing is learned: set one of them", weights)
    if bool(reward.service) != (reward.service_weight > 0):
        at = "reward.service" if reward.service else "reward.service_weight"
        yield Problem(
            at,
            "reward.service and reward.service_weight belong together: set both or none",
            ("reward.service_weight", "reward.service"),
        )
    if reward.service_model and not reward.service:
        yield Problem("reward.service_model", "names a model of reward.service, which is not set", ("reward.service",))


def _online_dpo(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """What other algorithms do with scores, ratios and the KL penalty; online DPO has none of these."""
    if spec.ppo.algorithm != run_pb2.ALGORITHM_ONLINE_DPO:
        return
    # Unset where they are off, as no default is.
    given = {field.name for field, _ in spec.ppo.ListFields()}
    for name in sorted(given & {"dual_clip", "score_clip", "kl_target", "normalise_scores"}):
        yield Problem(f"ppo.{name}", "has no meaning for online_dpo: leave it out", ("ppo.algorithm",))


def _feedback(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    if spec.comparisons.stored:
        return
    for dimension in ("", *spec.feedback.by_dimension):
        if not facts.label_shares(spec.feedback, dimension):
            where = f"feedback.by_dimension.{dimension}" if dimension else "feedback"
            yield Problem(where, "must give at least one of ai, human and imported a share above 0")


def _refresh(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    if not spec.comparisons.HasField("refresh_every_steps"):
        return
    field = "comparisons.refresh_every_steps"
    if not facts.needs_preference_model(spec):
        yield Problem(
            field,
            "refreshes the preference model, and this run has none",
            ("ppo.algorithm", "reward.preference_weight"),
        )
    if facts.AI not in facts.label_sources(spec.feedback) and not spec.comparisons.stored:
        yield Problem(field, "adds labels of the judge, and feedback gives ai no share", ("feedback",))


def _preference_model(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    model = spec.preference_model
    if model.separate_members and model.members < 2:
        yield Problem(
            "preference_model.separate_members",
            "needs an ensemble: set preference_model.members to 2 or more",
            ("preference_model.members",),
        )


def _evaluation(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    if spec.evaluation.HasField("patience") and not spec.evaluation.HasField("every_steps"):
        yield Problem(
            "evaluation.patience",
            "counts the comparisons of evaluation.every_steps: set that too",
            ("evaluation.every_steps",),
        )


def _judge(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    judge, openai = spec.judge, spec.judge.engine == "openai"
    engine = ("judge.engine",)
    if openai and not judge.endpoint:
        yield Problem("judge.endpoint", "is required by judge.engine openai: the base URL of the endpoint", engine)
    if judge.endpoint and not openai:
        yield Problem("judge.endpoint", f"is for judge.engine openai, and it is {judge.engine}: leave one out", engine)
    if judge.HasField("limits") and not openai:
        yield Problem("judge.limits", f"are for judge.engine openai, and it is {judge.engine}: leave them out", engine)
    if openai and judge.method == judge_pb2.JUDGING_METHOD_CONTRAST:
        yield Problem(
            "judge.method", "contrast reads log-likelihoods, which no endpoint gives: choose choice or verdict", engine
        )


def _services(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    services = spec.services
    sleep = facts.servers_sleep(services)
    if len(services.policy) != len(services.policy_control):
        yield Problem(
            "services.policy_control",
            f"names {len(services.policy_control)} replicas, and services.policy {len(services.policy)}: they must be "
            "the same, in the same order",
            ("services.policy",),
        )
    if sleep and (len(services.policy) > 1 or services.judge_replicas):
        yield Problem(
            "services.gpu_sharing",
            "is for one GPU, on which there is one policy and one judge: name one of each",
            ("services.policy", "services.judge_replicas"),
        )
    if services.weights_nccl and spec.ppo.HasField("lora_rank"):
        yield Problem(
            "services.weights_nccl",
            "sends whole weights, and with ppo.lora_rank only adapters travel: leave one out",
            ("ppo.lora_rank",),
        )
    if services.weights_nccl and sleep:
        yield Problem(
            "services.weights_nccl",
            "is for worker and policy on GPUs of their own, services.gpu_sharing for one GPU: leave one out",
            ("services.gpu_sharing",),
        )


def _context(spec: run_pb2.RunSpec) -> Iterator[Problem]:
    """Prompt and answer against the contexts of the models whose configs are here."""
    needed = spec.prompts.max_prompt_tokens + spec.sampling.max_new_tokens
    models = {"policy.model": (spec.policy.model if spec.policy.engine != "fake" else "", 0)}
    if facts.needs_preference_model(spec):
        # It reads EOS behind an answer that the limit cut off, too.
        models["preference_model.model"] = (spec.preference_model.model, 1)
    for field, (model, eos) in models.items():
        try:
            context = context_tokens(model) if model else None
        except ValueError as error:
            yield Problem(field, str(error))
            continue
        if context is not None and needed + eos > context:
            yield Problem(
                "sampling.max_new_tokens",
                f"prompts.max_prompt_tokens + sampling.max_new_tokens{' + 1 for EOS' * eos} is {needed + eos}, and the "
                f"context of {field} holds {context} tokens ({model}): lower one of them",
                ("prompts.max_prompt_tokens", "sampling.max_new_tokens", field),
            )


_RULES: tuple[Callable[[run_pb2.RunSpec], Iterator[Problem]], ...] = (
    _sections,
    chat_checks.chat_template,
    chat_checks.untrained_tokens,
    _groups,
    _critic,
    _reward,
    _online_dpo,
    _feedback,
    _refresh,
    _preference_model,
    _evaluation,
    comparison_checks.compared,
    _judge,
    _services,
    learning_checks.prompt_weights,
    learning_checks.learned,
    label_checks.labelled,
    label_checks.fitted,
    _context,
)
_RULES_OF_CONTENTS: tuple[Callable[[run_pb2.RunSpec, "Contents"], Iterator[Problem]], ...] = (
    prompt_checks.pairs,
    prompt_checks.held_out,
    prompt_checks.dimensions,
    learning_checks.revised,
    learning_checks.too_long,
)
