"""Type and shape inference on the IR.

Each node's outputs follow from the types of its inputs by a rule of our own (fast, keeps symbols), else by onnx's
per-node inference. Weights are never read or serialized. Nothing raises and nothing is dropped in silence: what could
not be inferred, what contradicts the types that the file recorded, and nodes whose inputs do not fit are listed in
the report.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qir.ir import Attribute, DType, Function, Graph, Model, Node, Tensor, TensorType, Type, Value, format_type
from qir.ir.types import OptionalType, SequenceType
from qir.ops import dims, shape_math, shape_movement, shape_neural
from qir.ops.onnx_inference import infer_with_onnx
from qir.ops.schema import find_schema
from qir.ops.shape_content import CONTENT_OPS, LARGEST, content_of_tensor, evaluate
from qir.ops.shape_rule import RULES, Content, NodeView, RuleError, Unknown
from qir.ops.verifier import form_problem

__all__ = ["Contradiction", "InferenceReport", "infer", "infer_after"]

# The modules of rules are imported because importing them fills RULES.
_RULE_MODULES = (shape_math, shape_movement, shape_neural)

_DEEPEST_CONTENT = 100
_MOST_LOOP_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A type that the file records and that cannot be true; the inferred one was kept."""

    value: str
    recorded: Type | None
    inferred: Type | None
    node: str

    def __str__(self) -> str:
        return (
            f"value {self.value!r} is recorded as {format_type(self.recorded)}, "
            f"but node {self.node!r} makes {format_type(self.inferred)}"
        )


@dataclass(slots=True)
class InferenceReport:
    """What an inference run did and could not do. ``visited`` counts rule applications, ``changed`` values."""

    visited: int = 0
    changed: int = 0
    unknown_ops: Counter[str] = field(default_factory=Counter)
    """``domain.Op`` -> how many nodes of it have no inference; their recorded types were kept."""
    contradictions: list[Contradiction] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    """Node -> why its inputs do not fit it. In a branch that never runs that may be harmless."""
    untyped: list[str] = field(default_factory=list)
    """Values of visited nodes whose type is not known."""

    @property
    def complete(self) -> bool:
        return not (self.unknown_ops or self.contradictions or self.problems or self.untyped)

    def __str__(self) -> str:
        lines = [f"shape inference: {self.visited} nodes, {self.changed} types changed"]
        lines += [f"no shape inference for {op} ({count} nodes)" for op, count in sorted(self.unknown_ops.items())]
        if self.untyped:
            more = f" and {len(self.untyped) - 5} more" if len(self.untyped) > 5 else ""
            lines.append(f"no type for {', '.join(map(repr, self.untyped[:5]))}{more}")
        lines += map(str, self.contradictions)
        lines += [f"node {label!r}: {reason}" for label, reason in self.problems.items()]
        return "\n".join(lines)


def infer(model: Model) -> InferenceReport:
    """Annotate ``Value.type`` everywhere: main graph, bodies, local functions. O(nodes); nodes must be in order.

    Symbols are kept (``N``) and computed with (``2*N+1``). A value of a local function gets what is true for all its
    calls. Recorded types are merged in; where one is contradicted the report says so.
    """
    run = _Run(model)
    run.graph(model.graph)
    run.functions()
    run.commit()
    return run.report


def infer_after(model: Model, nodes: Iterable[Node]) -> InferenceReport:
    """Infer again what an edit touched: ``nodes`` (see ``Journal.touched_nodes``) and downstream of them, until
    types stop changing. Values that turn out to have another type than before are simply given it.
    """
    run = _Run(model)
    run.after_edit = True
    run.worklist(nodes)
    run.commit()
    return run.report


def misfit(model: Model, node: Node) -> str | None:
    """Why the recorded types of a node's inputs do not fit its op, or the node not its schema; None where they do."""
    run = _Run(model)
    run.node(node)
    return run.misfits.get(node)


