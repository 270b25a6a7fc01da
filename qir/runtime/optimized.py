"""What onnxruntime really executes: the graph after its optimisations, dumped and counted."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from qir.runtime.session import OPTIMIZED, SessionConfig, make_session
from qir.runtime.specs import Model

_LARGE = 64 * 1024  # bytes; constants from this size on are left out of the dump


@dataclass(frozen=True)
class OptimizedModel:
    """The optimised graph. Constants of 64 KiB and more carry no data (their `data_location` is EXTERNAL)."""

    proto: onnx.ModelProto

    @property
    def op_counts(self) -> Counter[str]:
        """Nodes by op type, bodies and local functions included; ops of other domains as `domain::Op`."""
        counts = Counter(op_name(node) for _, node in walk(self.proto.graph))
        for function in self.proto.functions:
            counts.update(op_name(node) for _, node in walk(function))
        return counts


def op_name(node: onnx.NodeProto) -> str:
    """`Conv`; `com.microsoft::QLinearAdd`."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def walk(
    graph: onnx.GraphProto | onnx.FunctionProto, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], onnx.NodeProto]]:
    """(path, node) for every node, outer before inner; path names the bodies around it: `("If_3.then_branch",)`."""
    for node in graph.node:
        yield path, node
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            for index, body in enumerate(bodies):
                suffix = f"[{index}]" if attribute.graphs else ""
                name = node.name or (node.output[0] if node.output else node.op_type)
                yield from walk(body, (*path, f"{name}.{attribute.name}{suffix}"))


def optimized_model(model: Model, config: SessionConfig = OPTIMIZED) -> OptimizedModel:
    """Loads `model` as `config` says and reads back the graph that would run. Raises what `make_session` raises.

    Memory: the runtime's own copy of the weights while it loads; the result holds small constants only.
    """
    with tempfile.TemporaryDirectory(prefix="qir-") as folder:
        file = Path(folder) / "optimized.onnx"
        options = config.options()
        options.optimized_model_filepath = str(file)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", str(_LARGE))
        make_session(model, config, options)
        return OptimizedModel(onnx.load(file, load_external_data=False))
