"""What a diff says: the data that every renderer works from, and its JSON (``docs/diff.schema.json``).

A ``GraphDiff`` is a flat list of ``Change`` objects, each one thing that a reviewer would say in one sentence, with a
``Summary`` that counts them and ``ModelFacts`` of either side. Everything here is immutable and knows no renderer.

How things are counted (``Summary``):

- The counts are numbers of list entries, never of nodes inside an entry, except that an entry that stands for several
  equal ones (``Change.count``: "12 nodes that only pass a value on removed") counts that often. A region that was
  replaced ("Mul+Add+Erf+Mul -> Gelu") is one entry and counts once in ``nodes_changed``, and so does an operator that
  computes in other numbers (float to int8), whatever number of QuantizeLinear and DequantizeLinear nodes that took:
  those are no entries.
- An entry that says only that scales or zero points have other values counts in ``weights_changed``: those are
  constants.
- A constant whose content differs (values, shape or dtype) counts in ``weights_changed`` and nowhere else; one that
  several nodes read counts once. A weight that differs because its operator was quantized is part of that entry.
- A node whose operand comes from an added node, or from what stood before a removed one, is not changed.
- Names of nodes, values, constants and bodies, the order of nodes and constants, how a tensor is stored, and Constant
  nodes against initializers are never changes. Names of the model's inputs and outputs are its interface: those count.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qir.diff.weights import WeightStats
    from qir.ir import Model, Node, Tensor

__all__ = [
    "Change",
    "ChangeKind",
    "Detail",
    "GraphDiff",
    "ModelFacts",
    "ModelSide",
    "NodeRef",
    "OperandQuantization",
    "Quantization",
    "QuantizationChange",
    "Summary",
    "WeightChange",
]

SCHEMA_VERSION = 1


class ChangeKind(enum.StrEnum):
    """What sort of thing an entry is about; also the words that ``ignore`` takes. The value is the JSON's ``kind``."""

    NODE_ADDED = "node-added"
    NODE_REMOVED = "node-removed"
    NODE_CHANGED = "node-changed"
    """One node for one: other operator, attributes, operands wired to something else, number of results."""
    REGION_REPLACED = "region-replaced"
    """n nodes for m, e.g. a decomposed GELU for one Gelu node."""
    QUANTIZATION_CHANGED = "quantization-changed"
    """An operator of both models computes in other numbers: float to int8, or other scales and zero points."""
    WEIGHT_CHANGED = "weight-changed"
    INPUT_CHANGED = "input-changed"
    """An input of the model added, removed, renamed, of another type, or at another place; see ``Change.details``."""
    OUTPUT_CHANGED = "output-changed"
    """As ``input-changed``; also an output that is computed by something else."""
    TYPE_CHANGED = "type-changed"
    """A value inside the model has another dtype or shape although nothing that it is computed from has changed."""
    FUNCTION_ADDED = "function-added"
    FUNCTION_REMOVED = "function-removed"
    FUNCTION_CHANGED = "function-changed"
    """Its attributes, defaults or imports; nodes in its body are node changes whose ``where`` names the function."""
    OPSET_CHANGED = "opset-changed"
    IMPORT_CHANGED = "import-changed"
    """A domain imported by one model alone, for nodes that it alone has: their entries say so. A note."""
    IR_VERSION_CHANGED = "ir-version-changed"
    """A note."""
    PRODUCER_CHANGED = "producer-changed"
    """Who made the file; domain and version of the model. A note."""
    METADATA_CHANGED = "metadata-changed"
    """Metadata entries of the model, a graph, a node or a value; ``qir.source`` is provenance and never counts."""
    DOC_CHANGED = "doc-changed"
    """Doc strings of the model, of graphs and nodes. A note."""
    RESPELLED = "respelled"
    """The same said otherwise: operands of a commutative operator exchanged, an axis counted from the other end, a
    function renamed. A note."""
    UNUSED_CHANGED = "unused-changed"
    """Constants that nothing reads, added or removed. A note."""
    OTHER_CHANGED = "other-changed"
    """Parts of the file that ONNX has and qir only carries along (training info, device configurations ...)."""


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A node of one of the models.

    ``id`` is its place in ``Model.walk()`` of its own model, so it is unique per side; ``ModelSide.node(id)`` has the
    node itself. ``name`` is what to call it: its name, else the node that it came from, else its first result.
    """

    id: int
    name: str
    op: str
    """With the domain where that is not ONNX's own: ``Conv``, ``com.microsoft.QGemm``."""
    where: str = ""
    """The scope: "" is the main graph, ``"If cond1/then_branch"`` a body, ``"function my.domain:f"`` a function."""
    outputs: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    """Names of the nodes of a source model that it says it stands for, other than its own; at most 16."""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "op": self.op,
            "where": self.where,
            "outputs": list(self.outputs),
            "sources": list(self.sources),
        }


