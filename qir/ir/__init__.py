"""The graph IR: models, graphs, nodes, values, uses, tensors, types and annotations. Knows no particular operator."""

from qir.ir.attribute import Attribute, AttrKind
from qir.ir.dtypes import DType
from qir.ir.function import Function
from qir.ir.graph import Graph
from qir.ir.interval import Interval
from qir.ir.journal import Edit, Journal
from qir.ir.model import Clone, Model
from qir.ir.node import Node, OpId, Region
from qir.ir.provenance import Provenance
from qir.ir.quant_types import (
    CodebookQuant,
    DerivedQuant,
    DynamicQuant,
    QuantType,
    StaticQuant,
    UseQuant,
    UseQuantMarker,
)
from qir.ir.tensor import ExternalFile, ExternalLocation, SparseTensor, Stub, Tensor
from qir.ir.types import (
    Dim,
    MapType,
    OpaqueType,
    OptionalType,
    SequenceType,
    Shape,
    SparseTensorType,
    TensorType,
    Type,
    format_type,
)
from qir.ir.value import Use, Value

__all__ = [
    "AttrKind",
    "Attribute",
    "Clone",
    "CodebookQuant",
    "DType",
    "DerivedQuant",
    "Dim",
    "DynamicQuant",
    "Edit",
    "ExternalFile",
    "ExternalLocation",
    "Function",
    "Graph",
    "Interval",
    "Journal",
    "MapType",
    "Model",
    "Node",
    "OpId",
    "OpaqueType",
    "OptionalType",
    "Provenance",
    "QuantType",
    "Region",
    "SequenceType",
    "Shape",
    "SparseTensor",
    "SparseTensorType",
    "StaticQuant",
    "Stub",
    "Tensor",
    "TensorType",
    "Type",
    "Use",
    "UseQuant",
    "UseQuantMarker",
    "Value",
    "format_type",
]
