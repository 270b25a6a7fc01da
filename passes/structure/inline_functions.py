"""The pass ``inline-functions``: calls of the model's local functions become the nodes of their bodies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from qir.ir import Attribute, AttrKind, Function, Graph, Model, Node, OpId, Value
from qir.ir.clone import clone_graph
from qir.ops.schema import find_schema
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.rewriting import Numbering
from qir.rewriting.edits import forward, is_annotated, merge_origin

__all__ = ["InlineFunctions"]


@dataclass(frozen=True)
class InlineFunctions(Pass):
    """Replace calls of local functions by their bodies, in the main graph, in bodies and in functions that stay.

    Calls within functions are followed; attribute references take what the call says, else the default. New names are
    made from the call's and the inner one's, so none clashes; results keep the names that the call gave them. A
    function that nobody calls any more is removed.

    A call stays, with a remark, where the body was written for an opset at which one of its operators means something
    else than at the caller's, where an operator of that name exists anyway (the runtime may have a kernel for it),
    where the call carries quantization annotations, or where functions call themselves. If the whole would have more
    than ``max_nodes`` nodes nothing is inlined.

    Before::

        %y: f32[N] = my.Scale(%x) {by=2.0}
        function my.Scale(%a) -> (%b) attributes=[by] opset=[17] {
          %c = Constant() {value_float=@by : float}
          %b = Mul(%a, %c)
        }

    After::

        %my.Scale/c: f32[] = Constant() {value_float=2.0}
        %y: f32[N] = Mul(%x, %my.Scale/c)
    """

    name: ClassVar[str] = "inline-functions"
    effect: ClassVar[Effect] = Effect.EXACT
    keeps_observed: ClassVar[bool] = True

    max_nodes: int = 1_000_000
    """The most nodes that the model may have afterwards: functions that call functions can ask for any number."""

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        if not model.functions:
            return result
        sizes = _Sizes(model)
        total = sum(sizes.of(node) for node in model.graph.walk())
        if total > self.max_nodes:
            text = f"functions stay: with their bodies the model would have {total} nodes, more than max-nodes"
            result.remarks.append(self.missed(None, text))
            return result
        inliner = _Inliner(self, model, sizes.recursive, result, ctx.numbering)
        inliner.expand(model.graph)
        inliner.expand_functions()
        inliner.remove_uncalled()
        result.changed = bool(result.statistics)
        return result


class _Sizes:
    """How many nodes a call stands for, and which functions call themselves."""

    def __init__(self, model: Model) -> None:
        self.functions = model.functions
        self.known: dict[OpId, int] = {}
        self.recursive: set[OpId] = set()
        for root in model.functions:
            self._measure(root)

    def of(self, node: Node) -> int:
        return self.known.get(node.op_id, 1)

    def _measure(self, root: OpId) -> None:
        """Depth first with a stack of its own: functions may be nested deeper than Python's."""
        open_: dict[OpId, Iterator[Node]] = {root: self.functions[root].graph.walk()}
        totals = {root: 0}
        while open_:
            current = next(reversed(open_))
            for node in open_[current]:
                callee = node.op_id
                if callee in open_:
                    self.recursive.add(callee)
                elif callee in self.functions and callee not in self.known:
                    open_[callee], totals[callee] = self.functions[callee].graph.walk(), 0
                    break
                else:
                    totals[current] += self.known.get(callee, 1)
            else:
                self.known[current] = totals[current]
                del open_[current]
                if open_:
                    totals[next(reversed(open_))] += totals[current]


