"""Small files that ask for terabytes: they are neither folded nor believed, in bounded memory and time."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
TERA = 1 << 40
MEMORY = 3 << 30
"""Bytes of address space: numpy, onnx and onnxruntime alone map more than one of them."""

FOLDED_AT_MOST = 65 << 20
"""fold-constants makes at most 64 MB of new constants in a model, whatever it asks for."""

Graph = tuple[list[onnx.NodeProto], dict[str, np.ndarray], int]


def i64(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def constant_of_shape() -> Graph:
    return [helper.make_node("ConstantOfShape", ["s"], ["y"])], {"s": i64(TERA)}, TensorProto.FLOAT


def expand() -> Graph:
    return [helper.make_node("Expand", ["c", "s"], ["y"])], {"c": np.ones(1, np.float32), "s": i64(TERA)}, 1


def range_() -> Graph:
    start, limit, step = (np.array(x, np.int64) for x in (0, TERA, 1))
    return [helper.make_node("Range", ["a", "b", "c"], ["y"])], {"a": start, "b": limit, "c": step}, TensorProto.INT64


def tile() -> Graph:
    return [helper.make_node("Tile", ["c", "s"], ["y"])], {"c": np.ones(16, np.float32), "s": i64(TERA // 16)}, 1


def pad() -> Graph:
    return [helper.make_node("Pad", ["c", "s"], ["y"])], {"c": np.ones(4, np.float32), "s": i64(0, TERA)}, 1


def one_hot() -> Graph:
    constants = {"i": i64(3), "d": np.array(TERA, np.int64), "v": np.array([0, 1], np.float32)}
    return [helper.make_node("OneHot", ["i", "d", "v"], ["y"])], constants, TensorProto.FLOAT


def eye_like() -> Graph:
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["big"]),
        helper.make_node("EyeLike", ["big"], ["y"]),
    ]
    return nodes, {"s": i64(1 << 20, 1 << 20)}, TensorProto.FLOAT


def doubling() -> Graph:
    nodes = [helper.make_node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], axis=0) for i in range(40)]
    return [*nodes, helper.make_node("Identity", ["c40"], ["y"])], {"c0": np.ones(1, np.float32)}, 1


def outer_product() -> Graph:
    long = np.ones((1 << 20, 1), np.float32)
    nodes = [
        helper.make_node("Expand", ["c", "s"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"]),
        helper.make_node("MatMul", ["a", "b"], ["y"]),
    ]
    return nodes, {"c": long[:1], "s": i64(1 << 20, 1)}, TensorProto.FLOAT


def loop() -> Graph:
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "state"], ["next"]), helper.make_node("Identity", ["cond"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("cond", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    constants = {"n": np.array(TERA, np.int64), "c": np.array(True), "s": np.ones(1, np.float32)}
    return [helper.make_node("Loop", ["n", "c", "s"], ["y"], body=body)], constants, TensorProto.FLOAT


def deep_bodies() -> Graph:
    body: onnx.GraphProto | None = None
    for level in range(20):
        if body is None:
            node = helper.make_node("Identity", ["c0"], [f"r{level}"])
        else:
            node = helper.make_node("If", ["flag"], [f"r{level}"], then_branch=body, else_branch=body)
            if level > 8:  # both branches would double the file at each level
                node = helper.make_node("If", ["flag"], [f"r{level}"], then_branch=body, else_branch=_leaf(level))
        result = helper.make_tensor_value_info(f"r{level}", TensorProto.FLOAT, None)
        body = helper.make_graph([node], f"b{level}", [], [result])
    assert body is not None
    nodes = [helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=_leaf(99))]
    return nodes, {"c0": np.ones(1, np.float32), "flag": np.array(True)}, TensorProto.FLOAT


def _leaf(level: int) -> onnx.GraphProto:
    node = helper.make_node("Identity", ["c0"], [f"l{level}"])
    return helper.make_graph([node], "leaf", [], [helper.make_tensor_value_info(f"l{level}", TensorProto.FLOAT, None)])


HOSTILE: dict[str, Callable[[], Graph]] = {
    made.__name__.strip("_"): made
    for made in (
        constant_of_shape,
        expand,
        range_,
        tile,
        pad,
        one_hot,
        eye_like,
        doubling,
        outer_product,
        loop,
        deep_bodies,
    )
}


def write(name: str, folder: Path) -> Path:
    nodes, constants, kind = HOSTILE[name]()
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(array, key) for key, array in constants.items()],
    )
    path = folder / f"{name}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def nested_functions(folder: Path, levels: int = 60) -> Path:
    """Each function calls the one before twice: 2^60 nodes once they are inlined."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    functions = [helper.make_function("f", "f0", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], opsets)]
    for level in range(1, levels):
        calls = [
            helper.make_node(f"f{level - 1}", ["a"], ["m"], domain="f"),
            helper.make_node(f"f{level - 1}", ["m"], ["b"], domain="f"),
        ]
        functions.append(helper.make_function("f", f"f{level}", ["a"], ["b"], calls, opsets))
    graph = helper.make_graph(
        [helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="f")],
        "nested",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    path = folder / "nested.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8), path)
    return path