@dataclass(frozen=True, slots=True)
class Detail:
    """One aspect of a change, ready to print: ``attribute strides: [1, 1] -> [2, 2]``.

    ``aspect`` is one of ``op``, ``attribute``, ``operand`` (``name`` is its name in the operator's schema or its
    index), ``result``, ``name``, ``type``, ``position``, ``metadata``, ``doc``, ``version``, ``content``, ``place``
    (one of several that an entry stands for). None stands for "not there".
    """

    aspect: str
    name: str
    before: str | None
    after: str | None

    def to_json(self) -> dict[str, Any]:
        return {"aspect": self.aspect, "name": self.name, "before": self.before, "after": self.after}


@dataclass(frozen=True)
class WeightChange:
    """A constant whose content differs. ``stats`` is computed when it is first asked for.

    Types are texts such as ``f32[64,3,7,7]``.
    """

    name_before: str
    name_after: str
    type_before: str
    type_after: str
    before: Tensor | None = field(default=None, repr=False, compare=False)
    after: Tensor | None = field(default=None, repr=False, compare=False)
    wanted: bool = field(default=True, repr=False)
    """False where the caller asked for no statistics."""

    @cached_property
    def stats(self) -> WeightStats | None:
        """None where the two have other shapes, are no numbers, or no statistics were wanted."""
        from qir.diff.weights import weight_stats

        return weight_stats(self.before, self.after) if self.wanted else None

    def to_json(self) -> dict[str, Any]:
        return {
            "name_before": self.name_before,
            "name_after": self.name_after,
            "type_before": self.type_before,
            "type_after": self.type_after,
            "stats": None if self.stats is None else self.stats.to_json(),
        }


@dataclass(frozen=True, slots=True)
class OperandQuantization:
    """How one operand or result of an operator is quantized."""

    role: str
    """``input``, ``weight``, ``bias`` or ``output``."""
    name: str
    """Of the float value that it stands for, as far as the model still names it."""
    dtype: str
    """Of the stored integers (``s8``, ``u8``, ``s32``, ``u4``), or of an 8-bit float."""
    granularity: str
    """``tensor``, ``channel`` (with ``axis``), ``block``, or ``dynamic``: parameters computed at run time."""
    axis: int | None = None
    block_size: int | None = None
    scale: float | None = None
    """The scale, or the geometric mean of several; None where it is not constant."""
    scale_min: float | None = None
    scale_max: float | None = None
    zero_point: int | None = None
    """None where not constant or not the same everywhere."""
    scales: tuple[float, ...] = field(default=(), repr=False)
    """All of them, at most 4096."""

    def to_json(self) -> dict[str, Any]:
        return {
            "role": self.role,
            "name": self.name,
            "dtype": self.dtype,
            "granularity": self.granularity,
            "axis": self.axis,
            "block_size": self.block_size,
            "scale": _number(self.scale),
            "scale_min": _number(self.scale_min),
            "scale_max": _number(self.scale_max),
            "zero_point": self.zero_point,
        }


@dataclass(frozen=True, slots=True)
class Quantization:
    """How an operator computes. ``text`` is what to print: ``int8 per-channel weights, u8 activations, scale 0.02``.

    ``form`` is ``float``, ``qdq``, ``qoperator``, ``dynamic`` or ``weight-only``.
    """

    form: str
    text: str
    operands: tuple[OperandQuantization, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"form": self.form, "text": self.text, "operands": [operand.to_json() for operand in self.operands]}