class _Inliner:
    """One run: which functions may go where, and what was done."""

    def __init__(
        self,
        settings: InlineFunctions,
        model: Model,
        recursive: set[OpId],
        result: PassResult,
        numbering: Numbering,
    ) -> None:
        self.settings = settings
        self.model = model
        self.recursive = recursive
        self.result = result
        self.numbering = numbering
        self.obstacles: dict[tuple[OpId, OpId | None], str | None] = {}

    def expand(self, graph: Graph) -> None:
        """Inline the calls in ``graph`` and its bodies, those that come out of an inlined body too."""
        node = next(iter(graph.nodes), None)
        while node is not None:
            function = self.model.functions.get(node.op_id)
            if function is not None and self.may_inline(node, function):
                node = self.inline(node, function)
                continue
            for body in node.bodies:
                self.expand(body)
            node = node.next

    def expand_functions(self) -> None:
        """The same in the functions that are still called."""
        done: set[OpId] = set()
        while pending := [f for f in self.called() if f not in done]:
            for callee in pending:
                self.expand(self.model.functions[callee].graph)
                done.add(callee)

    def called(self) -> dict[OpId, None]:
        """Functions that the main graph needs, directly or not."""
        found: dict[OpId, None] = {}
        graphs = [self.model.graph]
        while graphs:
            for node in graphs.pop().walk():
                callee = node.op_id
                if callee in self.model.functions and callee not in found:
                    found[callee] = None
                    graphs.append(self.model.functions[callee].graph)
        return found

    def remove_uncalled(self) -> None:
        if self.numbering.exhausted:
            return
        called = self.called()
        kept = {key: function for key, function in self.model.functions.items() if key in called}
        if gone := len(self.model.functions) - len(kept):
            domains = {domain for domain, _, _ in self.model.functions}
            self.model.functions = kept
            domains -= {node.domain for node in self.model.walk()}
            imports = self.model.opset_imports
            self.model.opset_imports = {d: v for d, v in imports.items() if d not in domains or not _domain(d)}
            self.result.count("removed-function", gone)

    def may_inline(self, node: Node, function: Function) -> bool:
        home = _home(node)
        where = (function.op_id, None if home is None else home.op_id)
        if where not in self.obstacles:
            self.obstacles[where] = self.obstacle(function, home)
        reason = self.obstacles[where]
        if reason is None and is_annotated(node):
            reason = "the call carries quantization annotations"
        if reason is None and len(node.inputs) > len(function.graph.inputs):
            reason = "the call has more operands than the function"
        if reason is not None:
            text = f"call {node.label!r} of {function.domain}.{function.name} stays: {reason}"
            self.result.remarks.append(self.settings.missed(node, text))
            return False
        return self.numbering.allow("inlined-call", node)

    def obstacle(self, function: Function, home: Function | None) -> str | None:
        """Why calls in ``home`` (None: in the model) cannot be replaced."""
        if function.op_id in self.recursive:
            return "it calls itself"
        own = self.imports(home)
        version = own.get(_domain(function.domain))
        if version is not None and find_schema(function.domain, function.name, version) is not None:
            return "an operator of that name exists, for which the runtime may have a kernel"
        for node in function.graph.walk():
            domain = _domain(node.domain)
            written, here = (
                function.opset_imports.get(domain, function.opset_imports.get("ai.onnx", 0)),
                own.get(domain),
            )
            if node.op_id in self.model.functions or here is None or here == written:
                continue
            found = [find_schema(domain, node.op, at) for at in (written, here)]
            if found[0] is None or found[1] is None or found[0].since_version != found[1].since_version:
                return (
                    f"its body is written for opset {written} of {domain or 'ai.onnx'}, the caller for {here}, and "
                    f"{node.op} is not the same in both"
                )
        return None

    def imports(self, home: Function | None) -> dict[str, int]:
        imports = self.model.opset_imports if home is None else home.opset_imports
        return {_domain(domain): version for domain, version in imports.items()}

    def inline(self, call: Node, function: Function) -> Node | None:
        """Put a copy of the body before the call and remove it; the node to go on with."""
        graph = call.graph
        assert graph is not None, "the call was found in a graph"
        self.adopt_imports(call, function)
        last = call.previous
        copy = _Copy(call, function)
        for old, new in zip(call.outputs, copy.make(), strict=False):
            if new is not None:
                copy.hand_over(old, new)
        call.erase()
        self.result.count("inlined-call")
        return next(iter(graph.nodes), None) if last is None else last.next

    def adopt_imports(self, call: Node, function: Function) -> None:
        """Import what only the function has imported so far."""
        home = _home(call)
        known = self.imports(home)
        missing = {d: v for d, v in function.opset_imports.items() if _domain(d) not in known}
        if not missing:
            return
        if home is None:
            self.model.opset_imports = {**self.model.opset_imports, **missing}
        else:
            home.opset_imports = {**home.opset_imports, **missing}


