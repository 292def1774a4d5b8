"""Tensors at the boundary."""

import struct

import numpy as np
import pytest
from charter.rpc.tensors import from_tensor, to_tensor
from charter.v1 import types_pb2


def test_bytes_are_little_endian_in_c_order() -> None:
    tensor = to_tensor(np.array([[1.0, 2.0], [3.0, 4.0]], dtype=">f4").T)
    assert tensor.dtype == types_pb2.DATA_TYPE_FLOAT32
    assert list(tensor.shape) == [2, 2]
    assert tensor.data == struct.pack("<4f", 1.0, 3.0, 2.0, 4.0)


def test_a_tensor_comes_back_equal() -> None:
    array = np.arange(24, dtype=np.int64).reshape(2, 3, 4)
    np.testing.assert_array_equal(from_tensor(to_tensor(array)), array)


def test_an_empty_tensor_keeps_its_shape() -> None:
    assert from_tensor(to_tensor(np.zeros((0, 3), dtype=np.float32))).shape == (0, 3)


def test_a_dtype_without_a_wire_type_is_refused() -> None:
    with pytest.raises(ValueError, match="complex64 has no wire type"):
        to_tensor(np.zeros(1, dtype=np.complex64))


def test_bytes_that_do_not_fill_the_shape_are_refused() -> None:
    tensor = types_pb2.Tensor(dtype=types_pb2.DATA_TYPE_FLOAT32, shape=[3], data=b"\0" * 8)
    with pytest.raises(ValueError, match="needs 12 bytes, has 8"):
        from_tensor(tensor)
