"""Tensors of every element type, from arrays, bytes, mapped files and stubs; sameness by bits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from qir.errors import ModelError
from qir.ir import DType, ExternalFile, ExternalLocation, Stub, Tensor
from qir.ir.packing import pack, packed_size, unpack

PLAIN = [dtype for dtype in DType if dtype not in (DType.UNDEFINED, DType.STRING)]
KNOWN_TO_ONNX = [dtype for dtype in PLAIN if dtype.code in onnx.TensorProto.DataType.values()]
SUB_BYTE = [dtype for dtype in PLAIN if dtype.bits < 8]


def codes(dtype: DType, count: int) -> np.ndarray:
    """An array of every code in turn (small types) or of random bits."""
    if dtype is DType.BOOL:
        return np.asarray(np.arange(count) % 2 == 1)
    if dtype.bits >= 8:
        bits = np.random.default_rng(0).integers(0, 256, count * dtype.bits // 8, np.uint8)
        return np.asarray(bits.view(dtype.numpy))
    values = np.arange(count) % (1 << dtype.bits)
    if dtype.is_integer:
        return np.asarray((values + dtype.qmin).astype(np.int8).astype(dtype.numpy))
    return np.asarray(values.astype(np.uint8).view(dtype.numpy))


@pytest.mark.parametrize("dtype", KNOWN_TO_ONNX, ids=str)
@pytest.mark.parametrize("count", [0, 1, 7, 16])
def test_bytes_mean_what_onnx_says(dtype: DType, count: int) -> None:
    array = codes(dtype, count)
    proto = onnx.TensorProto(data_type=dtype.code, dims=[count])
    tensor = Tensor(dtype, (count,), array)
    proto.raw_data = tensor.packed().tobytes()
    assert len(proto.raw_data) == packed_size(dtype, count) == tensor.nbytes
    assert onnx.numpy_helper.to_array(proto).tobytes() == array.tobytes()
    read = Tensor(dtype, (count,), proto.raw_data)
    assert read.numpy().dtype == dtype.numpy
    assert read.numpy().tobytes() == array.tobytes()
    assert read.same_content(tensor)


@pytest.mark.parametrize("dtype", SUB_BYTE, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0), (4, 4)])
def test_packing_is_inverted(dtype: DType, shape: tuple[int, ...]) -> None:
    array = codes(dtype, math.prod(shape)).reshape(shape)
    packed = pack(array, dtype)
    assert len(packed) == packed_size(dtype, array.size)
    assert unpack(packed, dtype, shape).tobytes() == array.tobytes()
    assert unpack(packed, dtype, shape).shape == shape


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_codes_and_names_are_unique_and_found(dtype: DType) -> None:
    assert DType.from_code(dtype.code) is dtype
    assert DType.from_text(dtype.text) is dtype
    assert DType.from_numpy(dtype.numpy) is dtype
    assert dtype.numpy.itemsize == max(1, dtype.bits // 8)


@pytest.mark.parametrize("dtype", KNOWN_TO_ONNX, ids=str)
def test_codes_are_onnx_s(dtype: DType) -> None:
    assert onnx.TensorProto.DataType.Name(dtype.code) == dtype.name


def test_integer_ranges() -> None:
    assert [(d.qmin, d.qmax) for d in (DType.INT2, DType.UINT2, DType.INT4, DType.UINT4, DType.INT8)] == [
        *((-2, 1), (0, 3), (-8, 7), (0, 15), (-128, 127))
    ]
    with pytest.raises(TypeError):
        _ = DType.FLOAT.qmin


def test_strings_are_bytes() -> None:
    tensor = Tensor.of(["ä", "", "b"])
    assert tensor.numpy().tolist() == ["ä".encode(), b"", b"b"]
    assert tensor.nbytes == 3
    assert tensor.same_content(Tensor.of(np.array([["ä".encode(), b"", b"b"]], object)[0]))
    assert not Tensor.of(["ab", "c"]).same_content(Tensor.of(["a", "bc"]))
    with pytest.raises(TypeError):
        tensor.packed()


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ([math.nan, 1.0], [math.nan, 1.0], True),
        ([0.0], [-0.0], False),
        ([1.0], [[1.0]], False),
        ([1.0, 2.0], [1.0, 3.0], False),
        ([], [], True),
    ],
)
def test_sameness_is_by_bits_and_shape(a: list[float], b: list[float], same: bool) -> None:
    first, second = Tensor.of(a, DType.FLOAT), Tensor.of(b, DType.FLOAT)
    assert first.same_content(second) is same
    assert (first.digest() == second.digest()) is same
    assert not first.same_content(Tensor.of(a, DType.DOUBLE))


def test_a_late_difference_is_seen_although_the_sample_misses_it() -> None:
    array = np.zeros(1 << 20, np.uint8)
    other = array.copy()
    other[-2] = 1
    a, b = Tensor.of(array), Tensor.of(other)
    assert a.bucket() == b.bucket()
    assert not a.same_content(b)


def test_arrays_are_neither_copied_nor_writable() -> None:
    array = np.zeros(4, np.float32)
    tensor = Tensor.of(array)
    assert np.shares_memory(tensor.numpy(), array)
    with pytest.raises(ValueError, match="read-only"):
        tensor.numpy()[0] = 1
    array[0] = 2  # the caller's own array is left as it was
    raw = Tensor(DType.FLOAT, (2,), bytes(8))
    assert not raw.numpy().flags.writeable


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"tensor 'w' of f32\[3\] needs 12 bytes of data, the file has 8"):
        Tensor(DType.FLOAT, (3,), bytes(8), name="w")
    with pytest.raises(ValueError, match="array of float64"):
        Tensor(DType.FLOAT, (3,), np.zeros(3))


def test_renaming_shares_the_content() -> None:
    tensor = Tensor.of([1.0], name="a")
    other = tensor.renamed("b")
    assert (tensor.name, other.name) == ("a", "b")
    assert np.shares_memory(tensor.numpy(), other.numpy())
    assert tensor.renamed("a") is tensor


# Files


def external(path: Path, offset: int, length: int, shape: tuple[int, ...], dtype: DType = DType.FLOAT) -> Tensor:
    return Tensor(dtype, shape, ExternalLocation(ExternalFile(path), offset, length), name="w")


def test_external_data_is_mapped_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    tensor = external(path, 4, 8, (2,))  # the file is not there yet: nothing is opened
    assert (tensor.size, tensor.nbytes, tensor.shape) == (2, 8, (2,))
    path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    assert tensor.numpy().tolist() == [1.0, 2.0]
    assert tensor.packed().tobytes() == np.array([1.0, 2.0], np.float32).tobytes()
    assert tensor.location is not None and np.shares_memory(tensor.numpy(), tensor.location.file.view())
    assert tensor.same_content(Tensor.of([1.0, 2.0], DType.FLOAT))


def test_external_sub_byte_and_empty_data(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"\x21\x03")
    assert external(path, 0, 2, (3,), DType.INT4).numpy().astype(int).tolist() == [1, 2, 3]
    (tmp_path / "empty").write_bytes(b"")
    assert external(tmp_path / "empty", 0, 0, (0, 3)).numpy().shape == (0, 3)


def test_external_data_that_is_missing_or_short_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="of tensor 'w' cannot be read"):
        external(tmp_path / "none.bin", 0, 4, (1,)).numpy()
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(6))
    with pytest.raises(ModelError, match=r"'data\.bin' has 6 bytes, tensor 'w' needs bytes 4 to 8"):
        external(path, 4, 4, (1,)).numpy()
    with pytest.raises(ModelError, match="is 3 bytes long, its type needs 4"):
        external(path, 0, 3, (1,)).numpy()


# Stubs


@pytest.mark.parametrize("dtype", [*PLAIN, DType.STRING], ids=str)
def test_stubs_are_seeded(dtype: DType) -> None:
    stub = Tensor(dtype, (2, 3), Stub(5))
    assert stub.is_stub and stub.numpy().shape == (2, 3) and stub.numpy().dtype == dtype.numpy
    assert stub.same_content(Tensor(dtype, (2, 3), Stub(5)))
    assert stub.digest() == Tensor(dtype, (2, 3), Stub(5)).digest()
    if dtype in (DType.FLOAT, DType.INT64):
        assert not stub.same_content(Tensor(dtype, (2, 3), Stub(6)))