_DEEPEST_CALL = 100
"""Functions that call functions: beyond so many nothing is inferred, and nothing can overflow the stack."""
_BROKEN_BY = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What a rule raises on a node that breaks its schema."""


class _Run:
    """One inference run: types that it found, contents that were asked for, and the scope that it is in."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.report = InferenceReport()
        self.types: dict[Value, Type | None] = {}
        self.contents: dict[Value, Content | None] = {}
        self.imports: Mapping[str, int] = _canonical(model.opset_imports)
        self.bindings: Mapping[str, Attribute] = {}
        self.after_edit = False
        self.replaced: set[Value] = set()
        """Values whose old type was wrong after an edit: recorded types downstream of them mean nothing."""
        self.misfits: dict[Node, str] = {}
        self.unknown_nodes: set[Node] = set()
        self.contradictions: dict[Value, Contradiction] = {}
        self.calls: dict[Function, list[dict[Value, Type | None]]] = {}
        self.results: dict[Hashable, list[Type | None]] = {}
        """Of calls: by function, types and contents of the operands, and attributes."""
        self.active: list[Function] = []
        self.depth = 0
        self.legacy = model.ir_version is not None and model.ir_version < 4

    # What the rules ask

    def type_of(self, value: Value) -> Type | None:
        return self.types.get(value, value._type)

    def binding(self, name: str) -> Attribute | None:
        return self.bindings.get(name)

    def constant_of(self, value: Value) -> Tensor | None:
        """An initializer's content. Before ir_version 4 all initializers were inputs, and none could be overridden."""
        if isinstance(value.const, Tensor) and (self.legacy or not value.is_input):
            return value.const
        return None

    def content_of(self, value: Value) -> Content | None:
        if value in self.contents:
            return self.contents[value]
        node = value.producer
        content: Content | None = None
        if node is None:
            tensor = self.constant_of(value)
            content = None if tensor is None else content_of_tensor(tensor)
        elif node.domain == "" and value.index == 0 and node.op in CONTENT_OPS and self.depth < _DEEPEST_CONTENT:
            type_ = self.type_of(value)
            small = isinstance(type_, TensorType) and type_.shape is not None and len(type_.shape) <= 1
            if small or type_ is None:
                self.depth += 1
                try:
                    content = evaluate(self.view(node))
                except (Unknown, RuleError):
                    content = None
                except _BROKEN_BY:
                    if form_problem(self.model, node) is None:
                        raise
                    content = None  # the visit of the node itself reports the problem
                finally:
                    self.depth -= 1
        if content is None and node is not None:
            content = _blank(self.type_of(value))
        self.contents[value] = content
        return content

    def view(self, node: Node) -> NodeView:
        known = self.types
        types = [None if use is None else known.get(use._value, use._value._type) for use in node._uses]
        return NodeView(self, node, types, self.version(node._domain))

    def version(self, domain: str) -> int:
        return self.imports.get(domain, 1 if domain == "com.microsoft" else 0)

    # Graphs and nodes

    def graph(self, graph: Graph) -> None:
        for node in graph.nodes:
            self.node(node)

    def node(self, node: Node) -> None:
        """Infer one node and merge what was recorded for its outputs."""
        self.report.visited += 1
        if not self.active:
            # A second visit, in a loop's next round or after an edit upstream, overrules the first.
            self.misfits.pop(node, None)
        try:
            found = self.outputs(node)
        except Unknown:
            found = ()
        except RuleError as error:
            self.misfits[node] = f"{node.op}: {error}"
            found = ()
        except _BROKEN_BY:
            # Rules rely on what the schema promises. A node that breaks its schema is the file's fault, not a bug.
            problem = form_problem(self.model, node)
            if problem is None:
                raise
            self.misfits[node] = problem
            found = ()
        fresh_only = self.after_edit and any(use is not None and use._value in self.replaced for use in node._uses)
        for index, value in enumerate(node._outputs):
            inferred = found[index] if index < len(found) else None
            old = value._type
            if inferred is old or value._name == "":
                self.types[value] = inferred
            elif self.active:
                # What is recorded in a function was true of all its calls then; this call may be a new one.
                self.types[value] = inferred or old
            elif old is None or fresh_only:
                self.types[value] = inferred
                if old is not None and inferred != old:
                    self.replaced.add(value)
            elif inferred is None:
                self.types[value] = old
            else:
                self.types[value] = self.merged(node, value, old, inferred)

    def merged(self, node: Node, value: Value, old: Type, inferred: Type) -> Type:
        merged = _merge(old, inferred)
        if merged is not None:
            return merged
        if self.after_edit:
            self.replaced.add(value)
        else:
            self.contradictions[value] = Contradiction(value.name, old, inferred, node.label)
        return inferred

    def outputs(self, node: Node) -> Sequence[Type | None]:
        """Types of the outputs. Raises Unknown and RuleError."""
        if self.model._functions and (function := self.model._functions.get(node.op_id)) is not None:
            return self.call(function, node)
        view = self.view(node)
        domain = node._domain
        if domain == "" and node._op in _BODY_OPS:
            return self.body_op(view)
        rule = RULES.get((domain, node._op))
        if rule is not None:
            try:
                return rule(view)
            except Unknown:
                if any(use is not None and t is None for use, t in zip(node._uses, view.types, strict=True)):
                    raise  # for want of an input's type, not of a rule
        schema = find_schema(domain, node.op, view.version)
        if schema is None or schema.origin is None or node.bodies:
            self.unknown(node)
            raise Unknown
        found = infer_with_onnx(self, node, view.types, schema, self.imports)
        if found and all(t is None for t in found):
            self.unknown(node)
        return found

    def unknown(self, node: Node) -> None:
        for body in node.bodies:
            self.graph(body)
        self.unknown_nodes.add(node)

    # Bodies

    def body_op(self, view: NodeView) -> Sequence[Type | None]:
        match view.node.op:
            case "If":
                return self.branches(view)
            case "Loop":
                return self.loop(view)
            case "SequenceMap":
                return self.sequence_map(view)
            case _:
                return self.scan(view)

    def body_outputs(self, body: Graph) -> list[Type | None]:
        self.graph(body)
        return [self.type_of(value) for value in body.outputs]

    def branches(self, view: NodeView) -> Sequence[Type | None]:
        taken = view.attr("then_branch"), view.attr("else_branch")
        found = [self.body_outputs(body) for body in taken if isinstance(body, Graph)]
        if len(found) != 2 or len(found[0]) != len(found[1]):
            raise RuleError("its branches give different numbers of outputs")
        condition = view.ints(0)
        if condition is not None and len(condition) == 1:
            return found[0] if condition[0] else found[1]
        return [_join(a, b) for a, b in zip(*found, strict=True)]

    def loop(self, view: NodeView) -> Sequence[Type | None]:
        body: Graph = view.attr("body")
        carried = [_plain(t) for t in view.types[2:]]
        count = len(carried)
        self.seed(body.inputs[:2], [TensorType(DType.INT64, ()), TensorType(DType.BOOL, ())])
        results: list[Type | None] = []
        for _ in range(_MOST_LOOP_ROUNDS):
            self.seed(body.inputs[2:], carried)
            results = self.body_outputs(body)
            joined = [_join(a, b) for a, b in zip(carried, results[1 : count + 1], strict=False)]
            if joined == carried:
                break
            carried = joined
        else:
            carried = [_rankless(t) for t in carried]
            self.seed(body.inputs[2:], carried)
            results = self.body_outputs(body)
        return [*carried, *(_stacked(_unsymbolic(t), 0, None) for t in results[count + 1 :])]

    def scan(self, view: NodeView) -> Sequence[Type | None]:
        body: Graph = view.attr("body")
        if view.version < 9:
            self.unknown(view.node)
            raise Unknown
        scanned = view.attr("num_scan_inputs")
        if not isinstance(scanned, int) or not 0 < scanned <= len(view.types):
            raise RuleError(f"num_scan_inputs={scanned}, with {len(view.types)} inputs")
        count = len(view.types) - scanned
        axes = view.attr("scan_input_axes") or (0,) * scanned
        if len(axes) != scanned:
            raise RuleError(f"{len(axes)} scan_input_axes for {scanned} inputs")
        length: int | str | None = None
        elements: list[Type | None] = []
        for type_, axis in zip(view.types[count:], axes, strict=True):
            if not isinstance(type_, TensorType) or type_.shape is None:
                elements.append(_plain(type_))
                continue
            axis %= len(type_.shape)
            length = type_.shape[axis] if length is None else length
            elements.append(TensorType(type_.dtype, type_.shape[:axis] + type_.shape[axis + 1 :]))
        state = [_plain(t) for t in view.types[:count]]
        results: list[Type | None] = []
        for _ in range(_MOST_LOOP_ROUNDS):
            self.seed(body.inputs, [*state, *elements])
            results = self.body_outputs(body)
            joined = [_join(a, b) for a, b in zip(state, results[:count], strict=False)]
            if joined == state:
                break
            state = joined
        made = results[count:]
        out_axes = view.attr("scan_output_axes") or (0,) * len(made)
        stacked = [_stacked(_unsymbolic(t), axis, length) for t, axis in zip(made, out_axes, strict=True)]
        return [*state, *stacked]

    def sequence_map(self, view: NodeView) -> Sequence[Type | None]:
        body: Graph = view.attr("body")
        self.seed(body.inputs, [t.element if isinstance(t, SequenceType) else _plain(t) for t in view.types])
        return [SequenceType(_unsymbolic(t)) for t in self.body_outputs(body)]

    def seed(self, inputs: Sequence[Value], types: Sequence[Type | None]) -> None:
        """Give a body's inputs the types of what is passed; what was recorded for them fills the gaps."""
        for value, type_ in zip(inputs, types, strict=False):
            recorded = None if self.after_edit else value.type
            merged = None if recorded is None or type_ is None else _merge(recorded, type_)
            self.types[value] = merged or type_ or recorded
            self.contents.pop(value, None)

    # Local functions

    def call(self, function: Function, node: Node) -> Sequence[Type | None]:
        """Infer a function's body for one call, in a scope of its own; equal calls are inferred once.

        Without that, functions that each call the one before twice would take twice as long at every level.
        """
        if function in self.active:
            raise RuleError(f"function {function.name!r} calls itself")
        if len(self.active) >= _DEEPEST_CALL:
            raise Unknown
        passed = [None if v is None else self.type_of(v) for v in node.inputs]
        contents = [None if v is None else self.content_of(v) for v in node.inputs]
        bindings = {a.name: a for a in function.defaults}
        for name, attribute in node.attributes.items():
            resolved = self.binding(attribute.ref) if attribute.ref else attribute
            if resolved is not None:
                bindings[name] = resolved
        # Attributes by identity: the model keeps them alive.
        key = (function, tuple(passed), tuple(contents), frozenset((name, id(a)) for name, a in bindings.items()))
        if (known := self.results.get(key)) is not None:
            return known
        outer = (self.types, self.contents, self.imports, self.bindings)
        self.types, self.contents = {}, {}
        self.imports, self.bindings = _canonical({**self.model.opset_imports, **function.opset_imports}), bindings
        self.active.append(function)
        try:
            for index, value in enumerate(function.graph.inputs):
                self.types[value] = passed[index] if index < len(passed) else None
                self.contents[value] = contents[index] if index < len(contents) else None
            self.graph(function.graph)
            self.calls.setdefault(function, []).append(self.types)
            results = [self.type_of(value) for value in function.graph.outputs]
            self.results[key] = results
            return results
        finally:
            self.active.pop()
            self.types, self.contents, self.imports, self.bindings = outer

    def functions(self) -> None:
        """Annotate the bodies of functions with what all their calls agree on."""
        for scopes in self.calls.values():
            for value in scopes[0]:
                types = [scope.get(value) for scope in scopes]
                agreed = types[0]
                for other in types[1:]:
                    agreed = _join(agreed, other)
                self.types[value] = agreed

    # Edits

    def worklist(self, nodes: Iterable[Node]) -> None:
        """Nodes first in, first out, until nothing changes; one sweep in order if that does not settle soon."""
        waiting: dict[Node, None] = {_outermost(n): None for n in nodes if n.graph is not None}
        if any(node.graph is not self.model.graph for node in waiting):  # a function's body: all calls are concerned
            self.graph(self.model.graph)
            self.functions()
            return
        queue = deque(waiting)
        settled = 2000 + 8 * len(queue)
        while queue:
            if settled == 0:
                self.contents.clear()
                self.graph(self.model.graph)
                return
            settled -= 1
            node = queue.popleft()
            del waiting[node]
            before = [self.type_of(v) for v in node.outputs]
            self.contents = {}
            self.node(node)
            for value, old in zip(node.outputs, before, strict=True):
                new = self.type_of(value)
                if new == old and not (node.op in CONTENT_OPS and _may_be_shape(new)):
                    continue
                for user in value.users:
                    outermost = _outermost(user)
                    if outermost not in waiting:
                        waiting[outermost] = None
                        queue.append(outermost)

    def commit(self) -> None:
        """Write what changed to the values, and what was found to the report."""
        self.report.contradictions = list(self.contradictions.values())
        self.report.problems = {node.label: reason for node, reason in self.misfits.items()}
        for node in self.unknown_nodes:
            self.report.unknown_ops[f"{node.domain}.{node.op}" if node.domain else node.op] += 1
        for value, type_ in self.types.items():
            if type_ is None and value._name and value._producer is not None:
                self.report.untyped.append(value._name)
            if type_ is not value._type and type_ != value._type:
                value.type = type_
                self.report.changed += 1


