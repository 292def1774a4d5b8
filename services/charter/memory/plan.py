"""One GPU for policy, judge, preference model and worker: who holds how much when, and whether it fits."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from charter.memory.model_size import ModelSize
from charter.memory.needs import (
    CONTEXT,
    GIB,
    VLLM_STEP_TOKENS,
    ServerNeed,
    TrainingNeed,
    fit_need,
    learning_need,
    ppo_need,
    preference_need,
    transformers_need,
    vllm_need,
)
from charter.spec.facts import learning_stages, needs_preference_model, needs_reinforcement
from charter.v1 import run_pb2

# Share of the GPU that is planned with. The rest is for what allocators waste and for errors of the estimates.
USABLE = 0.95
# Learning is that of the stages before RL.
PHASES = ("serving", "learning", "fitting", "updating")
# Answers that the policy writes side by side, items that the judge reads side by side.
_MOST_SEQUENCES, _JUDGED_SEQUENCES = 64, 8
# Tokens around an answer that is judged: principle, instructions, examples. And the least context of a policy that
# people can talk to.
_JUDGING_TOKENS, _CHAT_TOKENS = 2048, 2048
_LADDER = (run_pb2.GPU_SHARING_TOGETHER, run_pb2.GPU_SHARING_SERVERS_SLEEP, run_pb2.GPU_SHARING_TAKE_TURNS)

Sizes = Mapping[str, ModelSize]


@dataclass(frozen=True, slots=True)
class Holder:
    """A process on the GPU: bytes in each of ``PHASES``."""

    name: str
    what: str
    serving: int
    learning: int
    fitting: int
    updating: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits, or the arrangement that needs least when nothing does."""

    total: int
    sharing: run_pb2.GpuSharing.ValueType
    holders: tuple[Holder, ...]
    # Settings of the engines, by service; `charter up` starts them with these.
    settings: dict[str, dict[str, Any]]
    # In main memory, while all that can be is moved there.
    main_memory: int
    # Folders of the stages before RL, each with the whole model.
    disk: int

    @property
    def usable(self) -> int:
        """What may be planned with."""
        return int(USABLE * self.total)

    @property
    def peaks(self) -> dict[str, int]:
        """Bytes held in each phase by all together."""
        return {phase: sum(getattr(one, phase) for one in self.holders) for phase in PHASES}

    @property
    def fits(self) -> bool:
        """Whether no phase needs more than there is."""
        return max(self.peaks.values()) <= self.usable


@dataclass(frozen=True, slots=True)
class Change:
    """What can be changed in a spec so that less memory is needed: lines of YAML, and how."""

    lines: str
    apply: Callable[[run_pb2.RunSpec], None]


@dataclass(frozen=True, slots=True)
class _Server:
    need: ServerNeed
    what: str
    # Of an engine that takes any.
    settings: dict[str, Any]


def models_of(spec: run_pb2.RunSpec) -> dict[str, str]:
    """Models that are on this machine, by service. ``spec`` is filled."""
    models = {"policy": spec.policy.model}
    if not needs_reinforcement(spec):
        return models
    if spec.judge.engine in ("transformers", "vllm"):
        models["judge"] = spec.judge.model
    if needs_preference_model(spec):
        models["preference"] = spec.preference_model.model
    return models


def plan(spec: run_pb2.RunSpec, sizes: Sizes, total: int) -> Plan:
    """The first arrangement that fits: together, services asleep while the worker computes, or by turns.

    Args:
        spec: filled, with the engines that will be used; ``services.gpu_sharing`` forces an arrangement.
        sizes: of ``models_of(spec)``.
        total: bytes of the GPU.
    """
    if not needs_reinforcement(spec):
        return _alone(spec, sizes["policy"], total)
    asked = spec.services.gpu_sharing
    plans = [_arranged(spec, sizes, total, sharing) for sharing in ([asked] if asked else _LADDER)]
    return next((one for one in plans if one.fits), min(plans, key=lambda one: max(one.peaks.values())))


