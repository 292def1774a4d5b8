"""What a filled run spec implies."""

from typing import Literal

from charter.data.prompts import TaskPrompt
from charter.v1 import run_pb2

# Sources of labels, as they are stored.
AI, HUMAN, IMPORTED = "AI", "HUMAN", "IMPORTED"

# Whose loss sets the answers to one prompt against each other, and whose advantage comes from a learned critic. The
# classes of the algorithms say the same (a test compares them), but need torch.
COMPARE_ANSWERS = (run_pb2.ALGORITHM_GRPO, run_pb2.ALGORITHM_RLOO, run_pb2.ALGORITHM_ONLINE_DPO)
_WITH_CRITIC = (run_pb2.ALGORITHM_PPO,)
# As papers call them.
ALGORITHM_TITLES = {
    "ppo": "PPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "reinforce_plus_plus": "REINFORCE++",
    "online_dpo": "online DPO",
}
_EVALUATED_PROMPTS = 32
# Sections that a run may consist of: all that they learn from is there before it.
_FROM_DATA: tuple[Literal["pretraining", "supervised", "dpo", "kto"], ...]
_FROM_DATA = ("pretraining", "supervised", "dpo", "kto")
_OF_TURNS: tuple[Literal["supervised", "revision", "dpo", "kto"], ...] = ("supervised", "revision", "dpo", "kto")
_GATE_PROMPTS = 32
# Sections that only a run with RL uses, those of them that only the preference model uses, and fields of the critic.
_OF_REINFORCEMENT: tuple[Literal["judge", "prompts", "ppo", "reward", "evaluation", "checkpoints"], ...]
_OF_REINFORCEMENT = ("judge", "prompts", "ppo", "reward", "evaluation", "checkpoints")
_OF_PREFERENCES: tuple[Literal["comparisons", "feedback", "preference_model"], ...]
_OF_PREFERENCES = ("comparisons", "feedback", "preference_model")
_OF_CRITIC: tuple[
    Literal["critic_learning_rate", "critic_warmup_steps", "gae_lambda", "value_clip", "value_coefficient"], ...
]
_OF_CRITIC = ("critic_learning_rate", "critic_warmup_steps", "gae_lambda", "value_clip", "value_coefficient")
_CONVERSATION_TOKENS, _TEXT_TOKENS = 2048, 1024

LearningSpec = run_pb2.PretrainingSpec | run_pb2.SupervisedSpec | run_pb2.DpoSpec | run_pb2.KtoSpec


def is_revised(spec: run_pb2.RevisionSpec, prompt: TaskPrompt) -> bool:
    """Whether a prompt is of the dimensions whose answers are revised."""
    return not spec.dimensions or prompt.dimension in spec.dimensions


def needs_reinforcement(spec: run_pb2.RunSpec) -> bool:
    """Whether the policy learns by RL: not where it learns from what is there alone, without prompts and judge.

    Whoever does needs prompts to answer, and a judge to compare the policy with the one before.
    """
    learns = any(spec.HasField(section) for section in _FROM_DATA)
    given = spec.prompts.train or spec.prompts.held_out or spec.judge.model
    return not learns or bool(given) or spec.HasField("revision")


def learns_turns(spec: run_pb2.RunSpec) -> bool:
    """Whether a stage before RL learns answers in conversations."""
    return any(spec.HasField(section) for section in _OF_TURNS)


def reads_turns(spec: run_pb2.RunSpec) -> bool:
    """Whether the policy needs a chat template: not where texts alone are learned."""
    return needs_reinforcement(spec) or learns_turns(spec)


def needs_store(spec: run_pb2.RunSpec) -> bool:
    """Whether the run asks the preference service for comparisons: it has RL, or learns from stored ones."""
    return needs_reinforcement(spec) or spec.dpo.HasField("stored") or spec.kto.HasField("stored")


def needs_preference_model(spec: run_pb2.RunSpec) -> bool:
    """Whether a preference model scores the answers: not when only others do, or the judge compares pairs."""
    compares = spec.ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO
    return needs_reinforcement(spec) and spec.reward.preference_weight > 0 and not compares


def samples_pairs(spec: run_pb2.RunSpec) -> bool:
    """Whether pairs of the policy's answers are sampled and labelled: not where stored comparisons are fitted to."""
    return needs_preference_model(spec) and not spec.comparisons.stored


def taught_by_judge(spec: run_pb2.RunSpec) -> bool:
    """Whether the run's judge labels, compares, rates or revises what is learned, and not only compares at the end."""
    rates = spec.reward.judge_weight > 0 or spec.ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO
    # Of stored comparisons each says itself who labelled it.
    labels = spec.reward.preference_weight > 0 and AI in label_sources(spec.feedback) and not spec.comparisons.stored
    return bool(spec.judge.model) and (rates or labels or spec.HasField("revision"))


