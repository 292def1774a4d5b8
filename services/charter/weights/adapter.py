"""A LoRA adapter joined with the weights that it is for, file to file, one tensor in memory at a time.

Engines serve the result like any other weights: with an adapter they can do whatever they can without, as fast.
"""

import json
import mmap
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from charter.inference.weights_file import Shape, check_shapes, read_shapes

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


def merge_adapter(base: BinaryIO, adapter: Path, into: Path) -> None:
    """Write the weights of ``base`` with the products of ``adapter`` (``L.weight + B A`` for each layer L) to ``into``.

    Both are safetensors files; products and sums are float32 or wider, the result has the base's types. Raises
    ``WeightMismatchError`` when the adapter has matrices without a partner, or that do not fit the base.
    """
    shapes = read_shapes(adapter)
    layers = sorted({name.removesuffix(_DOWN).removesuffix(_UP) for name in shapes})
    with mmap.mmap(base.fileno(), 0, access=mmap.ACCESS_READ) as whole, safe_open(adapter, framework="pt") as thin:
        # The format: length of the header in 8 bytes, header, then the tensors without gaps.
        start = 8 + int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8:start])
        header.pop("__metadata__", None)
        check_shapes(shapes, _expected(header, layers, shapes))
        with into.open("wb") as file:
            file.write(whole[:start])
            for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
                first, last = (start + offset for offset in entry["data_offsets"])
                layer = name.removesuffix(".weight")
                if layer in layers:
                    held = torch.frombuffer(bytearray(whole[first:last]), dtype=_DTYPES[entry["dtype"]])
                    product = _wide(thin.get_tensor(layer + _UP)) @ _wide(thin.get_tensor(layer + _DOWN))
                    joined = (_wide(held).view(entry["shape"]) + product).to(held.dtype)
                    file.write(joined.contiguous().view(torch.uint8).numpy().tobytes())
                else:
                    file.write(whole[first:last])


def _expected(header: dict[str, dict[str, list[int]]], layers: list[str], shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Shapes that an adapter of these layers has, its rank as given; nothing for a layer that is not in the base."""
    expected: dict[str, Shape] = {}
    for layer in layers:
        shape = header.get(f"{layer}.weight", {"shape": []})["shape"]
        if len(shape) == 2:
            (rank, *_) = shapes.get(layer + _DOWN) or (0,)
            expected |= {layer + _DOWN: (rank, shape[1]), layer + _UP: (shape[0], rank)}
    return expected


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