@pytest.mark.parametrize("levels", [60, 300])
@pytest.mark.parametrize("command", [["opt", "--passes", "optimize,analyze-ranges"], ["inspect"], ["diff"]])
def test_functions_that_double_at_every_level_do_not_hang(command: list[str], levels: int, tmp_path: Path) -> None:
    path = nested_functions(tmp_path, levels)
    arguments = [command[0], str(path), *([str(path)] if command[0] == "diff" else []), *command[1:]]
    done = subprocess.run(
        [sys.executable, "-m", "qir", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (0, 2), done.stderr
    assert done.returncode == 0 or len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_small_file_that_asks_for_terabytes_is_not_folded(name: str, tmp_path: Path) -> None:
    path = write(name, tmp_path)
    if name != "deep_bodies":
        assert path.stat().st_size < 4096
    out = tmp_path / "out.onnx"
    command = [sys.executable, "-m", "qir", "opt", str(path), "--passes", "optimize,analyze-ranges", "-o", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, preexec_fn=limited, check=False
    )
    assert done.returncode in (0, 2), done.stderr
    if done.returncode == 2:
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert not out.exists()
    else:
        assert out.stat().st_size < FOLDED_AT_MOST + 3 * path.stat().st_size


BOMBS = """
import resource, sys
import numpy as np
from pathlib import Path
from qir.calibration.data import open_data
from qir.calibration.images import Images, read_image
from qir.errors import DataError
from qir.runtime.specs import InputSpec
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), used + (600 << 20)))
try:
    if sys.argv[1].endswith("npz"):
        for feed in open_data(sys.argv[1], [InputSpec("x", np.dtype(np.float32), (None, None))]):
            pass
    else:
        read_image(Path(sys.argv[1]), Images.parse("resize=224"), InputSpec("x", np.dtype(np.float32), None))
except DataError as error:
    print(error)
"""


def _packed_zeros(path: Path) -> None:
    """One sample of a gigabyte that packs into a megabyte."""
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1), np.float32)) | {"shape": (1, 1 << 28)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for _ in range(1 << 10):
                stream.write(bytes(1 << 20))


def _promise(path: Path) -> None:
    """An archive whose header and directory promise four gigabytes; a few bytes are there."""
    size = (1 << 32) - 128
    header = np.lib.format.header_data_from_array_1_0(np.zeros((1, 1), np.float32)) | {"shape": (1, size // 4 - 32)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(64))
    raw = bytearray(path.read_bytes())
    directory = raw.index(b"PK\x01\x02")
    raw[directory + 24 : directory + 28] = struct.pack("<I", size)
    path.write_bytes(raw)


def _strip(path: Path) -> None:
    from PIL import Image

    Image.new("L", (1, 60_000)).save(path)


def _picture_of_a_gigapixel(path: Path) -> None:
    from PIL import Image

    Image.new("1", (8, 8)).save(path)
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", 60_000, 60_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit is Linux's")
@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("packed.npz", _packed_zeros, "unpacks to 1024 MB, more than fits into memory"),
        ("promise.npz", _promise, "ends early; the archive is damaged"),
        ("strip.png", _strip, "1 x 60000 would become 224 x 13440000"),
        ("gigapixel.png", _picture_of_a_gigapixel, "cannot be read as an image"),
    ],
)
def test_samples_that_unpack_to_more_than_there_is(
    tmp_path: Path, name: str, write: Callable[[Path], None], said: str
) -> None:
    write(tmp_path / name)
    assert (tmp_path / name).stat().st_size < 8 << 20
    command = [sys.executable, "-c", BOMBS, str(tmp_path / name)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and name in done.stdout
