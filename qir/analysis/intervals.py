"""Interval analysis: sound ranges of values, proved from constants, operators and declared inputs.

"Sound" means: in every run each element that is not NaN lies in its value's range, given that inputs hold no NaN, lie
in what was declared of them, and that no finite arithmetic overflows its float type. Rounding of the run itself is
accounted for (see ``bounds``). Operators without a transfer function, and results that anything may come out of, have
no range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qir.analysis import elementwise, linear, movement
from qir.analysis.bounds import Bounds, unit_roundoff
from qir.analysis.transfer import At, Transfers
from qir.errors import OptionError, suggest
from qir.ir import DType, Function, Graph, Interval, Model, Node, OpId, Tensor, Value
from qir.ops.shape_inference import misfit

__all__ = ["TRANSFERS", "analyze_intervals", "supported_ops"]

TRANSFERS: Mapping[str, Transfers] = {
    "": {**elementwise.TRANSFERS, **linear.TRANSFERS, **movement.TRANSFERS},
    "com.microsoft": {**elementwise.CONTRIB, **linear.CONTRIB, **movement.CONTRIB},
}
"""By domain and op; control flow is the driver's."""

_CONTROL = ("Constant", "If", "Loop", "Scan")


def supported_ops() -> list[str]:
    """Ops of the default domain for which something can be proved, sorted."""
    return sorted([*TRANSFERS[""], *_CONTROL])


def analyze_intervals(model: Model, declared: Mapping[str, Interval] | None = None) -> dict[Value, Interval]:
    """Ranges of all values of the model, bodies and functions included, about which something is known.

    ``declared`` holds intervals of inputs by name; an input's own ``range`` counts as declared where none is given.
    Constants are not listed. One pass over the nodes; the model is not changed. Raises OptionError for the name of no
    input. Better with inferred types and shapes: without, channels are lost on the way and float16 rounding is assumed
    where any value of the model has that type.
    """
    declared = declared or {}
    names = {value.name for value in model.graph.inputs}
    for name in declared:
        if name not in names:
            raise OptionError(f"a range is declared for {name!r}, which is no input of the model{suggest(name, names)}")
    analysis = _Analysis(model)
    for function in model.functions.values():
        analysis.run_function(function)
    for value in model.graph.inputs:
        analysis.enter(value, declared.get(value.name, value.range))
    analysis.run(model.graph)
    found: dict[Value, Interval] = {}
    for value, bounds in analysis.known.items():
        if value.const is None or value.is_input:
            interval = bounds.to_interval(None if value.shape is None else len(value.shape))
            if interval is not None:
                found[value] = interval
    return found


