"""Tensors at the boundary: raw little-endian bytes with dtype and shape."""

import numpy as np

from charter.v1 import types_pb2

_WIRE_TYPES: "dict[np.dtype, types_pb2.DataType.ValueType]" = {
    np.dtype("<f4"): types_pb2.DATA_TYPE_FLOAT32,
    np.dtype("<f2"): types_pb2.DATA_TYPE_FLOAT16,
    np.dtype("<i8"): types_pb2.DATA_TYPE_INT64,
    np.dtype("<i4"): types_pb2.DATA_TYPE_INT32,
}
_DTYPES: "dict[types_pb2.DataType.ValueType, np.dtype]" = {number: dtype for dtype, number in _WIRE_TYPES.items()}


def to_tensor(array: np.ndarray) -> types_pb2.Tensor:
    """Any shape; float32, float16, int64 or int32. Raises ``ValueError`` for another dtype."""
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _WIRE_TYPES:
        raise ValueError(f"dtype {array.dtype} has no wire type")
    return types_pb2.Tensor(
        dtype=_WIRE_TYPES[dtype], shape=array.shape, data=np.ascontiguousarray(array, dtype=dtype).tobytes()
    )


def from_tensor(tensor: types_pb2.Tensor) -> np.ndarray:
    """A read-only view of the bytes. Raises ``ValueError`` when size, shape and dtype disagree."""
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{types_pb2.DataType.Name(tensor.dtype)} cannot be read as an array")
    dtype = _DTYPES[tensor.dtype]
    expected = int(np.prod(tensor.shape, dtype=np.int64)) * dtype.itemsize
    if len(tensor.data) != expected:
        raise ValueError(f"tensor of shape {list(tensor.shape)} needs {expected} bytes, has {len(tensor.data)}")
    return np.frombuffer(tensor.data, dtype=dtype).reshape(tuple(tensor.shape))
