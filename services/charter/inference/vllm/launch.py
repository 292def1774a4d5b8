"""How vLLM's processes are started: one set of arguments for CPU and CUDA."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


def served_dtype(model: str, dtype: str | None) -> str:
    """The name of the type that the weights will have: bfloat16 on CUDA and float32 on CPU unless given."""
    _set_environment(model)
    from vllm.platforms import current_platform

    return dtype or ("float32" if current_platform.is_cpu() else "bfloat16")


def launch(
    model: str,
    max_context_tokens: int,
    *,
    dtype: str | None,
    kv_cache_gib: float,
    max_sequences: int,
    max_batched_tokens: int | None,
    compiled: bool,
    gpu_memory_utilization: float | None,
    sleep_mode: bool,
    tensor_parallel: int,
) -> "AsyncLLM":
    """Start the processes and load the model; arguments as of ``VllmEngine``."""
    _set_environment(model)
    from vllm import AsyncEngineArgs
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    from charter.inference.vllm.preparation import PreparingWorker
    from charter.inference.vllm.weights import BACKEND

    on_cpu = current_platform.is_cpu()
    # After a partly prefilled step vLLM 0.32 winds back the generator of a seeded request, which only CUDA's can:
    # on CPU the engine dies of it. There, prompts are prefilled whole.
    whole_prompts = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(max_context_tokens, 4096)}
    on_gpu: dict[str, Any] = {"max_num_batched_tokens": max_batched_tokens, "enable_sleep_mode": sleep_mode}
    if gpu_memory_utilization is not None:
        # Only its check at the start is left of it: kv_cache_memory_bytes sizes the cache.
        on_gpu["gpu_memory_utilization"] = gpu_memory_utilization
    arguments = AsyncEngineArgs(
        model=model,
        dtype=served_dtype(model, dtype),
        max_model_len=max_context_tokens,
        kv_cache_memory_bytes=int(kv_cache_gib * 2**30),
        max_num_seqs=max_sequences,
        enforce_eager=not compiled,
        tensor_parallel_size=tensor_parallel,
        # Log-probs after the division by the temperature, over the whole vocabulary.
        logprobs_mode="processed_logprobs",
        # Nothing but what is asked for: no sampling defaults from generation_config.json.
        generation_config="vllm",
        weight_transfer_config=WeightTransferConfig(backend=BACKEND),
        worker_extension_cls=f"{PreparingWorker.__module__}.{PreparingWorker.__qualname__}",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **(whole_prompts if on_cpu else on_gpu),
    )
    return AsyncLLM.from_engine_args(arguments)


def _set_environment(model: str) -> None:
    """What vLLM reads when it is imported, here and in the processes that it starts."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # A fork would copy gRPC's threads and locks.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if Path(model).is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
