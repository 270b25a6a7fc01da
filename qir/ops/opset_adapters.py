"""Opset adapters: one function per op and version in which its form or meaning changed.

An adapter edits its node in place. Where it needs several ops it inserts the others before and turns the node into
the last of them, so results keep their names and annotations. Source of the changes: onnx's docs/Changelog.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qir.ir import Attribute, AttrKind, DType, Graph, Node, Tensor, TensorType, Value

__all__ = ["ADAPTERS", "UNSUPPORTED", "CannotConvert"]


class CannotConvert(Exception):
    """This node is a case that the newer opset cannot express, or that needs a type which is not known."""


Adapter = Callable[[Node], None]

ADAPTERS: dict[tuple[str, int], Adapter] = {}
"""(op, the opset in which it changed) -> what brings a node of the opset before to it. Filled below, then fixed."""

UNSUPPORTED: dict[tuple[str, int], str] = {
    ("Scan", 9): "Scan lost its batch axis and sequence lengths",
}
"""Changes of meaning without an adapter, with the reason."""


def _adapter(version: int, *ops: str) -> Callable[[Adapter], Adapter]:
    def register(function: Adapter) -> Adapter:
        for op in ops:
            ADAPTERS[op, version] = function
        return function

    return register


# Helpers


def _graph_of(node: Node) -> Graph:
    assert node.graph is not None
    return node.graph


def _in_function(graph: Graph) -> bool:
    while graph.outer is not None:
        graph = graph.outer
    return graph.function is not None


def _constant(node: Node, array: np.ndarray, hint: str) -> Value:
    """A constant beside a node: an initializer, but a Constant node in a function, which can have no initializers."""
    graph = _graph_of(node)
    tensor = Tensor.of(array)
    if not _in_function(graph):
        return graph.add_constant(tensor, f"{node.label}_{hint}")
    type_ = TensorType(tensor.dtype, tensor.shape)
    return graph.insert_before(node, "Constant", (), attributes={"value": tensor}, types=[type_], source=(node,)).output


def _ints_input(node: Node, name: str, index: int, *, scalar: bool = False) -> None:
    """Move an attribute of integers to an int64 input; nothing where the attribute is absent."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return
    if attribute.ref:
        if scalar:
            raise CannotConvert(f"its attribute {name!r} refers to one of the enclosing function")
        reference = Attribute("value_ints", AttrKind.INTS, None, attribute.ref)
        made = _graph_of(node).insert_before(node, "Constant", (), attributes={"value_ints": reference}, source=(node,))
        node.set_input(index, made.output)
    else:
        value = attribute.value
        array = np.array(value if scalar else np.atleast_1d(value), np.int64)
        node.set_input(index, _constant(node, array, name))
    node.remove(name)


def _plain_attribute(node: Node, name: str, default: Any = None) -> Any:
    attribute = node.attributes.get(name)
    if attribute is not None and attribute.ref:
        raise CannotConvert(f"its attribute {name!r} refers to one of the enclosing function")
    return node.get(name, default)


def _dtype_of(node: Node) -> DType:
    value = node.input(0)
    if value is None or value.dtype is None:
        raise CannotConvert("the element type of its input is not known")
    return value.dtype


def _rank_of(node: Node, index: int) -> int:
    value = node.input(index)
    if value is None or value.shape is None:
        raise CannotConvert(f"the rank of its input {index} is not known")
    return len(value.shape)


def _drop_outputs(node: Node, count: int) -> None:
    """Replace a node by one with fewer results; those dropped must be unused."""
    for value in node.outputs[count:]:
        if value.uses:
            raise CannotConvert(f"its output {value.name!r} no longer exists")
    if len(node.outputs) == count:
        return
    graph = _graph_of(node)
    made = graph.insert_before(
        node,
        node.op,
        node.inputs,
        attributes=node.attributes,
        outputs=count,
        types=[v.type for v in node.outputs[:count]],
        name=None,
        source=(node,),
    )
    for old, new in zip(node.outputs[:count], made.outputs, strict=True):
        name = old.name
        old.replace_all_uses(new)
        if new.name != name:
            old.name, new.name = graph.fresh_name(name), name
    name = node.name
    made.metadata, made.doc, made.extra = node.metadata, node.doc, node.extra
    node.erase()
    made.name = name


