"""An If whose condition is known becomes the branch that it takes."""

from __future__ import annotations

from qir.ir import Graph, Node
from qir.rewriting.edits import forward, merge_origin

__all__ = ["inline_branch"]


def inline_branch(node: Node, condition: bool) -> bool:
    """Move the taken branch's nodes behind the If and let its readers read the branch's outputs; False where the If is
    annotated or has bodies that are not at hand.

    Names of what is moved are made new, since the other bodies around may use them too.
    """
    graph = node.graph
    branch = node.get("then_branch" if condition else "else_branch")
    if graph is None or not isinstance(branch, Graph) or any(value.quant is not None for value in node.outputs):
        return False
    if _root(graph).function is not None and branch.initializers:
        return False  # a function has no initializers to move them to
    for constant in list(branch.initializers):
        if constant.const is not None:
            moved = graph.add_initializer(constant.name, constant.const, constant.type)
            moved.range, moved.quant, moved.frozen = constant.range, constant.quant, constant.frozen
            for use in list(constant.uses):
                use.value = moved
    results = branch.outputs
    anchor = node.next
    for inner in list(branch.nodes):
        graph.move(inner, anchor)
        merge_origin(inner, node)
        if inner.name:
            inner.name = graph.fresh_name(inner.name)
        for value in inner.outputs:
            if value.name:
                value.name = graph.fresh_name(value.name)
    # Only now are they values of this graph.
    for old, new in zip(node.outputs, results, strict=True):
        forward(old, new)
        if old.uses:
            copy = graph.add_node("Identity", [new], types=[old.type], before=anchor, source=[node])
            old.replace_all_uses(copy.output)
    node.erase()
    return True


def _root(graph: Graph) -> Graph:
    while graph.outer is not None:
        graph = graph.outer
    return graph
