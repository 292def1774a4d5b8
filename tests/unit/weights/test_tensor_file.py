"""Our safetensors bytes against those of the library."""

import pytest
import safetensors.torch
import torch
from charter.weights.tensor_file import tensor_file


@pytest.mark.parametrize("metadata", [None, {"base_sha256": "0" * 64}])
def test_the_bytes_are_those_of_the_library(metadata: dict[str, str] | None) -> None:
    torch.manual_seed(0)
    tensors = {
        "z.half": torch.randn(3).half(),
        "b.weight": torch.randn(3, 5),
        "a.bfloat": torch.randn(7).bfloat16(),
        'ä "quoted"': torch.randn(2, 3).double(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5),
        "turned": torch.randn(4, 2).t(),
        "a.half": torch.randn(3).half(),
        **{str(dtype): torch.ones(3, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)},
        **{str(dtype): torch.ones(3, dtype=dtype) for dtype in (torch.uint8, torch.bool)},
    }
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    assert bytes(tensor_file(tensors, metadata)) == safetensors.torch.save(contiguous, metadata)


def test_parameters_are_copied_not_shared() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    blob = tensor_file({"weight": weight})
    weight.data.zero_()
    assert safetensors.torch.load(bytes(blob))["weight"].tolist() == [1.0, 1.0]


def test_what_no_model_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"phase is torch\.complex64, which cannot be sent"):
        tensor_file({"phase": torch.zeros(2, dtype=torch.complex64)})
