"""Our backend of vLLM's weight-transfer API: the weights come in a safetensors file that the workers can read.

vLLM's own backends (NCCL, CUDA IPC, RDMA) join trainer and server into one device group. Charter's trainer sends
over gRPC, so that the server only has a file. Runs in vLLM's worker process; vLLM finds ``register`` there through the
entry point ``vllm.general_plugins``.
"""

from dataclasses import dataclass

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from charter.inference.vllm_orphans import end_with_parent

BACKEND = "charter_file"


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing has to be agreed on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Absolute path of a safetensors file with all weights, named as in the checkpoint."""

    path: str


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """Replaces all weights by those of a file, layer by layer, in place."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to connect to."""

    def start_weight_update(self) -> None:
        """Nothing yet: the live model is not touched before the file is open."""

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Replace the weights. Names and shapes were checked by the caller."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        with safe_open(update_info.path, framework="pt") as file:
            initialize_layerwise_reload(self.model)
            self.model.load_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            finalize_layerwise_reload(self.model, self.model_config)
        self._repack_tied_head()

    def finish_weight_update(self) -> None:
        """Nothing is left to do."""

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

    def shutdown(self) -> None:
        """Nothing is held."""


def register() -> None:
    """Make the backend known in this process. vLLM calls it once in each of its processes."""
    end_with_parent()
    WeightTransferEngineFactory.register_engine(BACKEND, FileWeightTransferEngine)