def ways_out(spec: run_pb2.RunSpec, sizes: Sizes, total: int) -> list[tuple[tuple[str, ...], Plan]]:
    """Changes of the spec with which it fits, the fewest at a time, each with its plan; empty when none is enough."""
    changes = list(_changes(spec))
    for count in range(1, len(changes) + 1):
        found = []
        for chosen in combinations(changes, count):
            changed = run_pb2.RunSpec()
            changed.CopyFrom(spec)
            for change in chosen:
                change.apply(changed)
            if (planned := plan(changed, sizes, total)).fits:
                found.append((tuple(change.lines for change in chosen), planned))
        if found:
            return found
    return []


def _alone(spec: run_pb2.RunSpec, size: ModelSize, total: int) -> Plan:
    """A run that only learns from files: the worker has the GPU to itself."""
    learning, what = _learning(spec, size)
    worker = Holder("worker", what, 0, CONTEXT + learning, 0, 0)
    return Plan(total, run_pb2.GPU_SHARING_TOGETHER, (worker,), {}, 0, _disk(spec, size))


def _learning(spec: run_pb2.RunSpec, size: ModelSize) -> tuple[int, str]:
    """What the largest of the stages before RL takes, and all of them in words."""
    needs = {name: learning_need(size, settings).step for name, settings in learning_stages(spec).items()}
    return max(needs.values(), default=0), ", ".join(f"{name} {_gib(need)}" for name, need in needs.items())


def _disk(spec: run_pb2.RunSpec, size: ModelSize) -> int:
    """In float32, as the worker holds it."""
    return 4 * size.parameters * len(learning_stages(spec))


def _arranged(spec: run_pb2.RunSpec, sizes: Sizes, total: int, sharing: run_pb2.GpuSharing.ValueType) -> Plan:
    servers = _servers(spec, sizes)
    asleep = sharing != run_pb2.GPU_SHARING_TOGETHER
    leaves = sharing == run_pb2.GPU_SHARING_TAKE_TURNS
    ppo = ppo_need(sizes["policy"], spec)
    fit = fit_need(sizes["preference"], spec) if "preference" in sizes else TrainingNeed(0, 0)
    learning, stages = _learning(spec, sizes["policy"])
    kept = 0 if leaves else ppo.state
    # A later fit finds PPO's models there.
    beside = kept if spec.comparisons.HasField("refresh_every_steps") else 0
    holders = [
        Holder(
            name,
            one.what,
            one.need.awake,
            (one.need.asleep if asleep else one.need.awake) if learning else 0,
            one.need.asleep if asleep else one.need.awake,
            one.need.asleep if asleep else one.need.awake,
        )
        for name, one in servers.items()
    ]
    worker = Holder(
        "worker",
        f"state {ppo.state / GIB:.1f}, step {ppo.step / GIB:.1f}, fit {fit.step / GIB:.1f} GiB"
        + (f"; {stages}" if stages else ""),
        CONTEXT + kept,
        CONTEXT + learning if learning else 0,
        CONTEXT + beside + fit.step,
        CONTEXT + ppo.state + ppo.step,
    )
    moved = sum(one.need.weights for one in servers.values()) if asleep else 0
    settings = {name: _settings(one, total, asleep) for name, one in servers.items()}
    # Weights on their way to the policy, and the copy for a replica that comes back.
    sent = 2 * 4 * sizes["policy"].parameters
    main_memory = moved + sent + (ppo.state if leaves else 0)
    return Plan(total, sharing, (*holders, worker), settings, main_memory, _disk(spec, sizes["policy"]))


def _servers(spec: run_pb2.RunSpec, sizes: Sizes) -> dict[str, _Server]:
    answer = spec.prompts.max_prompt_tokens + spec.sampling.max_new_tokens
    sequences = min(_MOST_SEQUENCES, spec.ppo.episodes_per_step)
    servers = {
        "policy": _server(spec.policy.engine, sizes["policy"], max(_CHAT_TOKENS, answer), answer, sequences, False)
    }
    if "judge" in sizes:
        judged = answer + spec.sampling.max_new_tokens + _JUDGING_TOKENS
        servers["judge"] = _server(spec.judge.engine, sizes["judge"], judged, judged, _JUDGED_SEQUENCES, True)
    if "preference" in sizes:
        need = preference_need(sizes["preference"], spec.preference_model)
        servers["preference"] = _Server(need, f"float32, {_gib(need.weights)} of weights", {})
    return servers


