"""A Hugging Face causal model in this process: loading it, running padded batches, replacing its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from charter.inference.chat_template import loading
from charter.inference.local.cpu_memory import keep_freed_memory
from charter.inference.local.model_check import agrees, longest_in_row, probes, settled_context
from charter.inference.local.packed_linear import PackedLinear, pack, pack_linears, unpack_linears
from charter.inference.local.tree_model import tree_arguments
from charter.inference.weights_file import Shape, check_shapes, read_shapes


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model for inference, as ready to use.

    ``longest_in_row`` is the most tokens of each of several sequences that share a row; 0 if none may.
    """

    model: PreTrainedModel
    longest_in_row: int


def load_model(model: str, device: str | None, dtype: str | None) -> LoadedModel:
    """Load for inference. Unset ``device`` is CUDA where there is one; unset ``dtype`` is bfloat16 there, else float32.

    Raises ``OSError`` that says what to do when the model cannot be found, ``ValueError`` for one that cannot be used.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bfloat16" if device.startswith("cuda") else "float32")
    keep_freed_memory()
    with loading(model):
        loaded = load_whole(AutoModelForCausalLM, model, dtype=getattr(torch, dtype))
    loaded = loaded.to(device).eval()
    longest = longest_in_row(loaded, lambda tree: tree_arguments(tree, loaded.device, loaded.config))
    own = probe_logits(loaded)
    pack_linears(loaded)
    if not agrees(loaded, lambda: probe_logits(loaded), lambda: own, "packed linear layers"):
        unpack_linears(loaded)
    return LoadedModel(loaded, longest)


def load_whole(kind: type[AutoModel | AutoModelForCausalLM], model: str | Path, **settings: Any) -> PreTrainedModel:
    """``kind.from_pretrained``. Raises ``ValueError`` where weights are missing, which Transformers draws at random."""
    loaded: PreTrainedModel
    loaded, report = kind.from_pretrained(model, output_loading_info=True, **settings)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{model} is no whole causal language model: its files hold nothing for {', '.join(missing[:3])} of "
            f"{type(loaded).__name__} ({len(missing)} tensors in all). Fetch it again, or use a decoder-only model"
        )
    return loaded


@torch.inference_mode()
def probe_logits(model: PreTrainedModel) -> list[Tensor]:
    """Logits of each of ``probes`` alone, [tokens, vocabulary]."""
    rows = (torch.tensor([ids], device=model.device) for ids in probes(model))
    return [model(row, use_cache=False).logits[0] for row in rows]


def config_without_dropout(model: str | Path) -> PreTrainedConfig:
    """A model's config in which nothing is dropped at random, whatever mode its layers are in."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(model)
    _drop_nothing(config)
    return config


def _drop_nothing(config: PreTrainedConfig) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _drop_nothing(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def move(model: nn.Module, device: torch.device) -> None:
    """Move a model that is elsewhere, and give the memory that it leaves on a GPU back to other processes."""
    # One on a CPU may have packed layers, whose weights without data cannot be moved.
    if next(model.parameters()).device != device:
        model.to(device)
        # Does nothing in a process that has not used a GPU.
        torch.cuda.empty_cache()


# What configs call it; all but a few by the first name.
_CONTEXT = ("max_position_embeddings", "max_seq_len", "seq_length")


def max_context_tokens(config: PreTrainedConfig) -> int:
    """Most tokens of prompt and answer together. Raises ``ValueError`` when a config does not say it."""
    text = config.get_text_config()
    limit = next((limit for name in _CONTEXT if (limit := getattr(text, name, None))), None)
    if limit is None:
        raise ValueError(
            f"{type(config).__name__} does not say how many tokens the model reads: add max_position_embeddings, the "
            "most tokens of prompt and answer that it has learned to read, to the model's config.json"
        )
    return min(int(limit), settled_context(config))


def left_padded(sequences: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad on the left: token ids and attention mask, both int64 [len(sequences), longest]."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence, dtype=torch.long)
        mask[row, width - len(sequence) :] = 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """Position of each token among its row's real tokens, int64, shape of ``mask``; 0 on padding."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def final_logits(model: PreTrainedModel, ids: Tensor, mask: Tensor | None, keep: int) -> Tensor:
    """Logits, float32 [rows, keep, vocabulary], of the last ``keep`` positions of left-padded rows.

    The LM head runs on those positions only, through the model's own forward, so that whatever the
    architecture does to its logits (soft caps, scales) is in them. Without a mask nothing is padded.
    """
    padding = {} if mask is None else {"attention_mask": mask, "position_ids": positions(mask)}
    output = model(ids, **padding, use_cache=False, logits_to_keep=keep)
    logits: Tensor = output.logits[:, -keep:]
    return logits.float()


def likeliest(logprobs: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The likeliest tokens of each row of log-probs [rows, vocabulary] with theirs, the likeliest first."""
    values, indices = logprobs.topk(min(count, logprobs.shape[-1]))
    return [list(zip(*row, strict=True)) for row in zip(indices.tolist(), values.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class NewWeights:
    """Tensors by name, but for those of which only ``packed`` is kept."""

    tensors: dict[str, Tensor]
    packed: dict[PackedLinear, Tensor]


def read_weights(model: PreTrainedModel, path: Path) -> NewWeights:
    """The tensors of a safetensors file, each in the type of the model's; the model may go on meanwhile.

    Those of the same type are the file's own pages, not copies: nobody may write to the file any more; its name may go.
    Beside packed ones they are copies, so that the file's pages go. Raises ``WeightMismatchError`` when names or shapes
    differ.
    """
    check_shapes(read_shapes(path), expected_shapes(model))
    state = model.state_dict()
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).to(state[name].dtype) for name in file.keys()}  # noqa: SIM118
    packed = pack(model, tensors)
    if packed:
        tensors = {name: tensor.clone() for name, tensor in tensors.items() if not state[name].is_meta}
    return NewWeights(tensors, packed)


def swap_weights(model: PreTrainedModel, new: NewWeights) -> None:
    """Put what ``read_weights`` gave in the place of the model's own: on a CPU it becomes the model's."""
    live = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in new.tensors.items():
        live[name].data = tensor.to(live[name].device)
    for module, packed in new.packed.items():
        module.packed = packed


def expected_shapes(model: PreTrainedModel) -> dict[str, Shape]:
    """Names and shapes of a model's weights, tied copies left out."""
    tied = model.all_tied_weights_keys
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