class _Copy:
    """A copy of a function's body for one call."""

    def __init__(self, call: Node, function: Function) -> None:
        assert call.graph is not None, "the call was found in a graph"
        self.call = call
        self.function = function
        self.graph = call.graph
        self.values: dict[Value, Value] = {}
        self.absent: set[Value] = set()
        self.made: set[Value] = set()
        defaults = {attribute.name: attribute for attribute in function.defaults}
        self.arguments: Mapping[str, Attribute] = {**defaults, **call.attributes}

    def make(self) -> list[Value | None]:
        """The values in place of the call's results; None for one that the body leaves out."""
        for index, formal in enumerate(self.function.graph.inputs):
            actual = self.call.input(index)
            if actual is None:
                self.absent.add(formal)
            else:
                self.values[formal] = actual
        for inner in self.function.graph.nodes:
            self.copy(inner)
        return [None if value in self.absent else self.values[value] for value in self.function.graph.outputs]

    def copy(self, inner: Node) -> None:
        label = self.call.label
        made = self.graph.add_node(
            inner.op,
            [None if value is None or value in self.absent else self.values[value] for value in inner.inputs],
            outputs=[self.graph.fresh_name(f"{label}/{v.name}") if v.name else "" for v in inner.outputs],
            types=[value.type for value in inner.outputs],
            domain=inner.domain,
            overload=inner.overload,
            name=self.graph.fresh_name(f"{label}/{inner.name}") if inner.name else None,
            before=self.call,
            source=[self.call, inner],
        )
        made.doc, made.extra, made.metadata = inner.doc, inner.extra, inner.metadata
        made.region = inner.region
        merge_origin(made, self.call)
        self.values.update(zip(inner.outputs, made.outputs, strict=True))
        self.made.update(made.outputs)
        for name, attribute in inner.attributes.items():
            resolved = self.resolve(name, attribute)
            if resolved is not None:
                made.set(name, resolved)

    def resolve(self, name: str, attribute: Attribute) -> Attribute | None:
        """The attribute as the call has it; None where it refers to one that the call leaves out."""
        if attribute.ref:
            given = self.arguments.get(attribute.ref)
            if given is None:
                return None
            return Attribute(name, given.kind, given.value, given.ref, attribute.doc, attribute.extra)
        if not attribute.graphs:
            return attribute
        bodies = tuple(self.copy_body(body) for body in attribute.graphs)
        value = bodies[0] if attribute.kind is AttrKind.GRAPH else bodies
        return Attribute(name, attribute.kind, value, "", attribute.doc, attribute.extra)

    def copy_body(self, body: Graph) -> Graph:
        """A copy of a body of If, Loop or Scan, with names that nothing else has."""
        copy = clone_graph(body, self.graph._state, self.values, {})
        label = self.call.label
        for graph in copy.graphs():
            for value in graph.values():
                if value.name:
                    value.name = self.graph.fresh_name(f"{label}/{value.name}")
            for node in graph.nodes:
                if node.name:
                    node.name = self.graph.fresh_name(f"{label}/{node.name}")
                merge_origin(node, self.call)
                for index, operand in enumerate(node.inputs):
                    if operand in self.absent:
                        node.set_input(index, None)
                for name, attribute in node.attributes.items():
                    if attribute.ref:
                        resolved = self.resolve(name, attribute)
                        if resolved is None:
                            node.remove(name)
                        else:
                            node.set(name, resolved)
        return copy

    def hand_over(self, old: Value, new: Value) -> None:
        """Let the readers of a call's result read ``new``, which takes its name along where this copy made it."""
        if new.type is None:
            new.type = old.type
        was_output = old.is_output
        forward(old, new)
        if old.uses:  # what a graph hands out has to be made in it
            node = self.graph.add_node("Identity", [new], types=[old.type], before=self.call, source=[self.call])
            old.replace_all_uses(node.output)
        elif not was_output and old.name and new in self.made:
            self.made.discard(new)  # named after one result is enough
            kept, old.name = old.name, ""
            new.name = kept


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _home(node: Node) -> Function | None:
    """The function in whose body a node stands."""
    graph = node.graph
    while graph is not None and graph.outer is not None:
        graph = graph.outer
    return None if graph is None else graph.function