# Opset 7: numpy's broadcasting


@_adapter(7, "Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")
def _broadcast_7(node: Node) -> None:
    axis = _plain_attribute(node, "axis")
    if _plain_attribute(node, "broadcast", 0) and axis is not None:
        rank, other = _rank_of(node, 0), _rank_of(node, 1)
        missing = rank - (axis + rank if axis < 0 else axis) - other
        if missing > 0:
            # A Reshape to [0, ..., 0, 1, ..., 1] is the same in all opsets from 5 on, unlike Unsqueeze.
            target = _constant(node, np.array([0] * other + [1] * missing, np.int64), "shape")
            made = _graph_of(node).insert_before(node, "Reshape", [node.input(1), target], source=(node,))
            node.set_input(1, made.output)
    for name in ("axis", "broadcast", "consumed_inputs"):
        node.remove(name)


@_adapter(7, "Gemm")
def _gemm_7(node: Node) -> None:
    node.remove("broadcast")


@_adapter(7, "Dropout", "BatchNormalization")
def _is_test_7(node: Node) -> None:
    if not _plain_attribute(node, "is_test", 0):
        raise CannotConvert("it is in training mode (is_test=0): export the model for inference")
    node.remove("is_test")


# Opset 9 to 12: attributes become inputs


@_adapter(9, "BatchNormalization")
def _batch_norm_9(node: Node) -> None:
    if not _plain_attribute(node, "spatial", 1):
        raise CannotConvert("statistics per element (spatial=0) no longer exist")
    node.remove("spatial")


@_adapter(9, "Upsample")
def _upsample_9(node: Node) -> None:
    scales = _plain_attribute(node, "scales")
    node.set_input(1, _constant(node, np.array(scales, np.float32), "scales"))
    node.remove("scales")


@_adapter(10, "Upsample")
def _upsample_10(node: Node) -> None:
    node.set_op("Resize")


@_adapter(11, "Resize")
def _resize_11(node: Node) -> None:
    """Version 10 maps coordinates asymmetrically; nearest rounds down going up and up going down (as onnxruntime)."""
    scales = node.input(1)
    if _plain_attribute(node, "mode", "nearest") == "nearest":
        tensor = None if scales is None else scales.tensor
        if tensor is None:
            raise CannotConvert("whether it enlarges or shrinks is not known, and nearest rounds differently")
        factors = tensor.numpy()
        if not (factors >= 1).all() and not (factors <= 1).all():
            raise CannotConvert("it enlarges one axis and shrinks another, which nearest rounds differently")
        node.set("nearest_mode", "floor" if (factors >= 1).all() else "ceil")
    node.set("coordinate_transformation_mode", "asymmetric")
    node.set_inputs([node.input(0), _constant(node, np.zeros(0, np.float32), "roi"), scales])