class _Analysis:
    """The state of one run over a model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.known: dict[Value, Bounds] = {}
        self.constants: dict[Value, np.ndarray] = {}
        self.done: dict[OpId, list[Bounds]] = {}
        self.coarsest = _coarsest(model)
        self.opsets = _plain(model.opset_imports)

    def enter(self, value: Value, declared: Interval | None) -> None:
        """Bounds of an input: as declared, else all finite numbers of its type."""
        rank = None if value.shape is None else len(value.shape)
        bounds = _of_type(value.dtype)
        if declared is not None:
            given = Bounds.of_interval(declared, rank)
            bounds = bounds.meet(given.lo, given.hi)
        self.known[value] = bounds

    def run(self, graph: Graph) -> None:
        """Bounds of everything in a graph whose inputs are known; initializers first."""
        for value in graph.initializers:
            if value not in self.known and value.tensor is not None and value.tensor.dtype is not DType.STRING:
                self.known[value] = Bounds.of_constant(value.tensor.numpy())
        for node in graph.nodes:
            results = self.results(node)
            for value, bounds in zip(node.outputs, results, strict=False):
                self.known[value] = _fit_type(bounds, value.dtype)

    def run_function(self, function: Function) -> list[Bounds]:
        """Bounds of a function's outputs whatever it is called with."""
        if function.op_id not in self.done:
            self.done[function.op_id] = []  # a call of itself, which ONNX forbids, finds nothing
            for value in function.graph.inputs:
                self.known[value] = Bounds.unknown()
            outside, self.opsets = self.opsets, _plain(function.opset_imports or self.model.opset_imports)
            self.run(function.graph)
            self.opsets = outside
            self.done[function.op_id] = [self.of(value) for value in function.graph.outputs]
        return self.done[function.op_id]

    def of(self, value: Value) -> Bounds:
        return self.known.get(value, Bounds.unknown())

    def results(self, node: Node) -> Sequence[Bounds]:
        if any(attribute.ref for attribute in node.attributes.values()):
            return []
        function = self.model.functions.get(node.op_id)
        if function is not None:
            return self.run_function(function)
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain == "" and node.op in _CONTROL:
            return self.control(node)
        transfer = TRANSFERS.get(domain, {}).get(node.op)
        if transfer is None or not node.outputs:
            for body in node.bodies:
                self.run_body(body)
            return []
        at = At(node, self.known, self.constants, self.opsets.get(domain, 1), self.coarsest)
        if any(b.is_empty for b in at.operands):
            return []  # no element is possible, as in a tensor of size 0
        try:
            found = transfer(at)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError):
            if misfit(self.model, node) is None:
                raise
            return []  # shapes that contradict each other, which shape inference reports: nothing can be said
        if found is None:
            return []
        return [found] if isinstance(found, Bounds) else found

    def control(self, node: Node) -> Sequence[Bounds]:
        match node.op:
            case "Constant":
                return self.constant(node)
            case "If":
                branches = [self.run_body(body) for body in node.bodies]
                return [_join(arms) for arms in zip(*branches, strict=False)]
            case "Loop":
                return self.loop(node, first_state=2, skipped=1, states=max(0, len(node.inputs) - 2))
            case _:
                return self.loop(
                    node, first_state=0, skipped=0, states=len(node.inputs) - int(node.get("num_scan_inputs"))
                )

    def loop(self, node: Node, *, first_state: int, skipped: int, states: int) -> Sequence[Bounds]:
        """Carried values may become anything, so they enter the body unknown; its results hold for every round."""
        (body,) = node.bodies
        if node.op == "Loop":
            for value, bounds in zip(body.inputs, (Bounds.of(0, np.inf), Bounds.of(0, 1)), strict=False):
                self.known[value] = bounds
        results = self.run_body(body)[skipped:]
        initial = [
            Bounds.unknown() if v is None else self.of(v) for v in node.inputs[first_state : first_state + states]
        ]
        carried = [_join(pair) for pair in zip(initial, results, strict=False)]
        return [*carried, *(b.collapsed() for b in results[states:])]

    def run_body(self, body: Graph) -> list[Bounds]:
        for value in body.inputs:
            self.known.setdefault(value, _of_type(value.dtype, special=True))
        self.run(body)
        return [self.of(value) for value in body.outputs]

    def constant(self, node: Node) -> Sequence[Bounds]:
        for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
            content = node.get(name)
            if isinstance(content, Tensor) and content.dtype is DType.STRING:
                return []
            if content is not None:
                kind = np.float32 if "float" in name else np.int64
                array = content.numpy() if isinstance(content, Tensor) else np.asarray(content, kind)
                self.constants[node.output] = array
                return [Bounds.of_constant(array)]
        return []


def _join(parts: Sequence[Bounds]) -> Bounds:
    """Of values whose shapes may differ, so axes mean nothing."""
    result = parts[0].collapsed()
    for other in parts[1:]:
        result = result.join(other.collapsed())
    return result


def _of_type(dtype: DType | None, special: bool = False) -> Bounds:
    if dtype is DType.BOOL:
        return Bounds.of(0, 1)
    if dtype is not None and dtype.is_integer:
        return Bounds.of(dtype.qmin, dtype.qmax) if dtype.bits <= 32 else Bounds.unknown(special=False)
    return Bounds.unknown(special)


def _fit_type(bounds: Bounds, dtype: DType | None) -> Bounds:
    """Integers wrap around: what may leave the type may be any of its numbers; float64 bounds end at 2^53."""
    if dtype is None or not dtype.is_integer:
        return bounds
    least, most = max(float(dtype.qmin), -(2.0**53)), min(float(dtype.qmax), 2.0**53)
    low, high = bounds.total()
    if low >= least and high <= most:
        return bounds
    if dtype.bits <= 32:
        return _of_type(dtype)
    # An open end of a count or index is no overflow.
    return bounds if (low >= least or low == -np.inf) and (high <= most or high == np.inf) else _of_type(dtype)


def _plain(imports: Mapping[str, int]) -> dict[str, int]:
    """With the default domain under its short name."""
    return {"" if domain == "ai.onnx" else domain: version for domain, version in imports.items()}


def _coarsest(model: Model) -> float:
    graphs = [model.graph, *(function.graph for function in model.functions.values())]
    kinds = {value.dtype for top in graphs for graph in top.graphs() for value in graph.values()}
    return max([unit_roundoff(kind) for kind in kinds if kind is not None and kind.is_float] or [2.0**-24])
