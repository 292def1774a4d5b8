"""A LoRA adapter joined with its base, against sums written out here; adapters that do not fit change nothing."""

from pathlib import Path

import pytest
import torch
from charter.inference.engine import WeightMismatchError
from charter.weights.adapter import merge_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor

RANK = 2


def merged(folder: Path, base: dict[str, Tensor], adapter: dict[str, Tensor]) -> dict[str, Tensor]:
    save_file(base, folder / "base.safetensors", {"format": "pt"})
    save_file(adapter, folder / "adapter.safetensors", {"base_sha256": "0" * 64})
    with (folder / "base.safetensors").open("rb") as file:
        merge_adapter(file, folder / "adapter.safetensors", folder / "merged.safetensors")
    found: dict[str, Tensor] = load_file(folder / "merged.safetensors")
    return found


def base_tensors(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"one.weight": (5, 3), "one.bias": (5,), "two.weight": (4, 5), "norm.weight": (3,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def adapter_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "one.lora_A.weight": torch.randn(RANK, 3, generator=generator),
        "one.lora_B.weight": torch.randn(5, RANK, generator=generator),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_product_is_added_and_all_else_stays(tmp_path: Path, dtype: torch.dtype) -> None:
    base, adapter = base_tensors(dtype), adapter_tensors()
    found = merged(tmp_path, base, adapter)
    assert found.keys() == base.keys()
    assert all(torch.equal(found[name], base[name]) for name in base if name != "one.weight")
    down, up = adapter["one.lora_A.weight"].tolist(), adapter["one.lora_B.weight"].tolist()
    for row, values in enumerate(base["one.weight"].tolist()):
        sums = [value + sum(up[row][r] * down[r][column] for r in range(RANK)) for column, value in enumerate(values)]
        # Rounded once, to the type of the base.
        expected = torch.tensor(sums, dtype=torch.float64)
        rtol = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-6
        torch.testing.assert_close(found["one.weight"][row].double(), expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"three.lora_A.weight": torch.ones(2, 3), "three.lora_B.weight": torch.ones(5, 2)}, "unknown tensors: three"),
        ({"norm.lora_A.weight": torch.ones(2, 3), "norm.lora_B.weight": torch.ones(3, 2)}, "unknown tensors: norm"),
        ({"two.lora_A.weight": torch.ones(2, 5)}, r"missing tensors: two\.lora_B"),
        ({"two.lora_B.weight": torch.ones(4, 2)}, r"missing tensors: two\.lora_A"),
        ({"one.lora_A.weight": torch.ones(2, 4)}, r"one\.lora_A\.weight is \[2, 4\], the model's is \[2, 3\]"),
        ({"one.lora_B.weight": torch.ones(5, 3)}, r"one\.lora_B\.weight is \[5, 3\], the model's is \[5, 2\]"),
        ({"one.weight": torch.ones(5, 3)}, "unknown tensors: one.weight"),
        ({"one.lora_A.weight": torch.ones(2, 3, dtype=torch.int64)}, "not floating point"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Tensor], error: str) -> None:
    with pytest.raises(WeightMismatchError, match=error):
        merged(tmp_path, base_tensors(torch.float32), adapter_tensors() | change)
    assert not (tmp_path / "merged.safetensors").exists()