_BODY_OPS = frozenset({"If", "Loop", "Scan", "SequenceMap"})


def _canonical(imports: Mapping[str, int]) -> dict[str, int]:
    return {"" if domain == "ai.onnx" else domain: version for domain, version in imports.items()}


def _outermost(node: Node) -> Node:
    graph = node.graph
    while graph is not None and graph.owner is not None:
        node = graph.owner
        graph = node.graph
    return node


def _may_be_shape(type_: Type | None) -> bool:
    if not isinstance(type_, TensorType):
        return type_ is None
    return type_.shape is None or len(type_.shape) <= 1


def _blank(type_: Type | None) -> Content | None:
    """Elements that are not known, of a vector whose length is."""
    if isinstance(type_, TensorType) and type_.shape is not None and len(type_.shape) <= 1:
        if not type_.shape:
            return (None,)
        size = type_.shape[0]
        if isinstance(size, int) and size <= LARGEST:
            return (None,) * size
    return None


def _merge(recorded: Type, inferred: Type) -> Type | None:
    """Both types' knowledge, denotations of the recorded one kept; None where they contradict each other."""
    if isinstance(recorded, TensorType) and isinstance(inferred, TensorType):
        if recorded.dtype is not inferred.dtype and recorded.dtype is not DType.UNDEFINED:
            return None
        if recorded.shape == inferred.shape:
            return recorded if recorded.dtype is inferred.dtype else replace(recorded, dtype=inferred.dtype)
        try:
            return replace(recorded, dtype=inferred.dtype, shape=dims.merge(recorded.shape, inferred.shape))
        except ValueError:
            return None
    if isinstance(recorded, SequenceType | OptionalType) and type(recorded) is type(inferred):
        if recorded.element is None or inferred.element is None:
            return replace(recorded, element=recorded.element or inferred.element)
        element = _merge(recorded.element, inferred.element)
        return None if element is None else replace(recorded, element=element)
    return recorded if type(recorded) is type(inferred) else None


