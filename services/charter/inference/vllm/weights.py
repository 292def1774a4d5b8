"""Our backend of vLLM's weight-transfer API: weights come in a safetensors file that the workers can read, or by NCCL.

The file is what gRPC or a shared folder has brought to the server. NCCL is vLLM's own back end, which this one extends,
because an engine has one back end and needs both: by NCCL for new versions, by the file to catch up. Runs in vLLM's
worker process; vLLM finds ``register`` there through the entry point ``vllm.general_plugins``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferInitInfo

from charter.inference.vllm.orphans import end_with_parent
from charter.inference.vllm.preparation import Preparation

BACKEND = "charter"

# Of so many values one is read to have their page of memory mapped: pages hold 4096 bytes or more.
_TOUCHED = 512


@dataclass
class PreparedUpdateInfo(WeightTransferUpdateInfo):
    """The weights of the file that was prepared, by its absolute path."""

    prepared: str


class CharterWeightTransferEngine(NCCLWeightTransferEngine):
    """Replaces all weights. Those of a file are prepared before, in a thread, while the model generates."""

    model_update_group: Any
    _preparation: Preparation | None = None

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Join a NCCL group in place of the one before. Raises ``RuntimeError`` where there is no NCCL."""
        self.shutdown()
        super().init_transfer_engine(init_info)
        if not self.model_update_group.available:
            # Without its library vLLM 0.32 makes a group in which broadcasts do nothing.
            self.model_update_group = None
            raise RuntimeError("the library of NCCL cannot be loaded")

    def parse_update_info(self, update_dict: dict[str, Any]) -> WeightTransferUpdateInfo:
        """What was prepared, or what NCCL broadcasts."""
        if "prepared" in update_dict:
            return PreparedUpdateInfo(**update_dict)
        return super().parse_update_info(update_dict)

    def prepare(self, path: str) -> None:
        """Begin to prepare a safetensors file with all weights, named as in the checkpoint."""
        if self._preparation is not None and self._preparation.error() is None:
            raise RuntimeError(f"{self._preparation.path} is still being prepared")
        self._preparation = None  # One that was never served gives its memory back first.
        self._preparation = Preparation(path, lambda: self._prepared(path))

    def preparation_error(self) -> str | None:
        """Why preparing failed, empty when it did not; None while it goes on."""
        return "nothing is being prepared" if self._preparation is None else self._preparation.error()

    def start_weight_update(self) -> None:
        """Nothing yet: the live model is not touched before the weights are prepared or the group is there."""

    def receive_weights(self, update_info: WeightTransferUpdateInfo) -> None:
        """Replace the weights. Names and shapes were checked by the caller."""
        if isinstance(update_info, PreparedUpdateInfo):
            preparation, self._preparation = self._preparation, None
            if preparation is None or preparation.path != update_info.prepared:
                raise RuntimeError(f"{update_info.prepared} was not prepared")
            preparation.serve()
        elif self.model_update_group is None:
            raise RuntimeError("the engine is in no NCCL group")
        else:
            receive = super().receive_weights
            self._reload(lambda: receive(update_info))

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

    def _prepared(self, path: str) -> Callable[[], None]:
        """Do all that can be done without touching the live model; returns what is left."""
        from charter.inference.vllm.shadow import ShadowModel, can_shadow

        if can_shadow(self.model, self.device):
            shadow = ShadowModel(self.model)
            shadow.load(_tensors(path))
            return shadow.exchange
        # What vLLM makes of the weights it makes in place. The file is at least in main memory and mapped by then.
        tensors = list(_tensors(path))
        for _, tensor in tensors:
            tensor.flatten()[::_TOUCHED].any()
        return lambda: self._reload(lambda: self.model.load_weights(iter(tensors)))

    def _reload(self, load: Callable[[], object]) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        initialize_layerwise_reload(self.model)
        load()
        finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()

    def _repack_tied_head(self) -> None:
        """Bring a tied LM head up to date.

        No weights of its own are loaded into it, so vLLM's reload (0.32) passes it over. The tensor that it shares with
        the embedding is new, but on CPU it computes with a packed copy, which would stay the old one.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

        if self.model_config.hf_text_config.tie_word_embeddings:
            for module in self.model.modules():
                if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
                    module.quant_method.process_weights_after_loading(module)


def _tensors(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            yield name, file.get_tensor(name)


def register() -> None:
    """Make the backend known in this process. vLLM calls it once in each of its processes."""
    end_with_parent()
    WeightTransferEngineFactory.register_engine(BACKEND, CharterWeightTransferEngine)
