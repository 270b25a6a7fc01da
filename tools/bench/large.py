"""Load, optimize and save a model with large external weights, and say how much memory of its own that takes.

    python tools/bench/large.py [--gib 1] [--passes optimize] [--limit-mb 150] [--folder DIR] [--run]

The model is a stack of transformer-like blocks (matrix product, bias, layer normalisation and GELU in their pieces, a
transpose there and back, an Identity), whose weights lie in one data file. RssAnon (proc(5)) is memory that cannot be
given back to a file: weights that are mapped do not count. It is sampled every two milliseconds, interpreter and
libraries included. Exit 1 where it passes the limit. Making and saving the model takes disk: twice its size. ``--run``
loads the result in onnxruntime, too.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qir.codegen import save
from qir.frontend import load
from qir.ops.verifier import verify_schemas
from qir.pipeline import Pipeline

__all__ = ["Peak", "make_model", "rss_anon"]

ROOT = Path(__file__).resolve().parents[2]


def make_model(folder: Path, weight_bytes: int, size: int = 2048) -> Path:
    """``large.onnx`` with ``w.bin`` beside it: as many blocks with [size, size] float32 weights as fill the bytes."""
    one = size * size * 4
    count = max(1, round(weight_bytes / one))
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def node(op: str, *inputs: str, **attributes: Any) -> str:
        name = f"n{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(name: str, array: object) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return name

    two, tiny, root, one_half, unit = (
        constant(name, value)
        for name, value in (("two", 2), ("tiny", 1e-5), ("root", np.sqrt(2)), ("half", 0.5), ("unit", 1))
    )
    x = "x"
    for i in range(count):
        tensor = TensorProto(
            name=f"w{i}", data_type=TensorProto.FLOAT, dims=[size, size], data_location=TensorProto.EXTERNAL
        )
        for key, value in (("location", "w.bin"), ("offset", i * one), ("length", one)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
        mean = node("ReduceMean", x, axes=[-1])
        centred = node("Sub", x, mean)
        variance = node("ReduceMean", node("Pow", centred, two), axes=[-1])
        normal = node("Div", centred, node("Sqrt", node("Add", variance, tiny)))
        normal = node("Add", node("Mul", normal, constant(f"g{i}", np.ones(size))), constant(f"h{i}", np.zeros(size)))
        turned = node("Transpose", node("Transpose", normal, perm=[0, 2, 1]), perm=[0, 2, 1])
        y = node("Add", node("MatMul", turned, f"w{i}"), constant(f"b{i}", np.full(size, i)))
        gate = node("Add", node("Erf", node("Div", y, root)), unit)
        x = node("Identity", node("Add", x, node("Mul", node("Mul", y, gate), one_half)))
    shape: list[str | int | None] = ["N", "T", size]
    interface = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", x)]
    graph = helper.make_graph(nodes, "large", interface[:1], interface[1:], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    block = np.random.default_rng(0).standard_normal(one // 4, dtype=np.float32)
    with open(folder / "w.bin", "wb") as file:
        for i in range(count):
            block[:] += np.float32(i)  # no two weights are equal
            file.write(block.data)
    return path


def rss_anon() -> float:
    """MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


class Peak:
    """Samples RssAnon every few milliseconds."""

    def __enter__(self) -> Peak:
        self.start = self.peak = rss_anon()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self.peak = max(self.peak, rss_anon())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak = max(self.peak, rss_anon())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=2048, help="weights are SIZE x SIZE")
    parser.add_argument("--passes", default="optimize")
    parser.add_argument("--limit-mb", type=float, default=150.0)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make the model there and leave")
    options = parser.parse_args(arguments)
    if options.make is not None:
        make_model(options.make, round(options.gib * 2**30), options.size)
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # Made in a process of its own, so that its memory is not counted here.
        made = [sys.executable, "-m", "tools.bench.large", "--gib", str(options.gib), "--size", str(options.size)]
        subprocess.run([*made, "--make", name], check=True, cwd=ROOT)
        (folder / "out").mkdir()
        source, target = folder / "large.onnx", folder / "out" / "large.onnx"
        steps = Pipeline.parse(options.passes)
        with Peak() as memory:
            times = [time.perf_counter()]
            model = load(source)
            times.append(time.perf_counter())
            result = steps.run(model, in_place=True, verify=False)
            times.append(time.perf_counter())
            save(model, target)
            times.append(time.perf_counter())
        took = [b - a for a, b in itertools.pairwise(times)]
        size = (folder / "out" / "large.onnx.data").stat().st_size
        print(result)
        print(f"{size / 2**30:.2f} GiB: load {took[0]:.2f} s, {options.passes} {took[1]:.2f} s, save {took[2]:.2f} s")
        print(f"RssAnon {memory.start:.0f} MB before, at most {memory.peak:.0f} MB, limit {options.limit_mb:.0f} MB")
        verify_schemas(load(target))
        if options.run:
            import onnxruntime

            session = onnxruntime.InferenceSession(str(target))
            print("onnxruntime loads it:", [output.name for output in session.get_outputs()])
    return 0 if memory.peak <= options.limit_mb else 1


if __name__ == "__main__":
    sys.exit(main())
