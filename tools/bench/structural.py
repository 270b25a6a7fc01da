"""How the exact passes grow with the graph, and what the same work costs elsewhere, measured in one run.

    python tools/bench/structural.py [--sizes 1000 8000 64000] [--shapes chain wide diamond] [--peers-up-to 8000]

For each shape of graph and each pass: seconds at each size, and growth t(largest)/t(next) (linear: the ratio of the
sizes). Then load + canonicalize + fuse + save beside onnxscript's optimizer and BatchNormalization rule over the same
files; a peer that is not installed is skipped with a note. All times are of the processor (this process, all
threads); only ratios mean anything on a shared machine.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qir.codegen import save
from qir.frontend import load
from qir.ops.shape_inference import infer
from qir.passes.canonicalize import Canonicalize
from qir.passes.fold_constants import FoldConstants
from qir.passes.fuse import Fuse
from qir.pipeline.contract import Pass, PassContext

CHANNELS = 4
PASSES: tuple[Pass, ...] = (Canonicalize(), FoldConstants(), Fuse())


class Builder:
    """A graph under construction; every block is a few nodes that the passes have work with."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        rng = np.random.default_rng(0)
        self.kernel = rng.standard_normal((CHANNELS, CHANNELS, 1, 1)).astype(np.float32) / CHANNELS
        for name, array in (("gamma", np.ones), ("beta", np.zeros), ("mean", np.zeros), ("var", np.ones)):
            self.weights.append(numpy_helper.from_array(array(CHANNELS, np.float32), name))

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def block(self, x: str) -> str:
        """Conv, BatchNormalization, Relu, Identity, a transpose there and back, a constant expression: 8 nodes."""
        index = len(self.nodes)
        self.weights.append(numpy_helper.from_array(self.kernel + index * 1e-7, f"w{index}"))
        self.weights.append(numpy_helper.from_array(np.full((1, CHANNELS, 1, 1), index % 7, np.float32), f"c{index}"))
        y = self.node("Conv", [x, f"w{index}"])
        y = self.node("Relu", [self.node("BatchNormalization", [y, "gamma", "beta", "mean", "var"])])
        y = self.node("Identity", [y])
        y = self.node("Transpose", [self.node("Transpose", [y], perm=[0, 2, 3, 1])], perm=[0, 3, 1, 2])
        return self.node("Add", [y, self.node("Neg", [f"c{index}"])])

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        shape = [1, CHANNELS, 2, 2]
        graph = helper.make_graph(
            self.nodes,
            "bench",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
            self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def chain(size: int) -> onnx.ModelProto:
    """Blocks one after the other."""
    builder, x = Builder(), "x"
    while len(builder.nodes) < size:
        x = builder.block(x)
    return builder.model([x])


def wide(size: int) -> onnx.ModelProto:
    """Blocks that all read the input; one sum reads them all."""
    builder, results = Builder(), []
    while len(builder.nodes) < size:
        results.append(builder.block("x"))
    return builder.model([builder.node("Sum", results)])


def diamond(size: int) -> onnx.ModelProto:
    """Each step reads the last one twice, once through a block and once through a duplicate of its first nodes."""
    builder, x = Builder(), "x"
    while len(builder.nodes) < size:
        left, right = builder.block(x), builder.node("Exp", [builder.node("Neg", [x])])
        again = builder.node("Exp", [builder.node("Neg", [x])])
        x = builder.node("Sum", [left, right, again])
    return builder.model([x])


SHAPES: dict[str, Callable[[int], onnx.ModelProto]] = {"chain": chain, "wide": wide, "diamond": diamond}


def seconds(work: Callable[[], object]) -> float:
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def pass_times(path: Path) -> dict[str, float]:
    """Each pass on a model of its own, then all in a row."""
    times: dict[str, float] = {}
    for pass_ in PASSES:
        model = load(path)
        infer(model)
        model.begin(pass_.name)
        times[pass_.name] = seconds(lambda pass_=pass_, model=model: pass_.run(model, PassContext()))  # type: ignore[misc]
        model.commit()
    return times


def ours(path: Path, out: Path) -> None:
    """Load, infer types, canonicalize, fold, fuse, canonicalize, save."""
    model = load(path)
    infer(model)
    for pass_ in (*PASSES, PASSES[0]):
        with model.transaction(pass_.name):
            pass_.run(model, PassContext())
    save(model, out)


def onnxscript_optimizer(path: Path, out: Path) -> None:
    import onnx_ir
    import onnxscript.optimizer
    import onnxscript.rewriter
    from onnxscript.rewriter.rules import common

    model = onnx_ir.load(path)
    onnxscript.optimizer.optimize_ir(model)
    onnxscript.rewriter.rewrite(model, [common.fuse_batchnorm_into_conv_rule])
    onnx_ir.save(model, out)


def compare(path: Path, folder: Path, with_peer: bool) -> str:
    time_ours = seconds(lambda: ours(path, folder / "ours.onnx"))
    row = f"qir {time_ours:7.2f} s, {len(onnx.load(folder / 'ours.onnx').graph.node):6d} nodes left"
    if not with_peer:
        return row
    if importlib.util.find_spec("onnxscript") is None:
        return f"{row}; onnxscript is not installed"
    time_peer = seconds(lambda: onnxscript_optimizer(path, folder / "peer.onnx"))
    left = len(onnx.load(folder / "peer.onnx").graph.node)
    return f"{row}; onnxscript {time_peer:7.2f} s, {left:6d} nodes left; ratio {time_peer / time_ours:5.1f}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 8000, 64000])
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=sorted(SHAPES))
    parser.add_argument("--peers-up-to", type=int, default=8000, help="largest graph that the peers get")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape in options.shapes:
            paths = {size: folder / f"{shape}-{size}.onnx" for size in options.sizes}
            for size, path in paths.items():
                onnx.save(SHAPES[shape](size), path)
            times = {size: pass_times(path) for size, path in paths.items()}
            print(f"{shape}: seconds at {', '.join(map(str, options.sizes))} nodes, and growth over the last step")
            for pass_ in PASSES:
                row = [times[size][pass_.name] for size in options.sizes]
                growth = f"x{row[-1] / row[-2]:.1f}" if len(row) > 1 else ""
                print(f"  {pass_.name:16s} {' '.join(f'{t:8.3f}' for t in row)}  {growth}")
            for size, path in paths.items():
                print(f"  {size:6d} nodes: {compare(path, folder, size <= options.peers_up_to)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