def used_parts(spec: run_pb2.RunSpec) -> run_pb2.RunSpec:
    """Copy of a filled spec, to be shown: without what its run does not use, so that no default tells of it."""
    used = run_pb2.RunSpec()
    used.CopyFrom(spec)
    if not needs_preference_model(spec):
        for preferences in _OF_PREFERENCES:
            used.ClearField(preferences)
    if needs_reinforcement(spec):
        compares = spec.ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO
        if compares:
            used.ClearField("reward")
        else:
            used.ppo.ClearField("dpo_beta")
        if not needs_critic(spec.ppo):
            for critic in _OF_CRITIC:
                used.ppo.ClearField(critic)
        return used
    for section in _OF_REINFORCEMENT:
        used.ClearField(section)
    used.policy.ClearField("engine")
    used.policy.ClearField("logprob_tolerance")
    used.ClearField("services")
    if needs_store(spec):
        used.services.preference = spec.services.preference
        used.services.max_wait_seconds = spec.services.max_wait_seconds
    used.failures.ClearField("max_share")
    if not used.failures.ListFields():
        used.ClearField("failures")
    return used


def algorithm_name(ppo: run_pb2.PpoSpec) -> str:
    """As a spec has it: ``online_dpo``."""
    return run_pb2.Algorithm.Name(ppo.algorithm).removeprefix("ALGORITHM_").lower()


def algorithm_title(ppo: run_pb2.PpoSpec) -> str:
    """As papers call it; PPO where none is set."""
    return ALGORITHM_TITLES.get(algorithm_name(ppo), "PPO")


def reads_untrained_policy(spec: run_pb2.RunSpec) -> bool:
    """Whether a preference model is fitted from the policy as the spec names it, whatever that learns before RL."""
    return needs_preference_model(spec) and spec.preference_model.model == spec.policy.model


def needs_critic(ppo: run_pb2.PpoSpec) -> bool:
    """Whether the algorithm learns a critic."""
    return ppo.algorithm in _WITH_CRITIC


def has_own_critic(ppo: run_pb2.PpoSpec) -> bool:
    """Whether the critic is a model of its own: the algorithm needs one, and it is no head of the policy."""
    return needs_critic(ppo) and not ppo.shared_trunk


def episodes_together(ppo: run_pb2.PpoSpec) -> int:
    """Neighbouring episodes that one term of the loss needs together."""
    return 2 if ppo.algorithm == run_pb2.ALGORITHM_ONLINE_DPO else 1


def servers_sleep(addresses: run_pb2.ServiceAddresses) -> bool:
    """Whether the services free their GPU while the worker computes."""
    return addresses.gpu_sharing in (run_pb2.GPU_SHARING_SERVERS_SLEEP, run_pb2.GPU_SHARING_TAKE_TURNS)


def label_shares(feedback: run_pb2.FeedbackSpec, dimension: str) -> dict[str, float]:
    """Share of each source in a dimension, summing to 1; sources without one are left out, and nothing may be left."""
    chosen = feedback.by_dimension.get(dimension, feedback)
    given = {AI: chosen.ai, HUMAN: chosen.human, IMPORTED: chosen.imported}
    total = sum(given.values())
    if not 0 < total < float("inf") or min(given.values()) < 0:
        return {}
    return {source: share / total for source, share in given.items() if share > 0}


def label_sources(feedback: run_pb2.FeedbackSpec) -> set[str]:
    """Sources that have a share anywhere."""
    return {source for dimension in ("", *feedback.by_dimension) for source in label_shares(feedback, dimension)}


def evaluated_prompts(spec: run_pb2.RunSpec, held_out: int) -> int:
    """Of so many held-out prompts, those of the final comparison."""
    wanted = spec.evaluation.prompts if spec.evaluation.HasField("prompts") else _EVALUATED_PROMPTS
    return min(wanted, held_out)


def gate_prompts(revision: run_pb2.RevisionSpec, held_out: int) -> int:
    """Of so many held-out prompts of its dimensions, those that the gate asks about."""
    return min(revision.gate_prompts if revision.HasField("gate_prompts") else _GATE_PROMPTS, held_out)


def longest_conversation(
    settings: run_pb2.SupervisedSpec | run_pb2.DpoSpec | run_pb2.KtoSpec, context: int | None
) -> int:
    """Tokens of the longest conversation that is learned from; ``context`` is the model's, where it is known."""
    return settings.max_tokens or min(_CONVERSATION_TOKENS, context or _CONVERSATION_TOKENS)


def longest_text(settings: run_pb2.PretrainingSpec, context: int | None) -> int:
    """Tokens of a text that the model sees at once; ``context`` is the model's, where it is known."""
    return settings.context_tokens or min(_TEXT_TOKENS, context or _TEXT_TOKENS)


def compared_stages(spec: run_pb2.RunSpec) -> list[str]:
    """What ``evaluation.compare.stages`` may name, in the run's order: ``start``, folders of policies, ``policy``."""
    folders = {"revision.learning": "revised"}
    return ["start", *(folders.get(section, section) for section in learning_stages(spec)), "policy"]


def learning_stages(spec: run_pb2.RunSpec) -> dict[str, LearningSpec]:
    """The stages before RL that a spec asks for, by the section of their settings."""
    stages: dict[str, LearningSpec] = {}
    if spec.HasField("pretraining"):
        stages["pretraining"] = spec.pretraining
    if spec.HasField("supervised"):
        stages["supervised"] = spec.supervised
    if spec.HasField("revision"):
        stages["revision.learning"] = spec.revision.learning
    if spec.HasField("dpo"):
        stages["dpo"] = spec.dpo
    if spec.HasField("kto"):
        stages["kto"] = spec.kto
    return stages
