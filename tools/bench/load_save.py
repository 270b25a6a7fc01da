"""Load and save a graph of many nodes: qir beside onnx and onnx-ir, each in a process of its own, in one run.

    python tools/bench/load_save.py [--nodes 100000] [--rounds 3]

Prints the least seconds of each over the rounds, and how far memory grew at most.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

_TOOLS = ("onnx", "qir", "onnx_ir")
_CHILD = """
import sys, time
tool, source, target = sys.argv[1:]
if tool == "qir":
    from qir.frontend import load
    from qir.codegen import save
elif tool == "onnx":
    from onnx import load, save
else:
    from onnx_ir import load, save
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
before = peak()
start = time.perf_counter()
model = load(source)
loaded = time.perf_counter()
save(model, target)
print(loaded - start, time.perf_counter() - loaded, peak() - before)
"""


def make_graph(path: Path, nodes: int, shape: str) -> None:
    """A chain (one Add a step, each with a constant of its own) or diamonds (Relu and Mul joined by Add)."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made, constants, last = [], [], "x"
    while len(made) < nodes:
        i = len(made)
        if shape == "chain":
            constants.append(numpy_helper.from_array(np.float32([i]), f"c{i}"))
            made.append(helper.make_node("Add", [last, f"c{i}"], [f"v{i}"], f"add_{i}"))
            last = f"v{i}"
        else:
            made.append(helper.make_node("LeakyRelu", [last], [f"a{i}"], f"relu_{i}", alpha=0.1))
            made.append(helper.make_node("Mul", [last, last], [f"b{i}"], f"mul_{i}"))
            made.append(helper.make_node("Add", [f"a{i}", f"b{i}"], [f"v{i}"], f"add_{i}"))
            last = f"v{i}"
    infos = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, ["N", 8]) for n in made[:-1]]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", 8])],
        constants,
        value_info=infos,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for shape in ("chain", "diamonds"):
            source, target = Path(folder) / f"{shape}.onnx", Path(folder) / "out.onnx"
            make_graph(source, options.nodes, shape)
            best: dict[str, list[float]] = {tool: [1e9] * 3 for tool in _TOOLS}
            for _ in range(options.rounds):
                for tool in _TOOLS:
                    command = [sys.executable, "-c", _CHILD, tool, str(source), str(target)]
                    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                    best[tool] = [min(a, float(b)) for a, b in zip(best[tool], out.split(), strict=True)]
            for tool, (load, save, memory) in best.items():
                print(
                    f"{shape:9s} {tool:8s} load {load:6.2f} s   save {save:6.2f} s   memory +{memory:4.0f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
