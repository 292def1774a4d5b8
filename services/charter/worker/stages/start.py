"""Checks that the services are there and serve what the spec names, and writes down what the run is made of."""

import importlib.metadata
import logging
import platform
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch

from charter.atomic_files import write_text
from charter.data.bad_rows import said
from charter.data.errors import DataError
from charter.data.sources import Source
from charter.inference.chat_template import ChatTokenizer
from charter.runs.artifacts import Artifacts
from charter.runs.results import LeftOut, PromptSource
from charter.spec import checks
from charter.spec.bad_rows import bad_rows_of
from charter.spec.data_sources import change_data_sources
from charter.spec.facts import (
    HUMAN,
    IMPORTED,
    evaluated_prompts,
    label_sources,
    learns_turns,
    needs_preference_model,
    needs_reinforcement,
    needs_store,
    reads_turns,
    servers_sleep,
)
from charter.spec.label_checks import OWN
from charter.spec.load import spec_to_json
from charter.spec.served import judge_problems, policy_problems, preference_problems
from charter.storage.comparisons import enum_name
from charter.v1 import judge_pb2, run_pb2, types_pb2
from charter.worker.clients.services import Services
from charter.worker.errors import RunError, SpecError
from charter.worker.offline.stored import nothing_stored
from charter.worker.prompts import PromptSets, load_prompt_sets
from charter.worker.supervised.conversations import ConversationReader
from charter.worker.training import ranks
from charter.worker.training.starting import policy_model

logger = logging.getLogger("charter.worker")


def check_spec(spec: run_pb2.RunSpec) -> None:
    """Raise ``SpecError`` with every mistake of a filled spec, and what this machine cannot do."""
    found = [str(problem) for problem in checks.problems(spec)]
    if servers_sleep(spec.services) and ranks.size() > 1:
        found.append(
            f"services.gpu_sharing is for one GPU, and the worker was started as {ranks.size()} processes: leave it out"
        )
    if spec.services.weights_nccl:
        found += _nccl_problems()
    if found:
        raise SpecError("\n".join(found))


def _nccl_problems() -> Iterator[str]:
    without = "Leave it out, and weights travel over gRPC or by services.weights_folder"
    if not torch.cuda.is_available():
        yield f"services.weights_nccl sends weights from the worker's GPU, and the worker sees none. {without}"
    elif find_spec("vllm") is None:
        yield (
            "services.weights_nccl sends weights by vLLM's own code: install vllm where the worker runs (the image of "
            f"the model servers has it). {without}"
        )


def with_pinned_data(spec: run_pb2.RunSpec, artifacts: Artifacts) -> run_pb2.RunSpec:
    """The spec with each data set of the hub at a commit, the one that the first attempt had: ``data`` in ``run.json``.

    Raises ``SpecError`` where a data set cannot be had.
    """
    pinned, commits = run_pb2.RunSpec(), artifacts.record.setdefault("data", {})
    pinned.CopyFrom(spec)

    def pin(_field: str, source: Source) -> Source:
        if source.of_hub and str(source) not in commits:
            commits[str(source)] = str(source.pinned())
        return Source.parse(commits[str(source)]) if source.of_hub else source

    try:
        change_data_sources(pinned, pin)
    except DataError as error:
        raise SpecError(str(error)) from error
    artifacts.save_record()
    return pinned


def check_template(spec: run_pb2.RunSpec) -> ChatTokenizer | None:
    """The policy's tokenizer, or None where only texts are learned, which need no chat template.

    Raises ``SpecError`` for a template that cannot be used, by the stage that needs most of it.
    """
    if not reads_turns(spec):
        return None
    try:
        tokenizer = ChatTokenizer.load(policy_model(spec))
    except ValueError as error:
        raise SpecError(f"policy.model or policy.chat_template: {error}") from error
    if learns_turns(spec):
        ConversationReader(tokenizer, 1)
    return tokenizer


def load_prompts(spec: run_pb2.RunSpec, artifacts: Artifacts, tokenizer: ChatTokenizer | None) -> PromptSets:
    """Read the prompts, if any are answered, and count what there are. Raises ``SpecError`` for wrong files."""
    if tokenizer is None or not needs_reinforcement(spec):
        return PromptSets((), (), 0)
    bad = bad_rows_of(spec, artifacts.left_out("prompts"))
    prompts = load_prompt_sets(spec.prompts, tokenizer, bad)
    if bad.counts:
        logger.warning("rows of prompts were left out: %s. %s", said(bad.counts), bad.left_out)
    watch, final = spec.evaluation, evaluated_prompts(spec, len(prompts.held_out))
    if watch.HasField("every_steps") and final + watch.watched_prompts > len(prompts.held_out):
        raise SpecError(
            f"evaluation.every_steps needs evaluation.prompts + evaluation.watched_prompts, {final} + "
            f"{watch.watched_prompts}, held-out prompts that fit, and there are {len(prompts.held_out)}: lower one, or "
            "add some"
        )
    shares = prompts.shares()
    artifacts.record["prompt_sources"] = {
        name: asdict(PromptSource(len(keys), shares.get(name, 0.0), _dimensions(prompts, keys)))
        for name, keys in prompts.sources.items()
    }
    kinds = {**({"too_long": prompts.too_long} if prompts.too_long else {}), **bad.counts}
    items = len(prompts.train) + len(prompts.held_out) + sum(kinds.values())
    artifacts.record.setdefault("left_out", {})["prompts"] = asdict(LeftOut(items, kinds))
    artifacts.count(
        prompts_train=len(prompts.train),
        prompts_held_out=len(prompts.held_out),
        prompts_too_long=prompts.too_long,
        prompt_rows_left_out=bad.counts.total(),
    )
    return prompts