@dataclass(frozen=True, slots=True)
class QuantizationChange:
    """Two ways in which one operator computes.

    ``scale_change`` is the largest relative change of a scale, ``max(new/old, old/new) - 1`` over all scales that both
    have; None where nothing can be compared (float to int8). Entries that only differ in scales are sorted by it.
    ``folded`` are the ids of the QuantizeLinear, DequantizeLinear and similar nodes of either side that this entry
    stands for.
    """

    before: Quantization
    after: Quantization
    scale_change: float | None = None
    folded_before: tuple[int, ...] = ()
    folded_after: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "scale_change": _number(self.scale_change),
            "folded_before": list(self.folded_before),
            "folded_after": list(self.folded_after),
        }


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of the list.

    ``title`` is the sentence to print. ``before`` and ``after`` are short texts of either state (None: not there), with
    ``details`` aspect by aspect. ``old`` and ``new`` are the nodes concerned on either side: for a change of a node, it
    and its counterpart; for a weight, its readers; empty for changes of the model itself. ``where`` is the scope as in
    ``NodeRef.where``. ``weight`` is there for ``weight-changed`` and where other codes come with other scales (its
    statistics are those of the codes; of an int32 bias, of the numbers that they stand for),
    ``quantization`` for ``quantization-changed`` and for a node or region that changed in other ways as well.
    """

    kind: ChangeKind
    title: str
    where: str = ""
    before: str | None = None
    after: str | None = None
    old: tuple[NodeRef, ...] = ()
    new: tuple[NodeRef, ...] = ()
    details: tuple[Detail, ...] = ()
    weight: WeightChange | None = None
    quantization: QuantizationChange | None = None
    count: int = 1
    """How many this stands for: clean-ups of the same sort and a rewrite made in many places are one entry. The summary
    counts each of them."""

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind.value,
            "title": self.title,
            "count": self.count,
            "where": self.where,
            "before": self.before,
            "after": self.after,
            "nodes": {"before": [node.to_json() for node in self.old], "after": [node.to_json() for node in self.new]},
            "details": [detail.to_json() for detail in self.details],
            "weight": None if self.weight is None else self.weight.to_json(),
            "quantization": None if self.quantization is None else self.quantization.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers of entries by what they concern; see the module's text for how they count."""

    nodes_added: int = 0
    nodes_removed: int = 0
    nodes_changed: int = 0
    """Entries ``node-changed``, ``region-replaced`` and ``quantization-changed`` (parameters alone aside)."""
    weights_changed: int = 0
    inputs_changed: int = 0
    outputs_changed: int = 0
    types_changed: int = 0
    functions_changed: int = 0
    """Added, removed and changed ones."""
    regions_replaced: int = 0
    """Among ``nodes_changed``."""
    quantization_changed: int = 0
    """Among ``nodes_changed``."""
    scales_changed: int = 0
    """Among ``weights_changed``: quantization parameters."""
    opsets_changed: int = 0
    metadata_changed: int = 0
    """Entries about metadata and parts that qir only carries along."""
    notes: int = 0
    ignored: int = 0
    """Entries left out because ``ignore`` names their kind. They are in none of the other counts."""

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One model in numbers. Constant nodes are no operators here, and functions count once."""

    nodes: int
    ops: Mapping[str, int]
    """How many of each operator, most frequent first, bodies and functions included."""
    parameters: int
    """Elements of all constants, shared ones once."""
    bytes_by_dtype: Mapping[str, int]
    """Of the constants, largest first."""
    macs: int | None
    """Multiply-accumulates of one run where the file records the shapes, bodies once; None where it records none."""
    macs_unknown: int
    """How many nodes with products are missing in ``macs`` because their shapes are not known."""
    macs_batch: Mapping[str, int]
    """The open batch axes, by name, that ``macs`` takes as 1: it is that of one sample."""
    precision: Mapping[str, int]
    """How many of the operators with products (Conv, MatMul, Gemm, recurrent ones ...) compute in which numbers, e.g.
    ``{"f32": 2, "u8 x s8": 51, "dynamic u8 x s8": 3, "s4 weights": 1}``, most frequent first."""
    opsets: Mapping[str, int]
    inputs: Mapping[str, str]
    """Name to type text."""
    outputs: Mapping[str, str]

    @property
    def bytes(self) -> int:
        """Bytes of all constants."""
        return sum(self.bytes_by_dtype.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "nodes": self.nodes,
            "ops": dict(self.ops),
            "parameters": self.parameters,
            "bytes": self.bytes,
            "bytes_by_dtype": dict(self.bytes_by_dtype),
            "macs": self.macs,
            "macs_unknown": self.macs_unknown,
            "macs_batch": dict(self.macs_batch),
            "precision": dict(self.precision),
            "opsets": dict(self.opsets),
            "inputs": dict(self.inputs),
            "outputs": dict(self.outputs),
        }


@dataclass(frozen=True)
class ModelSide:
    """One of the two models: its name for headlines (the file's name, or the graph's), facts, and the model itself."""

    name: str
    facts: ModelFacts
    model: Model = field(repr=False, compare=False)

    def node(self, id_: int) -> Node:
        """The node behind a ``NodeRef.id``. Raises IndexError."""
        return self._nodes[id_]

    def id(self, node: Node) -> int:
        """The inverse of ``node``. Raises KeyError for a node of another model."""
        return self._ids[node]

    @cached_property
    def _nodes(self) -> list[Node]:
        return list(self.model.walk())

    @cached_property
    def _ids(self) -> dict[Node, int]:
        return {node: index for index, node in enumerate(self._nodes)}


@dataclass(frozen=True)
class GraphDiff:
    """The difference between two models.

    ``changes`` come in the order of a report: interface, functions, nodes in graph order (quantization-only entries
    last, those with the largest ``scale_change`` first), weights, then opsets and the model's own fields.
    ``pairs`` maps the ids of all nodes of the old model that have a counterpart to its id in the new one, changed or
    not; pictures of a neighbourhood need it. Nodes that quantization folds away, and Constant nodes, are in no pair.
    ``notes`` are differences that are none of the model: doc strings, producer, IR version. They are shown, but two
    models that differ in nothing else are identical.
    """

    summary: Summary
    changes: tuple[Change, ...]
    before: ModelSide
    after: ModelSide
    notes: tuple[Change, ...] = ()
    pairs: Mapping[int, int] = field(default_factory=dict, repr=False)

    @property
    def identical(self) -> bool:
        """No changes, ignored kinds and notes aside."""
        return not self.changes

    def __bool__(self) -> bool:
        """Whether there is a difference."""
        return bool(self.changes)

    def of_kind(self, *kinds: ChangeKind) -> list[Change]:
        """The entries of these kinds, in order."""
        return [change for change in self.changes if change.kind in kinds]

    def to_text(self, *, width: int = 80, colour: bool = False, max_changes: int | None = None) -> str:
        """For a terminal: summary first, ``width`` columns wide."""
        from qir.diff.render.text import to_text

        return to_text(self, width=width, colour=colour, max_changes=max_changes)

    def to_markdown(self, *, max_changes: int | None = None) -> str:
        """For a pull request: pictures in Mermaid, collapsed sections, at most 60,000 characters."""
        from qir.diff.render.markdown import to_markdown

        return to_markdown(self, max_changes=max_changes)

    def to_html(self, *, max_changes: int | None = None) -> str:
        """One page that needs nothing but itself."""
        from qir.diff.render.html import to_html

        return to_html(self, max_changes=max_changes)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from qir.diff.render.html import to_html_fragment

        return to_html_fragment(self)

    def __str__(self) -> str:
        return self.to_text()

    def to_json(self, *, pairs: bool = False) -> dict[str, Any]:
        """What ``docs/diff.schema.json`` describes, ready for ``json.dumps``; ``pairs`` adds the matched node ids."""
        made: dict[str, Any] = {
            "version": SCHEMA_VERSION,
            "identical": self.identical,
            "summary": self.summary.to_json(),
            "before": {"name": self.before.name, **self.before.facts.to_json()},
            "after": {"name": self.after.name, **self.after.facts.to_json()},
            "changes": [change.to_json() for change in self.changes],
            "notes": [change.to_json() for change in self.notes],
        }
        if pairs:
            made["pairs"] = [[old, new] for old, new in self.pairs.items()]
        return made


def _number(value: float | None) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if value is not None and math.isfinite(value) else None
