"""The structural verifier: the rules that every model obeys between passes, whatever its operators mean.

Checked, in one linear walk: each operand is defined before its use, in its graph or one around it; names are unique
along a chain of scopes; use lists and operands agree both ways; nodes, results, bodies, inputs, outputs and
initializers point back at what holds them; the lists' links are whole; constants have their value's type; quantization
annotations name operands and axes that exist. What operators demand is checked by the schema verifier in ``qir.ops``.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from qir.errors import VerifyError
from qir.ir.graph import Graph
from qir.ir.interval import Interval
from qir.ir.linked import Linked, LinkedList
from qir.ir.model import Model
from qir.ir.node import Node
from qir.ir.printer import print_node, print_signature
from qir.ir.quant_types import CodebookQuant, DerivedQuant, StaticQuant, UseQuantMarker
from qir.ir.tensor import SparseTensor, Tensor
from qir.ir.types import SparseTensorType, TensorType, format_type
from qir.ir.value import Use, Value

__all__ = ["Problem", "collect_problems", "verify"]

_MOST_SHOWN = 5
_MOST_COLLECTED = 1000

T = TypeVar("T", bound=Linked)


class Problem(NamedTuple):
    """A broken rule, and the node or graph where it shows."""

    message: str
    where: Node | Graph

    def __str__(self) -> str:
        """The first line of the place in IR text, the message under it."""
        text = print_node(self.where, brief=True) if isinstance(self.where, Node) else print_signature(self.where)
        first, *rest = text.split("\n")
        return f"{first}{' ...' if rest else ''}\n  ^ {self.message}"


def verify(model: Model) -> None:
    """Raise VerifyError where the model breaks a rule: the node in IR text, what is wrong under it; five at most."""
    problems = collect_problems(model)
    if problems:
        shown = "\n".join(map(str, problems[:_MOST_SHOWN]))
        more = f"\n... and {len(problems) - _MOST_SHOWN} more" if len(problems) > _MOST_SHOWN else ""
        raise VerifyError(f"the graph is broken:\n{shown}{more}")


def collect_problems(model: Model) -> list[Problem]:
    """Everything that is wrong, in the order of the text (at most 1000 problems); linear."""
    checker = _Checker(model)
    checker.graph(model.graph)
    for function in model.functions.values():
        if function.graph.function is not function:
            checker.report("the function's graph belongs to another function", function.graph)
        checker.names, checker.visible = {}, set()
        checker.graph(function.graph)
    checker.use_lists()
    return checker.problems[:_MOST_COLLECTED]


class _Checker:
    def __init__(self, model: Model) -> None:
        self.state = model._state
        self.problems: list[Problem] = []
        self.names: dict[str, Value] = {}
        self.visible: set[Value] = set()
        self.places: dict[Value, Node | Graph] = {}
        """Every defined value, and where."""
        self.reads: dict[Value, int] = {}
        self.owners: set[Node | Graph] = set()

    def report(self, message: str, where: Node | Graph) -> None:
        self.problems.append(Problem(message, where))

    # Graphs

    def graph(self, graph: Graph) -> None:
        self.owners.add(graph)
        if graph._state is not self.state:
            self.report("the graph belongs to another model", graph)
        defined: list[Value] = []
        if graph.input_set != set(graph.inputs) or len(graph.input_set) != len(graph.inputs):
            self.report("an input is listed twice", graph)
        for value in graph.inputs:
            self.define(value, graph, defined)
            if value._producer is not None or value._graph is not graph:
                self.report(f"input {value.name!r} belongs to another graph or node", graph)
        self.links(graph.initializers, "initializers", graph)
        for value in graph.initializers:
            if value not in graph.input_set:
                self.define(value, graph, defined)
            self.constant(value, graph)
        self.links(graph.nodes, "nodes", graph)
        for node in graph.nodes:
            self.node(node, graph, defined)
        if graph.owner is None and len(set(graph.outputs)) < len(graph.output_uses):
            self.report("a value is an output of the graph twice; put an Identity between", graph)
        for index, use in enumerate(graph.output_uses):
            self.use(use, graph, index)
        for value in defined:
            self.visible.discard(value)
            if self.names.get(value._name) is value:
                del self.names[value._name]

    def define(self, value: Value, where: Node | Graph, defined: list[Value]) -> None:
        name = value._name
        if value in self.places:
            self.report(f"value {name!r} is defined twice", where)
        self.places[value] = where
        self.visible.add(value)
        defined.append(value)
        if name:
            other = self.names.setdefault(name, value)
            if other is not value:
                self.report(f"the name {name!r} is taken by another value that is visible here", where)
        if value._state is not self.state:
            self.report(f"value {name!r} belongs to another model", where)
        if value._quant is not None or value._range is not None or value._observed is not None:
            self.annotations(value, where)

    def constant(self, value: Value, graph: Graph) -> None:
        name, const, type_ = value.name, value.const, value.type
        if value._producer is not None or value._graph is not graph:
            self.report(f"initializer {name!r} belongs to another graph or node", graph)
        if const is None:
            self.report(f"initializer {name!r} has no content", graph)
            return
        held: object = const
        if not isinstance(held, Tensor | SparseTensor):
            self.report(f"initializer {name!r} holds a {type(held).__name__}: write Tensor.of(array)", graph)
            return
        if type_ is None:
            return
        held_by = TensorType if isinstance(const, Tensor) else TensorType | SparseTensorType
        if not isinstance(type_, held_by) or not _describes(type_, const):
            content = f"{const.dtype}[{','.join(map(str, const.shape))}]"
            self.report(f"initializer {name!r} is of type {format_type(type_)}, its content is {content}", graph)

    # Nodes

    def node(self, node: Node, graph: Graph, defined: list[Value]) -> None:
        self.owners.add(node)
        if node._graph is not graph:
            self.report("the node stands in the list of a graph that is not its own", node)
        if node._state is not self.state:
            self.report("the node belongs to another model", node)
        for index, use in enumerate(node._uses):
            if use is not None:
                self.use(use, node, index)
        if node._attributes:
            for body in node.bodies:
                if body.owner is not node:
                    self.report(f"its body {body.name!r} names another owner", node)
                if body in self.owners:
                    self.report(f"its body {body.name!r} is a body of another node too", node)
                else:
                    self.graph(body)
        for index, value in enumerate(node._outputs):
            if value._producer is not node or value._index != index:
                self.report(f"result {index} ({value.name!r}) names another producer or index", node)
            if value._linked or value._const is not None:
                self.report(f"result {value.name!r} has a constant content; only initializers have", node)
            self.define(value, node, defined)

    def use(self, use: Use, owner: Node | Graph, index: int) -> None:
        value = use._value
        self.reads[value] = self.reads.get(value, 0) + 1
        if use._owner is not owner or use._index != index:
            self.report(f"operand {index} ({value.name!r}) is a use of another node or index", owner)
        if value not in self.visible:
            self.report(f"reads {value.name!r}, which {self.why_hidden(value, owner)}", owner)
        elif not value._name:
            self.report(f"reads a value without a name at operand {index}", owner)
        quant = use._quant
        if quant is UseQuantMarker.INHERIT or quant is UseQuantMarker.FLOAT:
            return
        if isinstance(quant, DerivedQuant):
            operands = owner._uses if isinstance(owner, Node) else []
            for what, operand in (("input", quant.input_index), ("weight", quant.weight_index)):
                if not 0 <= operand < len(operands) or operands[operand] is None or operand == index:
                    self.report(f"operand {index} derives its scale from {what} {operand}, which is not there", owner)
        elif isinstance(quant, StaticQuant | CodebookQuant):
            self.quant_axis(quant, value, f"operand {index}", owner)

    def why_hidden(self, value: Value, owner: Node | Graph) -> str:
        producer = value._producer
        if value in self.places:
            return "is defined inside of a body or function, out of sight from here"
        if producer is owner:
            return "is its own result"
        if producer is not None and producer._graph is None:
            return f"was made by {producer.label!r}, a node that was erased"
        if producer is not None and producer._linked:
            within: Graph | None = owner.graph if isinstance(owner, Node) else owner
            while within is not None and within is not producer._graph:
                within = within.outer
            if within is None:
                return "is defined inside of a body or function, out of sight from here"
            return "is defined only later (sort the graph?)"
        return "no graph of this model lists"

    # Annotations

    def annotations(self, value: Value, where: Node | Graph) -> None:
        name = repr(value.name)
        if isinstance(value._quant, DerivedQuant):
            self.report(f"value {name} has a derived quantization; only uses have one, it differs by consumer", where)
        elif isinstance(value._quant, StaticQuant | CodebookQuant):
            self.quant_axis(value._quant, value, f"value {name}", where)
        for what, interval in (("range", value._range), ("observed", value._observed)):
            if isinstance(interval, Interval) and interval.axis is not None:
                self.axis(interval.axis, len(interval.lo), value, f"the {what} of value {name}", where)  # type: ignore[arg-type]

    def quant_axis(self, quant: StaticQuant | CodebookQuant, value: Value, what: str, where: Node | Graph) -> None:
        if quant.axis is None:
            return
        if isinstance(quant, StaticQuant):
            count = None if quant.block_size is not None else len(quant.scale)
            self.axis(quant.axis, count, value, f"the quantization of {what}", where)
            return
        count = None if len(quant.scale) == 1 else len(quant.scale)
        self.axis(quant.axis, count, value, f"the quantization of {what}", where)
        shape = value.shape or ()
        size = shape[quant.axis] if -len(shape) <= quant.axis < len(shape) else None
        if isinstance(size, int) and size % len(quant.table):
            self.report(f"{what} has {len(quant.table)} tables for axis {quant.axis}, which has {size}", where)

    def axis(self, axis: int, count: int | None, value: Value, what: str, where: Node | Graph) -> None:
        shape = value.shape
        if shape is None:
            return
        if not -len(shape) <= axis < len(shape):
            self.report(f"{what} is per axis {axis}, its type is {format_type(value.type)}", where)
            return
        size = shape[axis]
        if count is not None and isinstance(size, int) and size != count:
            self.report(f"{what} has {count} entries for axis {axis}, which has {size}", where)

    # Lists

    def links(self, items: LinkedList[T], what: str, where: Node | Graph) -> None:
        """The chain forwards has the counted length, and each item points back at the one before it."""
        before: Linked | None = None
        item: Linked | None = items._first
        count = 0
        while item is not None and count <= len(items):
            if item._prev is not before or not item._linked:
                self.report(f"the list of its {what} is damaged at item {count}", where)
                return
            before, item, count = item, item._next, count + 1
        if count != len(items) or items._last is not before:
            self.report(f"the list of its {what} counts {len(items)} items, but {count} or more are linked", where)

    def use_lists(self) -> None:
        """Each use in a list is the operand of a living owner, and no operand is missing in the list."""
        reads = self.reads
        owners = self.owners
        for value, where in self.places.items():
            uses = value._uses
            expected = reads.get(value, 0)
            if not uses._count and not expected and uses._first is None:
                continue
            self.links(uses, f"uses of {value.name!r}", where)
            for use in uses:
                owner = use._owner
                operands = owner._outputs if owner.is_graph else owner._uses
                listed = use._index < len(operands) and operands[use._index] is use
                if not listed or use._value is not value or owner not in owners:
                    self.report(f"{value.name!r} lists a use by {owner!r} that does not read it", where)
            if len(uses) != expected:
                self.report(f"{value.name!r} is read {expected} times but lists {len(uses)} uses", where)


def _describes(type_: TensorType | SparseTensorType, const: Tensor | SparseTensor) -> bool:
    if type_.dtype is not const.dtype:
        return False
    if type_.shape is None:
        return True
    return len(type_.shape) == len(const.shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(type_.shape, const.shape, strict=True)
    )