@_adapter(13, "Resize")
def _resize_13(node: Node) -> None:
    if _plain_attribute(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise CannotConvert("coordinate_transformation_mode tf_half_pixel_for_nn no longer exists")


@_adapter(10, "Slice")
def _slice_10(node: Node) -> None:
    for index, name in enumerate(("starts", "ends", "axes"), 1):
        _ints_input(node, name, index)


@_adapter(10, "TopK")
def _top_k_10(node: Node) -> None:
    _ints_input(node, "k", 1)


@_adapter(10, "Dropout")
def _dropout_10(node: Node) -> None:
    if len(node.outputs) < 2 or not node.outputs[1].uses:
        return
    mask, to = node.outputs[1], _dtype_of(node)
    cast = _graph_of(node).insert_after(
        node, "Cast", [mask], attributes={"to": to.code}, types=[mask.type], source=(node,)
    )
    mask.replace_all_uses(cast.output, lambda use: use.node is not cast)
    mask.type = TensorType(DType.BOOL, mask.shape)


@_adapter(11, "Clip")
def _clip_11(node: Node) -> None:
    for index, name in ((1, "min"), (2, "max")):
        bound = _plain_attribute(node, name)
        if bound is not None:
            node.set_input(index, _constant(node, np.array(bound, _dtype_of(node).numpy), name))
        node.remove(name)


@_adapter(11, "Pad")
def _pad_11(node: Node) -> None:
    value = _plain_attribute(node, "value", 0.0)
    _ints_input(node, "pads", 1)
    if value:
        node.set_input(2, _constant(node, np.array(value, _dtype_of(node).numpy), "value"))
    node.remove("value")


@_adapter(11, "Scatter")
def _scatter_11(node: Node) -> None:
    node.set_op("ScatterElements")


@_adapter(12, "Dropout")
def _dropout_12(node: Node) -> None:
    ratio = _plain_attribute(node, "ratio")
    if ratio is not None:
        node.set_input(1, _constant(node, np.array(ratio, np.float32), "ratio"))
    node.remove("ratio")
    node.remove("seed")


# Opset 13


@_adapter(13, "Erf")
def _erf_13(node: Node) -> None:
    if not _dtype_of(node).is_float:
        raise CannotConvert("Erf no longer takes integers")


@_adapter(13, "Squeeze", "Unsqueeze", "ReduceSum")
def _axes_input(node: Node) -> None:
    _ints_input(node, "axes", 1)


@_adapter(13, "Split")
def _split_13(node: Node) -> None:
    _ints_input(node, "split", 1)


@_adapter(13, "Softmax", "LogSoftmax", "Hardmax")
def _softmax_13(node: Node) -> None:
    """Up to version 11 all axes from ``axis`` on are taken as one; from 13 on, ``axis`` alone."""
    axis = _plain_attribute(node, "axis", 1)
    data = node.input(0)
    rank = None if data is None or data.shape is None else len(data.shape)
    if axis == -1 or (rank is not None and axis == rank - 1):
        node.set("axis", -1)
        return
    graph = _graph_of(node)
    shape = graph.insert_before(node, "Shape", [data], source=(node,))
    rows = graph.insert_before(node, "Flatten", [data], attributes={"axis": axis}, source=(node,))
    normalized = graph.insert_before(node, node.op, [rows.output], attributes={"axis": -1}, source=(node,))
    node.remove("axis")
    node.set_op("Reshape")
    node.set_inputs([normalized.output, shape.output])


# Opset 14 to 21


@_adapter(14, "BatchNormalization")
def _batch_norm_14(node: Node) -> None:
    _drop_outputs(node, 1)


@_adapter(16, "RoiAlign")
def _roi_align_16(node: Node) -> None:
    node.set("coordinate_transformation_mode", "output_half_pixel")


@_adapter(
    18,
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSumSquare"),
)
def _reduce_18(node: Node) -> None:
    _axes_input(node)


@_adapter(18, "Split")
def _split_18(node: Node) -> None:
    if node.input(1) is None:
        node.set("num_outputs", len(node.outputs))


@_adapter(20, "DFT")
def _dft_20(node: Node) -> None:
    axis = _plain_attribute(node, "axis", 1)
    node.set_input(2, _constant(node, np.array(axis, np.int64), "axis"))
    node.remove("axis")


@_adapter(20, "GridSample")
def _grid_sample_20(node: Node) -> None:
    mode = _plain_attribute(node, "mode", "bilinear")
    node.set("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


@_adapter(21, "GroupNormalization")
def _group_norm_21(node: Node) -> None:
    """Scale and bias, one a group until version 18, are one a channel."""
    groups = _plain_attribute(node, "num_groups")
    data = node.input(0)
    channels = None if data is None else data.dim(1)
    if not isinstance(channels, int):
        raise CannotConvert("the number of channels is not known")
    for index in (1, 2):
        value = node.input(index)
        if value is None or value.tensor is None:
            raise CannotConvert("its scale or bias is computed")
        node.set_input(index, _constant(node, np.repeat(value.tensor.numpy(), channels // groups), "affine"))
