"""Checks that the services are there and serve what the spec names, and writes down what the run is made of."""

import importlib.metadata
import platform
from importlib.util import find_spec
from pathlib import Path

import torch

from charter.atomic_files import write_text
from charter.inference.chat_template import ChatTokenizer
from charter.runs.artifacts import Artifacts
from charter.spec.facts import needs_preference_model
from charter.spec.load import spec_to_json
from charter.spec.served import judge_problems, policy_problems, preference_problems
from charter.storage.comparisons import enum_name
from charter.v1 import judge_pb2, run_pb2, types_pb2
from charter.worker.clients.services import Services, servers_sleep
from charter.worker.errors import RunError, SpecError
from charter.worker.preference.mixing import AI, HUMAN, IMPORTED, sources
from charter.worker.prompts import PromptSets, load_prompt_sets
from charter.worker.reinforcement.algorithms import ALGORITHMS
from charter.worker.training import ranks


def check_spec(spec: run_pb2.RunSpec) -> None:
    """Raise ``SpecError`` for numbers that do not go together."""
    ppo = spec.ppo
    name = run_pb2.Algorithm.Name(ppo.algorithm).removeprefix("ALGORITHM_").lower()
    group, together = ppo.samples_per_prompt, ALGORITHMS[ppo.algorithm].together
    if ppo.episodes_per_step % group:
        raise SpecError(
            f"ppo.episodes_per_step is {ppo.episodes_per_step}, not a multiple of ppo.samples_per_prompt, {group}"
        )
    if ppo.minibatches * together > ppo.episodes_per_step:
        raise SpecError(
            f"ppo.minibatches is {ppo.minibatches}, too many for ppo.episodes_per_step, {ppo.episodes_per_step}"
        )
    if ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO and group != 2:
        raise SpecError(f"ppo.samples_per_prompt is {group}, but online_dpo learns from pairs: leave it out")
    if ppo.algorithm in (run_pb2.ALGORITHM_GRPO, run_pb2.ALGORITHM_RLOO) and group < 2:
        raise SpecError(f"ppo.samples_per_prompt is 1, but {name} compares the answers to a prompt: set 2 or more")
    reward = spec.reward
    if ppo.algorithm != run_pb2.ALGORITHM_ONLINE_DPO and not (
        reward.preference_weight or reward.judge_weight or reward.service_weight
    ):
        raise SpecError("every weight in reward is 0, so that nothing is learned: set one of them")
    if bool(reward.service) != (reward.service_weight > 0):
        raise SpecError("reward.service and reward.service_weight belong together: set both or none")
    if reward.service_model and not reward.service:
        raise SpecError("reward.service_model names a model of reward.service, which is not set")
    if spec.comparisons.HasField("refresh_every_steps") and not needs_preference_model(spec):
        raise SpecError("comparisons.refresh_every_steps refreshes the preference model, and this run has none")
    if spec.preference_model.separate_members and spec.preference_model.members < 2:
        raise SpecError(
            "preference_model.separate_members needs an ensemble: set preference_model.members to 2 or more"
        )
    label_sources = sources(spec.feedback)
    if spec.comparisons.HasField("refresh_every_steps") and AI not in label_sources:
        raise SpecError("comparisons.refresh_every_steps adds labels of the judge, and feedback gives ai no share")
    if spec.evaluation.HasField("patience") and not spec.evaluation.HasField("every_steps"):
        raise SpecError("evaluation.patience counts the comparisons of evaluation.every_steps: set that too")
    if len(spec.services.policy) != len(spec.services.policy_control):
        raise SpecError("services.policy and services.policy_control must name the same replicas, in the same order")
    if servers_sleep(spec.services) and (len(spec.services.policy) > 1 or spec.services.judge_replicas):
        raise SpecError(
            "services.gpu_sharing is for one GPU, on which there is one policy and one judge: name one of each"
        )
    if servers_sleep(spec.services) and ranks.size() > 1:
        raise SpecError(
            f"services.gpu_sharing is for one GPU, and the worker was started as {ranks.size()} processes: leave it out"
        )
    if spec.ppo.shared_trunk:
        _check_shared_trunk(ppo, name)
    if spec.services.weights_nccl:
        _check_nccl(spec)


