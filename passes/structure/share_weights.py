"""``share-weights``: store equal weights once, and let weights that differ little become equal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.ir import DType, Graph, Model, Tensor, Value
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult

__all__ = ["ShareWeights"]

_SKETCH = 64  # numbers


@dataclass(frozen=True)
class ShareWeights(Pass):
    """Store constants with the same content once, in the outermost graph that all their readers see, and with
    ``transposed`` a matrix that is another's transpose as a Transpose of that, which the runtime computes when it loads
    the model. Exact.

    ``tolerance`` above 0 also joins tensors of one shape whose difference has at most that part of their energy: both
    become their mean (at 1e-4, an error of 46 dB below the weights). Tensors under ``min-size`` numbers are left alone.

    Before::

        %e: f32[N,64] = Gather(@embedding, %ids)
        %y: f32[N,1000] = MatMul(%e, @head)          # the transpose of @embedding

    After::

        %t: f32[64,1000] = Transpose(@embedding) {perm=[1, 0]}
        %e: f32[N,64] = Gather(@embedding, %ids)
        %y: f32[N,1000] = MatMul(%e, %t)
    """

    name: ClassVar[str] = "share-weights"
    effect: ClassVar[Effect] = Effect.LOSSY

    tolerance: float = 0.0
    transposed: bool = True
    min_size: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < 1:
            raise ValueError("tolerance must be at least 0 and below 1")

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        self._join_equal(model, result)
        if self.tolerance:
            self._join_alike(model, result)
        if self.transposed:
            self._join_transposes(model, result)
        result.changed = bool(result.statistics)
        return result

    def _constants(self, model: Model) -> Iterator[tuple[Value, Tensor]]:
        for graph in model.graph.graphs():
            for value in list(graph.initializers):
                tensor = value.tensor
                if tensor is not None and tensor.size >= self.min_size and value.quant is None and not value.is_output:
                    yield value, tensor

    def _join_equal(self, model: Model, result: PassResult) -> None:
        buckets: dict[tuple[object, ...], list[tuple[Value, Tensor]]] = {}
        for value, tensor in self._constants(model):
            buckets.setdefault(tensor.bucket(), []).append((value, tensor))
        for alike in buckets.values():
            kept: dict[bytes, Value] = {}
            for value, tensor in alike if len(alike) > 1 else ():
                first = kept.setdefault(tensor.digest(), value)
                if first is not value:
                    kept[tensor.digest()] = self._merge(first, value, tensor, "equal", result)

    def _join_alike(self, model: Model, result: PassResult) -> None:
        groups: dict[tuple[int, ...], list[tuple[Value, np.ndarray]]] = {}
        for value, tensor in self._constants(model):
            if tensor.dtype is DType.FLOAT:
                groups.setdefault(tensor.shape, []).append((value, tensor.numpy()))
        for members in groups.values():
            kept: list[tuple[Value, np.ndarray]] = []
            for value, array in members:
                near = next((i for i, (_, other) in enumerate(kept) if self._alike(array, other)), None)
                if near is None:
                    kept.append((value, array))
                    continue
                first, other = kept[near]
                mean = ((array.astype(np.float64) + other) / 2).astype(np.float32)
                first.const = Tensor.of(mean)
                assert value.tensor is not None
                kept[near] = (self._merge(first, value, value.tensor, "alike", result), mean)

    def _alike(self, a: np.ndarray, b: np.ndarray) -> bool:
        # A sample first: most pairs are far apart.
        few, fewer = a.reshape(-1)[:_SKETCH], b.reshape(-1)[:_SKETCH]
        return _is_near(few, fewer, min(64 * self.tolerance, 1.0)) and _is_near(a, b, self.tolerance)

    def _join_transposes(self, model: Model, result: PassResult) -> None:
        matrices = [
            (value, tensor)
            for value, tensor in self._constants(model)
            if value.graph is model.graph and len(tensor.shape) == 2 and 1 not in tensor.shape
        ]
        shapes: dict[tuple[DType, tuple[int, ...]], list[tuple[Value, Tensor]]] = {}
        for value, tensor in matrices:
            flipped = (tensor.dtype, tensor.shape[::-1])
            found = next((v for v, other in shapes.get(flipped, []) if _is_transpose(tensor, other)), None)
            if found is None:
                shapes.setdefault((tensor.dtype, tensor.shape), []).append((value, tensor))
                continue
            graph = model.graph
            node = graph.add_node(
                "Transpose",
                [found],
                {"perm": [1, 0]},
                types=[value.type],
                before=graph.nodes.first,
                source=value.users[:1],
            )
            value.replace_all_uses(node.output)
            graph.remove_initializer(value)
            result.count("transposed")
            result.count("bytes", tensor.nbytes)
            result.remarks.append(self.applied(found, f"stored once, for itself and its transpose {value.name!r}"))

    def _merge(self, first: Value, second: Value, tensor: Tensor, how: str, result: PassResult) -> Value:
        """Let all readers of both read one constant, which stands where all of them see it."""
        graph, other = first.graph, second.graph
        assert graph is not None and other is not None
        home = _common(graph, other)
        if home is not graph:
            content = first.tensor
            assert content is not None
            moved = second if home is other else home.add_initializer(first.name, content)
            moved.const = content
            first.replace_all_uses(moved)
            graph.remove_initializer(first)
            first = moved
        if second is not first:
            second.replace_all_uses(first)
            other.remove_initializer(second)
        result.count(how)
        result.count("bytes", tensor.nbytes)
        result.remarks.append(self.applied(first, f"stored once, for itself and {second.name!r}"))
        return first


def _is_near(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    difference, *energies = (float(np.square(x, dtype=np.float64).sum()) for x in (a - b, a, b))
    return difference <= tolerance * min(energies)


def _is_transpose(tensor: Tensor, other: Tensor) -> bool:
    a, b = tensor.numpy(), other.numpy()
    # A corner first: a column of a file that is mapped into memory reads all of it.
    return np.array_equal(a[:8, :8], b[:8, :8].T) and np.array_equal(a, b.T)


def _common(a: Graph, b: Graph) -> Graph:
    """The innermost graph that encloses both."""
    around: list[Graph] = []
    graph: Graph | None = a
    while graph is not None:
        around.append(graph)
        graph = graph.outer
    graph = b
    while graph is not None and graph not in around:
        graph = graph.outer
    assert graph is not None
    return graph
