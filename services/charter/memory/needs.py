"""Bytes that each process of a run takes on a GPU. docs/one-gpu.md has the formulas in one table.

Not in them is what allocators waste; ``plan.USABLE`` leaves room for it.
"""

from dataclasses import dataclass

from charter.memory.model_size import ModelSize
from charter.spec.facts import LearningSpec, has_own_critic, longest_conversation, longest_text
from charter.v1 import run_pb2
from charter.worker.preference.fit import BACKWARD_TOKENS as FIT_TOKENS
from charter.worker.reinforcement.update import BACKWARD_TOKENS
from charter.worker.supervised.learner import BACKWARD_TOKENS as LEARNING_TOKENS

GIB = 2**30
# What a process holds for being there: CUDA's context and the kernels of its libraries. An estimate, not measured here.
CONTEXT = int(0.6 * GIB)
# What a vLLM process that sleeps holds: its context and what lies outside the pool that it can free. An estimate.
VLLM_ASLEEP = 1 * GIB
# Tokens of one step of vLLM, of one batch of the engine transformers, and of one batch of the preference service.
VLLM_STEP_TOKENS, TRANSFORMERS_BATCH_TOKENS, SCORED_TOKENS = 2048, 16384, 4096
# Logits of the trainer's head that are held at once, and what is computed from them (charter.worker.training.logprobs).
_HEAD_BLOCK = 3 * 64 * 2**20
_FLOAT32, _BFLOAT16 = 4, 2


@dataclass(frozen=True, slots=True)
class ServerNeed:
    """A model that is served."""

    weights: int
    cache: int
    workspace: int
    asleep: int

    @property
    def awake(self) -> int:
        """Everything that it holds while it serves."""
        return self.weights + self.cache + self.workspace + CONTEXT


@dataclass(frozen=True, slots=True)
class TrainingNeed:
    """Models that learn: what stays between the steps, and what a step takes besides."""

    state: int
    step: int


def vllm_need(size: ModelSize, cached_tokens: int, sequences: int, *, scores: bool) -> ServerNeed:
    """vLLM in bfloat16; ``scores`` when it reads log-probs of prompts, of all tokens of a step at once."""
    rows = VLLM_STEP_TOKENS if scores else sequences
    workspace = forward_bytes(size, VLLM_STEP_TOKENS, _BFLOAT16) + _logits_bytes(size, rows)
    cache = cached_tokens * size.cache_bytes_a_token
    return ServerNeed(_BFLOAT16 * size.parameters, cache, workspace, VLLM_ASLEEP)


def transformers_need(size: ModelSize, sequences: int) -> ServerNeed:
    """The engine ``transformers`` in bfloat16: its batches are bounded by tokens."""
    workspace = forward_bytes(size, TRANSFORMERS_BATCH_TOKENS, _BFLOAT16) + _logits_bytes(size, sequences)
    cache = TRANSFORMERS_BATCH_TOKENS * size.cache_bytes_a_token
    return ServerNeed(_BFLOAT16 * size.parameters, cache, workspace, CONTEXT)


def preference_need(size: ModelSize, spec: run_pb2.PreferenceModelSpec) -> ServerNeed:
    """The served preference model, in float32."""
    backbones = spec.members if spec.separate_members else 1
    workspace = forward_bytes(size, SCORED_TOKENS, _FLOAT32)
    return ServerNeed(_FLOAT32 * backbones * size.backbone_parameters, 0, workspace, CONTEXT)


def fit_need(size: ModelSize, spec: run_pb2.RunSpec) -> TrainingNeed:
    """The fit of the preference model, in float32: nothing of it stays."""
    wanted = spec.preference_model
    backbones = wanted.members if wanted.separate_members else 1
    learning = _learning(size, size.backbone_parameters, wanted.lora_rank)
    # Weights, and of what learns gradients and Adam's two moments.
    state = backbones * (_FLOAT32 * size.backbone_parameters + 3 * _FLOAT32 * learning)
    # Both answers of a pair.
    tokens = max(FIT_TOKENS, 2 * _longest(spec))
    return TrainingNeed(0, state + backbones * saved_bytes(size, tokens))