def _join(a: Type | None, b: Type | None) -> Type | None:
    """What holds for both types."""
    if a == b:
        return a
    if isinstance(a, TensorType) and isinstance(b, TensorType) and a.dtype is b.dtype:
        return TensorType(a.dtype, dims.join(a.shape, b.shape))
    if isinstance(a, SequenceType) and isinstance(b, SequenceType):
        return SequenceType(_join(a.element, b.element))
    if isinstance(a, OptionalType) and isinstance(b, OptionalType):
        return OptionalType(_join(a.element, b.element))
    return None


def _plain(type_: Type | None) -> Type | None:
    return TensorType(type_.dtype, type_.shape) if isinstance(type_, TensorType) else type_


def _rankless(type_: Type | None) -> Type | None:
    return TensorType(type_.dtype) if isinstance(type_, TensorType) else type_


def _unsymbolic(type_: Type | None) -> Type | None:
    """A symbol inside of a loop's body may stand for another size in each iteration; outside it means nothing."""
    if not isinstance(type_, TensorType) or type_.shape is None:
        return type_
    return TensorType(type_.dtype, tuple(d if isinstance(d, int) else None for d in type_.shape))


def _stacked(type_: Type | None, axis: int, length: int | str | None) -> Type | None:
    if not isinstance(type_, TensorType) or type_.shape is None:
        return type_
    axis %= len(type_.shape) + 1
    return TensorType(type_.dtype, (*type_.shape[:axis], length, *type_.shape[axis:]))