def _dimensions(prompts: PromptSets, keys: frozenset[str]) -> dict[str, int]:
    return dict(Counter(prompt.dimension for prompt in prompts.train if prompt.key in keys))


def check_services(spec: run_pb2.RunSpec, services: Services, artifacts: Artifacts) -> judge_pb2.Constitution:
    """Check models, context and constitution; store spec, constitution and versions.

    Without RL the store is asked at most.

    Raises ``ServiceError`` for a service that cannot be reached, ``RunError`` for one that serves something else.
    """
    if not needs_reinforcement(spec):
        if needs_store(spec):
            # Waits for it where it is away.
            services.preference.info()
        artifacts.record["versions"] = _versions()
        artifacts.save_record()
        write_text(artifacts.spec, spec_to_json(spec))
        return judge_pb2.Constitution()
    policies = services.policy.info()
    judge = services.judge.info()
    if spec.reward.judge_weight > 0 and judge.rating_problem:
        raise RunError(
            f"reward.judge_weight asks the judge for ratings, and {judge.model.model} cannot rate: "
            f"{judge.rating_problem}. Leave it out, or take another judge.model"
        )
    preference = services.preference.info()
    services.preference.check_control_port()
    _check_labels(spec, services)
    others = [
        *(problem for address, info in policies for problem in policy_problems(spec, address, info)),
        *judge_problems(spec, spec.services.judge, judge),
        *preference_problems(spec, spec.services.preference, preference),
    ]
    if others:
        raise RunError("\n".join(others))
    if spec.services.weights_nccl:
        services.policy.check_nccl()
    needed = spec.prompts.max_prompt_tokens + spec.sampling.max_new_tokens
    # The preference model reads EOS behind an answer that the limit cut off, too.
    for info, eos in (*((info, 0) for _, info in policies), (preference, 1)):
        if needed + eos > info.max_context_tokens:
            behind = " + 1 for EOS" if eos else ""
            raise RunError(
                f"prompts.max_prompt_tokens + sampling.max_new_tokens{behind} is {needed + eos}, the context of "
                f"{info.model} holds {info.max_context_tokens} tokens: lower one of them"
            )
    constitution = services.judge.constitution()
    _same_constitution(spec, constitution, artifacts)
    artifacts.record["constitution_digest"] = constitution.digest
    engines = {"policy engine": policies[0][1].engine, "judge engine": judge.model.engine}
    artifacts.record["versions"] = _versions() | engines
    for served in (judge.model, policies[0][1]):
        # Of the other engines the worker has the library itself, or there is none.
        if served.engine == "vllm" and served.engine_version:
            artifacts.record["versions"]["vllm"] = served.engine_version
    if judge.calibration.digest:
        artifacts.record["versions"]["judge calibration"] = judge.calibration.digest
    artifacts.save_record()
    write_text(artifacts.spec, spec_to_json(_as_served(spec, policies[0][1].engine, judge.model.engine)))
    if constitution.source_yaml:
        # A judge that is not ours may have none.
        write_text(artifacts.constitution, constitution.source_yaml)
    return constitution


def _versions() -> dict[str, str]:
    return {
        "charter": importlib.metadata.version("charter"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "grpcio")},
    }


def _as_served(spec: run_pb2.RunSpec, policy: str, judge: str) -> run_pb2.RunSpec:
    """The spec with the engines that served it, where it leaves them open."""
    served = run_pb2.RunSpec()
    served.CopyFrom(spec)
    if served.policy.engine in ("", "auto"):
        served.policy.engine = policy
    if not served.judge.engine:
        served.judge.engine = judge
    return served


def _check_labels(spec: run_pb2.RunSpec, services: Services) -> None:
    """What the spec mixes in must be there before the run begins. Raises ``RunError``."""
    if not needs_preference_model(spec):
        return
    for index, one in enumerate(spec.comparisons.stored):
        there = one.run_id == OWN or services.preference.count_labels(one.run_id, one.source, one.dimension)
        if not there:
            raise RunError(nothing_stored(f"comparisons.stored[{index}]", services.preference.address))
    sources = label_sources(spec.feedback)
    wanted = [
        (
            HUMAN in sources,
            types_pb2.LABEL_SOURCE_HUMAN,
            "feedback",
            "`charter feedback` collects them",
        ),
        (
            IMPORTED in sources or spec.preference_model.warm_start_epochs > 0,
            types_pb2.LABEL_SOURCE_IMPORTED,
            "feedback or preference_model.warm_start_epochs",
            "`charter preferences import` adds them",
        ),
    ]
    for needed, source, field, advice in wanted:
        if needed and services.preference.count_labels(source=source) == 0:
            name = enum_name("source", source).lower()
            raise RunError(f"{field} asks for {name} labels, and the preference service has none: {advice}")


def _same_constitution(spec: run_pb2.RunSpec, served: judge_pb2.Constitution, artifacts: Artifacts) -> None:
    if spec.judge.constitution:
        try:
            wanted = Path(spec.judge.constitution).read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot read judge.constitution: {error}") from error
        if wanted != served.source_yaml:
            raise RunError(
                f"the judge at {spec.services.judge} judges by {served.name!r} (version {served.version}), which is "
                f"not the file {spec.judge.constitution}: restart the judge with that file"
            )
    earlier = artifacts.record["constitution_digest"]
    # Before anything was judged, the spec may have been corrected.
    judged = artifacts.labels.exists() or (artifacts.folder / "judge_check.json").exists()
    if judged and earlier and earlier != served.digest:
        raise RunError("the judge's constitution has changed since this run began: start a new run for the new one")