def ppo_need(size: ModelSize, spec: run_pb2.RunSpec) -> TrainingNeed:
    """Policy, reference and critic of a run, with their optimisers, in float32."""
    ppo = spec.ppo
    learning = [_learning(size, size.parameters, ppo.lora_rank)]
    weights = [size.parameters]
    if not ppo.HasField("lora_rank"):
        # With adapters, the policy without them is the reference.
        weights.append(size.parameters)
    if has_own_critic(ppo):
        weights.append(size.backbone_parameters)
        learning.append(_learning(size, size.backbone_parameters, ppo.lora_rank))
    adapters = sum(learning) if ppo.HasField("lora_rank") else 0
    state = _FLOAT32 * (sum(weights) + adapters) + 2 * _FLOAT32 * sum(learning)
    low = ppo.precision == "bfloat16"
    activations = saved_bytes(
        size, max(BACKWARD_TOKENS, _longest(spec)), low=low, checkpointed=ppo.gradient_checkpointing
    )
    # Only one model has gradients at a time.
    gradients = _FLOAT32 * max(learning)
    return TrainingNeed(state, gradients + activations + _head(size, ppo.HasField("lora_rank")))


def learning_need(size: ModelSize, settings: LearningSpec) -> TrainingNeed:
    """A stage that learns from texts, conversations or labels, in float32: nothing of it stays."""
    learning = _learning(size, size.parameters, settings.lora_rank)
    adapters = learning if settings.HasField("lora_rank") else 0
    # Weights, and of what learns gradients and Adam's two moments.
    state = _FLOAT32 * (size.parameters + adapters) + 3 * _FLOAT32 * learning
    if isinstance(settings, run_pb2.PretrainingSpec):
        longest = longest_text(settings, size.context_tokens)
    else:
        # Both answers of a comparison go through the model together.
        answers = 2 if isinstance(settings, run_pb2.DpoSpec) else 1
        longest = answers * longest_conversation(settings, size.context_tokens)
    activations = saved_bytes(
        size,
        max(LEARNING_TOKENS, longest),
        low=settings.precision == "bfloat16",
        checkpointed=settings.gradient_checkpointing,
    )
    return TrainingNeed(0, state + activations + _head(size, settings.HasField("lora_rank")))


def saved_bytes(size: ModelSize, tokens: int, *, low: bool = False, checkpointed: bool = False) -> int:
    """What a forward pass keeps for the backward pass.

    In each layer and token: 9 widths (each of two norms its input, its normalised input and its output; queries, the
    attention's result and a copy of it), 2 key widths, 4 inner widths (gate, its activation, up, their product).
    Checkpointed, the input of every layer, and one layer's at a time. ``low``: products in bfloat16, with a bfloat16
    copy of every matrix; of the activations only the MLP's are half as large.
    """
    kept = _FLOAT32 * (9 * size.width + 2 * size.key_width)
    kept += (_BFLOAT16 if low else _FLOAT32) * 4 * size.inner_width
    copies = _BFLOAT16 * (size.linear_parameters + size.vocabulary * size.width) if low else 0
    if checkpointed:
        return tokens * (_FLOAT32 * size.layers * size.width + kept) + copies
    return tokens * size.layers * kept + copies


def forward_bytes(size: ModelSize, tokens: int, element: int) -> int:
    """A forward pass without gradients, one layer at a time: 4 widths and 3 inner widths for each token."""
    return tokens * element * (4 * size.width + 3 * size.inner_width)


def _logits_bytes(size: ModelSize, rows: int) -> int:
    """Logits, their log-softmax and what is drawn from it, all float32."""
    return 3 * _FLOAT32 * rows * size.vocabulary


def _head(size: ModelSize, lora: bool) -> int:
    """The head's gradient is summed block by block in a matrix of its own before it joins the others."""
    return _HEAD_BLOCK + (0 if lora else _FLOAT32 * size.vocabulary * size.width)


def _learning(size: ModelSize, parameters: int, lora_rank: int) -> int:
    """Parameters that learn: all, or adapters (0 = none) of rank x (inputs + outputs) beside each linear layer."""
    return lora_rank * size.linear_ends if lora_rank else parameters


def _longest(spec: run_pb2.RunSpec) -> int:
    return spec.prompts.max_prompt_tokens + spec.sampling.max_new_tokens
