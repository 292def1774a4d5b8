"""Our backend of vLLM's weight-transfer API: weights come in a safetensors file that the workers can read, or by NCCL.

The file is what gRPC or a shared folder has brought to the server. NCCL is vLLM's own back end, which this one extends,
because an engine has one back end and needs both: by NCCL for new versions, by the file to catch up. Runs in vLLM's
worker process; vLLM finds ``register`` there through the entry point ``vllm.general_plugins``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferInitInfo

from charter.inference.vllm_orphans import end_with_parent

BACKEND = "charter"


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Absolute path of a safetensors file with all weights, named as in the checkpoint."""

    path: str


class CharterWeightTransferEngine(NCCLWeightTransferEngine):
    """Replaces all weights, layer by layer, in place."""

    model_update_group: Any

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        """Join a NCCL group in place of the one before. Raises ``RuntimeError`` where there is no NCCL."""
        self.shutdown()
        super().init_transfer_engine(init_info)
        if not self.model_update_group.available:
            # Without its library vLLM 0.32 makes a group in which broadcasts do nothing.
            self.model_update_group = None
            raise RuntimeError("the library of NCCL cannot be loaded")

    def parse_update_info(self, update_dict: dict[str, Any]) -> WeightTransferUpdateInfo:
        """A file, or what NCCL broadcasts."""
        return FileUpdateInfo(**update_dict) if "path" in update_dict else super().parse_update_info(update_dict)

    def start_weight_update(self) -> None:
        """Nothing yet: the live model is not touched before the file is open or the group is there."""

    def receive_weights(self, update_info: WeightTransferUpdateInfo) -> None:
        """Replace the weights. Names and shapes were checked by the caller."""
        if isinstance(update_info, FileUpdateInfo):
            with safe_open(update_info.path, framework="pt") as file:
                tensors = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118 (not a mapping)
                self._reload(lambda: self.model.load_weights(tensors))
        elif self.model_update_group is None:
            raise RuntimeError("the engine is in no NCCL group")
        else:
            receive = super().receive_weights
            self._reload(lambda: receive(update_info))

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

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


def register() -> None:
    """Make the backend known in this process. vLLM calls it once in each of its processes."""
    end_with_parent()
    WeightTransferEngineFactory.register_engine(BACKEND, CharterWeightTransferEngine)
