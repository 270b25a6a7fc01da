"""Local functions of a model (onnx.proto, FunctionProto)."""

from __future__ import annotations

from collections.abc import Mapping

from qir.ir.attribute import Attribute
from qir.ir.graph import Graph
from qir.ir.node import OpId

__all__ = ["Function"]


class Function:
    """An operator that is defined by a graph. ``graph.name`` is not used; names of values are local to it.

    ``attributes`` are the names of required attributes, ``defaults`` those with a default.
    """

    __slots__ = ("attributes", "defaults", "domain", "extra", "graph", "name", "opset_imports", "overload")

    def __init__(
        self,
        domain: str,
        name: str,
        graph: Graph,
        *,
        overload: str = "",
        attributes: tuple[str, ...] = (),
        defaults: tuple[Attribute, ...] = (),
        opset_imports: Mapping[str, int] | None = None,
        extra: bytes | None = None,
    ) -> None:
        self.domain = domain
        self.name = name
        self.overload = overload
        self.graph = graph
        self.attributes = attributes
        self.defaults = defaults
        self.opset_imports = dict(opset_imports or {})
        self.extra = extra
        graph.function = self

    @property
    def op_id(self) -> OpId:
        return (self.domain, self.name, self.overload)

    def __repr__(self) -> str:
        return f"Function({self.domain}.{self.name})"
