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
_EVALUATED_PROMPTS = 32
# Sections that a run may consist of: all that they learn from is there before it.
_FROM_DATA: tuple[Literal["pretraining", "supervised", "dpo", "kto"], ...]
_FROM_DATA = ("pretraining", "supervised", "dpo", "kto")
_OF_TURNS: tuple[Literal["supervised", "revision", "dpo", "kto"], ...] = ("supervised", "revision", "dpo", "kto")
_GATE_PROMPTS = 32
_CONVERSATION_TOKENS, _TEXT_TOKENS = 2048, 1024


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


def algorithm_name(ppo: run_pb2.PpoSpec) -> str:
    """As a spec has it: ``online_dpo``."""
    return run_pb2.Algorithm.Name(ppo.algorithm).removeprefix("ALGORITHM_").lower()


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


def learning_stages(spec: run_pb2.RunSpec) -> dict[str, run_pb2.PretrainingSpec | run_pb2.SupervisedSpec]:
    """The stages before RL that a spec asks for, by the section of their settings."""
    stages: dict[str, run_pb2.PretrainingSpec | run_pb2.SupervisedSpec] = {}
    if spec.HasField("pretraining"):
        stages["pretraining"] = spec.pretraining
    if spec.HasField("supervised"):
        stages["supervised"] = spec.supervised
    if spec.HasField("revision"):
        stages["revision.learning"] = spec.revision.learning
    return stages
