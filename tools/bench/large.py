"""Load, edit and save a model whose weights pass 2 GB, and say how much memory of its own that takes.

    python tools/bench/large.py [--gigabytes 2.2] [--folder DIR] [--run]

The weights are a sparse file of zeros, so making it is instant; saving writes it out, which needs that much disk.
RssAnon (proc(5)) is memory that cannot be given back to a file; mapped weights do not count. ``--run`` loads the result
in onnxruntime too.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from qir.codegen import save
from qir.frontend import load

_SIZE = 4096
_WEIGHT = _SIZE * _SIZE * 4


def make_model(folder: Path, gigabytes: float) -> Path:
    """A chain of MatMuls by 4096 x 4096 float32 weights."""
    count = max(1, round(gigabytes * 1e9 / _WEIGHT))
    nodes, weights, last = [], [], "x"
    for i in range(count):
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[_SIZE, _SIZE], data_location=1)
        for key, value in (("location", "w.bin"), ("offset", i * _WEIGHT), ("length", _WEIGHT)):
            tensor.external_data.add(key=key, value=str(value))
        weights.append(tensor)
        nodes.append(helper.make_node("MatMul", [last, f"w{i}"], [f"y{i}"], f"matmul_{i}"))
        last = f"y{i}"
    interface = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", _SIZE]) for name in ("x", last)]
    graph = helper.make_graph(nodes, "large", interface[:1], interface[1:], weights)
    path = folder / "large.onnx"
    path.write_bytes(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    )
    with open(folder / "w.bin", "wb") as file:
        file.truncate(count * _WEIGHT)
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
        while not self._done.wait(0.005):
            self.peak = max(self.peak, rss_anon())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.2)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--run", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = make_model(folder, options.gigabytes)
        (folder / "out").mkdir()
        target = folder / "out" / "large.onnx"
        with Peak() as memory:
            start = time.perf_counter()
            model = load(source)
            loaded = time.perf_counter()
            for node in model.walk():
                node.name += "_renamed"
            save(model, target)
            saved = time.perf_counter()
        size = (folder / "out" / "large.onnx.data").stat().st_size
        print(f"{size / 1e9:.2f} GB: load {loaded - start:.2f} s, save {saved - loaded:.2f} s, ", end="")
        print(f"RssAnon {memory.start:.0f} MB before, at most {memory.peak:.0f} MB")
        onnx.checker.check_model(str(target))
        if options.run:
            import onnxruntime

            session = onnxruntime.InferenceSession(str(target))
            print("onnxruntime loads it:", [output.name for output in session.get_outputs()])


if __name__ == "__main__":
    main()