def _check_shared_trunk(ppo: run_pb2.PpoSpec, algorithm: str) -> None:
    if not ALGORITHMS[ppo.algorithm].needs_critic:
        raise SpecError(
            f"ppo.shared_trunk makes the critic a head of the policy, and {algorithm} has no critic: leave it out"
        )
    if ppo.critic_warmup_steps:
        raise SpecError(
            "in the steps of ppo.critic_warmup_steps only the critic learns, and with ppo.shared_trunk it is a part of "
            "the policy: leave one out"
        )


def _check_nccl(spec: run_pb2.RunSpec) -> None:
    if spec.ppo.HasField("lora_rank"):
        raise SpecError(
            "services.weights_nccl sends whole weights, and with ppo.lora_rank only adapters travel: leave one out"
        )
    if servers_sleep(spec.services):
        raise SpecError(
            "services.weights_nccl is for worker and policy on GPUs of their own, services.gpu_sharing for one GPU: "
            "leave one out"
        )
    without = "Leave it out, and weights travel over gRPC or by services.weights_folder"
    if not torch.cuda.is_available():
        raise SpecError(
            f"services.weights_nccl sends weights from the worker's GPU, and the worker sees none. {without}"
        )
    if find_spec("vllm") is None:
        raise SpecError(
            "services.weights_nccl sends weights by vLLM's own code: install vllm where the worker runs (the image of "
            f"the model servers has it). {without}"
        )


def load_prompts(spec: run_pb2.RunSpec, artifacts: Artifacts) -> PromptSets:
    """Read the prompt files and count what they hold. Raises ``SpecError`` for wrong files."""
    tokenizer = ChatTokenizer.load(spec.policy.model)
    prompts = load_prompt_sets(spec.prompts.train, spec.prompts.held_out, tokenizer, spec.prompts.max_prompt_tokens)
    watch = spec.evaluation
    if watch.HasField("every_steps") and watch.prompts + watch.watched_prompts > len(prompts.held_out):
        raise SpecError(
            f"evaluation.every_steps needs evaluation.prompts + evaluation.watched_prompts, {watch.prompts} + "
            f"{watch.watched_prompts}, held-out prompts, and there are {len(prompts.held_out)}: lower one, or add some"
        )
    artifacts.count(
        prompts_train=len(prompts.train), prompts_held_out=len(prompts.held_out), prompts_too_long=prompts.too_long
    )
    return prompts


def check_services(spec: run_pb2.RunSpec, services: Services, artifacts: Artifacts) -> judge_pb2.Constitution:
    """Check models, context and constitution; store spec, constitution and versions.

    Raises ``ServiceError`` for a service that cannot be reached, ``RunError`` for one that serves something else.
    """
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
    for info in (*(info for _, info in policies), preference):
        if needed > info.max_context_tokens:
            raise RunError(
                f"prompts.max_prompt_tokens + sampling.max_new_tokens is {needed}, the context of {info.model} holds "
                f"{info.max_context_tokens} tokens: lower one of them"
            )
    constitution = services.judge.constitution()
    _same_constitution(spec, constitution, artifacts)
    artifacts.record["constitution_digest"] = constitution.digest
    artifacts.record["versions"] = {
        "charter": importlib.metadata.version("charter"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "grpcio")},
        "policy engine": policies[0][1].engine,
        "judge engine": judge.model.engine,
    }
    if judge.calibration.digest:
        artifacts.record["versions"]["judge calibration"] = judge.calibration.digest
    artifacts.save_record()
    write_text(artifacts.spec, spec_to_json(_as_served(spec, policies[0][1].engine, judge.model.engine)))
    if constitution.source_yaml:
        # A judge that is not ours may have none.
        write_text(artifacts.constitution, constitution.source_yaml)
    return constitution


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
    wanted = [
        (HUMAN in sources(spec.feedback), types_pb2.LABEL_SOURCE_HUMAN, "feedback", "`charter feedback` collects them"),
        (
            IMPORTED in sources(spec.feedback) or spec.preference_model.warm_start_epochs > 0,
            types_pb2.LABEL_SOURCE_IMPORTED,
            "feedback or preference_model.warm_start_epochs",
            "`charter preferences import` adds them",
        ),
    ]
    for needed, source, field, advice in wanted:
        if needed and services.preference.count_labels(source) == 0:
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
    if earlier and earlier != served.digest:
        raise RunError("the judge's constitution has changed since this run began: start a new run for the new one")