def _server(engine: str, size: ModelSize, context: int, usual: int, sequences: int, scores: bool) -> _Server:
    """``context`` is the longest text, ``usual`` the length of those that are read or written side by side."""
    if engine != "vllm":
        need = transformers_need(size, sequences)
        return _Server(need, f"{engine} bfloat16, {_gib(need.weights)} of weights", {})
    context = min(context, size.context_tokens)
    # Its cache comes in blocks of 16 tokens, one of which is never used; one text of full length must fit.
    cached = max(context + 32, sequences * min(usual, context))
    need = vllm_need(size, cached, sequences, scores=scores)
    what = (
        f"vllm bfloat16, {_gib(need.weights)} of weights, {_gib(need.cache)} of cache for {sequences} x {usual} tokens"
    )
    settings = {
        # Rounded up: the cache must hold what was planned.
        "kv_cache_gib": math.ceil(1000 * need.cache / GIB) / 1000,
        "max_context_tokens": context,
        "max_sequences": sequences,
        "max_batched_tokens": VLLM_STEP_TOKENS,
    }
    return _Server(need, what, settings)


def _settings(server: _Server, total: int, sleeps: bool) -> dict[str, Any]:
    if not server.settings:
        return {}
    share = math.ceil(1000 * server.need.awake / total) / 1000
    return server.settings | {"gpu_memory_utilization": share, "sleep_mode": sleeps}


def _changes(spec: run_pb2.RunSpec) -> Iterator[Change]:
    """From those that cost least to those that change the run."""

    def checkpoint(changed: run_pb2.RunSpec) -> None:
        changed.ppo.gradient_checkpointing = True

    def lora(changed: run_pb2.RunSpec) -> None:
        changed.ppo.lora_rank = changed.preference_model.lora_rank = 16

    def without_critic(changed: run_pb2.RunSpec) -> None:
        changed.ppo.algorithm = run_pb2.ALGORITHM_RLOO
        changed.ppo.samples_per_prompt = 4

    def shorter(changed: run_pb2.RunSpec) -> None:
        changed.sampling.max_new_tokens = max(1, changed.sampling.max_new_tokens // 2)

    def elsewhere(changed: run_pb2.RunSpec) -> None:
        changed.judge.engine = "external"

    for section, settings in learning_stages(spec).items():
        yield from _changes_of_learning(section, settings.gradient_checkpointing, settings.HasField("lora_rank"))
    if not needs_reinforcement(spec):
        return
    if not spec.ppo.gradient_checkpointing:
        yield Change("ppo: {gradient_checkpointing: true}", checkpoint)
    if not spec.ppo.HasField("lora_rank"):
        yield Change("ppo: {lora_rank: 16}, preference_model: {lora_rank: 16}", lora)
    if spec.ppo.algorithm == run_pb2.ALGORITHM_PPO:
        yield Change("ppo: {algorithm: rloo}", without_critic)
    yield Change(f"sampling: {{max_new_tokens: {max(1, spec.sampling.max_new_tokens // 2)}}}", shorter)
    if spec.judge.engine in ("transformers", "vllm"):
        yield Change("judge: {engine: openai} (a judge elsewhere), or a smaller judge.model", elsewhere)


def _changes_of_learning(section: str, checkpointed: bool, lora: bool) -> Iterator[Change]:
    def checkpoint(changed: run_pb2.RunSpec) -> None:
        learning_stages(changed)[section].gradient_checkpointing = True

    def adapters(changed: run_pb2.RunSpec) -> None:
        learning_stages(changed)[section].lora_rank = 16

    outer, _, inner = section.partition(".")
    form = f"{outer}: {{{inner}: {{%s}}}}" if inner else f"{outer}: {{%s}}"
    if not checkpointed:
        yield Change(form % "gradient_checkpointing: true", checkpoint)
    if not lora:
        yield Change(form % "lora_rank: 16", adapters)


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
