"""Put the content of one model into another in place, journaled, with what the detour through a ModelProto lost."""

from __future__ import annotations

from collections.abc import Iterator

from qir.errors import UnsupportedError
from qir.ir import Graph, Model, Node, Provenance, SparseTensor, Tensor, Value
from qir.ir.provenance import merge

__all__ = ["replace_content"]

_MOST_REPLACED = 256


def replace_content(model: Model, new: Model) -> None:
    """Let ``model`` hold the graph and functions of ``new``, which is used up.

    Provenance, metadata, docs and region tags come back by the names of results: a node whose result has the name of
    an old one stands for that one's producer and for what vanished above it, a node with unknown results for what its
    first reader stands for. Weights that did not change keep their storage. Proved ranges are kept for inputs only.

    Raises UnsupportedError where inputs or outputs were renamed, added, removed or reordered.
    """
    _check_interface(model, new)
    memory = _Memory(model, new)
    _clear(model)
    if dict(model.opset_imports) != dict(new.opset_imports):
        model.opset_imports, model.ir_version = dict(new.opset_imports), new.ir_version
    for function in new.functions.values():
        model.add_function(function)
    _fill(model.graph, new.graph, memory)
    memory.restore(model)


def _check_interface(model: Model, new: Model) -> None:
    def names(values: tuple[Value, ...], *, required: bool) -> list[str]:
        return [value.name for value in values if not (required and value.is_initializer)]

    for what, old_names, new_names in (
        ("inputs", names(model.graph.inputs, required=True), names(new.graph.inputs, required=True)),
        ("outputs", names(model.graph.outputs, required=False), names(new.graph.outputs, required=False)),
    ):
        if old_names != new_names:
            raise UnsupportedError(
                f"it changed the model's {what} from {', '.join(old_names)} to {', '.join(new_names)}; passes keep them"
            )


def _clear(model: Model) -> None:
    graph = model.graph
    for index in reversed(range(len(graph.output_uses))):
        graph.remove_output(index)
    for node in reversed(list(graph.nodes)):
        node.erase()
    for value in list(graph.initializers):
        graph.remove_initializer(value)
    graph.remove_inputs(graph.inputs)
    model.functions = {}


def _fill(graph: Graph, new: Graph, memory: _Memory) -> None:
    made: dict[Value, Value] = {}
    for value in new.inputs:
        if value.const is None:
            made[value] = graph.add_input(value.name, value.type)
        else:
            made[value] = _initializer(graph, value, memory)
            graph.make_input(made[value])
    for value in new.initializers:
        if value not in made:
            made[value] = _initializer(graph, value, memory)
    for node in new.nodes:
        copy = graph.add_node(
            node.op,
            [None if value is None else made.get(value, value) for value in node.inputs],
            node.attributes,
            outputs=[value.name for value in node.outputs],
            types=[value.type for value in node.outputs],
            domain=node.domain,
            overload=node.overload,
            name=node.name,
        )
        copy.metadata, copy.doc, copy.extra = node.metadata, node.doc, node.extra
        made |= zip(node.outputs, copy.outputs, strict=True)
    for value, mine in made.items():
        # Bodies were handed over whole: what they capture is still the other graph's.
        for use in list(value.uses):
            if use.graph is not new:
                use.value = mine
        mine.doc, mine.metadata, mine.extra, mine.annotation = value.doc, value.metadata, value.extra, value.annotation
    for value in new.outputs:
        graph.add_output(made[value])


def _initializer(graph: Graph, value: Value, memory: _Memory) -> Value:
    assert value.const is not None
    made = graph.add_initializer(value.name, memory.shared(value.name, value.const), value.type)
    made.name = value.name  # which the old content had taken
    return made


class _Memory:
    """What the old content knew, by the names of values."""

    def __init__(self, model: Model, new: Model) -> None:
        self.producers = {value.name: node for node in model.walk() for value in node.outputs if value.name}
        self.by_name = {node.name: node for node in model.walk() if node.name}
        self.values = {value.name: value for value in model.values() if value.name}
        self.tensors = {value.name: value.const for value in model.graph.initializers}
        self.remaining = {value.name for value in new.values()}

    def shared(self, name: str, tensor: Tensor | SparseTensor) -> Tensor | SparseTensor:
        """The old tensor of that name where the content is the same: it is mapped, or shared with the reference."""
        old = self.tensors.get(name)
        if isinstance(old, Tensor) and isinstance(tensor, Tensor) and old.shape == tensor.shape:
            if old.dtype == tensor.dtype and old.same_content(tensor):
                return old
        return tensor

    def restore(self, model: Model) -> None:
        nodes = list(model.walk())
        for value in model.graph.inputs:
            if (old := self.values.get(value.name)) is not None:
                value.range = old.range
        recorded = model.graph.recorded_types
        for value in list(model.values()):
            old = self.values.get(value.name)
            if old is not None and old.metadata and not value.metadata:
                value.metadata = old.metadata
            if old in recorded and value.graph is model.graph:
                # Not journaled, and need not be: an entry whose value is in no graph is as good as none.
                recorded[value] = None
        for node in reversed(nodes):  # readers first, so that an unknown node can take after its reader
            node.provenance = self._provenance(node)
            twin = self._twin(node)
            if twin is None:
                continue
            node.metadata = {**(twin.metadata or {}), **(node.metadata or {})} or None
            if twin.op == node.op:
                node.doc, node.region = node.doc or twin.doc, twin.region

    def _twin(self, node: Node) -> Node | None:
        """The old node that this one is, or took the place of."""
        for value in node.outputs:
            if value.name in self.producers:
                return self.producers[value.name]
        return self.by_name.get(node.name)

    def _provenance(self, node: Node) -> Provenance:
        if (twin := self._twin(node)) is not None:
            return merge(old.provenance for old in self._replaced(twin))
        readers = (user for value in node.outputs for user in value.users)
        return next((reader.provenance for reader in readers), ())

    def _replaced(self, twin: Node) -> Iterator[Node]:
        """An old node, and those above it none of whose results is left."""
        work, seen = [twin], {twin}
        while work and len(seen) < _MOST_REPLACED:
            node = work.pop(0)
            yield node
            for value in node.inputs:
                above = None if value is None else value.producer
                if above is not None and above not in seen and not any(v.name in self.remaining for v in above.outputs):
                    seen.add(above)
                    work.append(above)
