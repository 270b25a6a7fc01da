"""What random graphs are made of: each step adds a few nodes that the exact passes look for, or must not touch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.properties.maker import BOOL, FLOAT, INT, Maker, Scope, Val, info_of

__all__ = ["STEPS", "Step"]

Step = Callable[[Maker], None]
STEPS: list[Step] = []


def step(weight: int = 1) -> Callable[[Step], Step]:
    def register(function: Step) -> Step:
        STEPS.extend([function] * weight)
        return function

    return register


@step(2)
def unary(m: Maker) -> None:
    if x := m.pick():
        op = m.choose(("Relu", "Neg", "Abs", "Sigmoid", "Tanh", "Identity", "Softplus", "Erf", "LeakyRelu", "Ceil"))
        if op != "Ceil":  # not continuous
            m.keep(m.one(op, [x.name]), x.shape)
        elif m.opset >= 14:
            m.keep(m.one("HardSwish", [x.name]), x.shape)


@step(3)
def with_constant(m: Maker) -> None:
    """A constant of a shape that broadcasts, on either side."""
    if x := m.pick():
        static = [1 if isinstance(size, str) else size for size in x.shape]
        shapes: list[list[int]] = [[], [1], static[-1:], [1] * x.rank, static]
        if x.rank >= 3:
            shapes += [[static[1], *[1] * (x.rank - 2)], [1, static[1], *[1] * (x.rank - 2)]]
        shape = m.choose(shapes)
        op = m.choose(("Add", "Mul", "Sub", "Div"))
        pair = [x.name, m.weight(shape, positive=op == "Div")]
        m.keep(m.one(op, pair if op == "Div" or m.flag() else pair[::-1]), x.shape)


@step(2)
def binary(m: Maker) -> None:
    if x := m.pick():
        y = m.pick(lambda value: value.shape == x.shape)
        op = m.choose(("Add", "Sub", "Max", "Min", "Mul"))
        if op == "Mul" and m.products >= 3:  # squares of squares leave the range of floats
            op = "Add"
        m.products += op == "Mul"
        m.keep(m.one(op, [x.name, (y or x).name]), x.shape)


@step()
def twice(m: Maker) -> None:
    """Two nodes that compute the same, and something that reads both."""
    if x := m.pick():
        op = m.choose(("Relu", "Sigmoid", "Neg"))
        a, b = m.one(op, [x.name]), m.one(op, [x.name])
        m.keep(a, x.shape)
        m.keep(m.one("Sub" if m.flag() else "Add", [a, b]), x.shape)


@step()
def clip(m: Maker) -> None:
    if x := m.pick():
        low, high = m.choose(((0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 2.0), (-1e9, 1e9)))
        names = [x.name, *("" if b is None else m.tensor(np.float32(b)) for b in (low, high))]
        m.keep(m.one("Clip", names if names[2] else names[:2]), x.shape)


@step(2)
def matmul(m: Maker) -> None:
    x = m.pick(lambda value: value.rank >= 2 and isinstance(value.shape[-1], int))
    if x is None:
        return
    k, n = int(x.shape[-1]), m.choose((1, 3, 4))
    if x.rank == 2 and m.flag():
        attributes: dict[str, Any] = {}
        trans_b = m.flag()
        if trans_b:
            attributes["transB"] = 1
        if m.flag():
            attributes["alpha"] = m.choose((1.0, 0.5))
            attributes["beta"] = m.choose((1.0, 2.0))
        inputs = [x.name, m.weight((n, k) if trans_b else (k, n), 0.5)]
        if m.integer(0, 2):
            inputs.append(m.weight(m.choose(((n,), (1, n), (1,), ()))))
        m.keep(m.one("Gemm", inputs, **attributes), (*x.shape[:-1], n))
        return
    y = m.one("MatMul", [x.name, m.weight((k, n), 0.5)])
    if m.flag():
        pair = [y, m.weight(m.choose(((n,), (1, n), ())))]
        y = m.one("Add", pair if m.flag() else pair[::-1])
    m.keep(y, (*x.shape[:-1], n))


@step(3)
def convolution(m: Maker) -> None:
    x = m.pick(lambda value: value.rank == 4 and all(isinstance(size, int) for size in value.shape[1:]))
    if x is None:
        return
    n, c, h, w = x.shape
    assert isinstance(c, int) and isinstance(h, int) and isinstance(w, int)
    group = c if m.integer(0, 2) == 0 else 1
    out = c if group == c else m.choose((2, 4))
    k = m.choose((1, 3)) if h >= 3 and w >= 3 else 1
    pad = k // 2
    source = x.name
    if k == 3 and m.integer(0, 2) == 0:
        source, pad = padded(m, source, 4, [0, 0, 1, 1] * 2), 0
    inputs = [source, m.weight((out, c // group, k, k), 0.4)]
    if m.flag():
        inputs.append(m.weight((out,)))
    attributes = {"pads": [pad] * 4} if pad else {}
    y = m.one("Conv", inputs, group=group, **attributes)
    if m.integer(0, 2):
        y = m.one("BatchNormalization", [y, *(m.weight((out,), positive=i in (0, 3)) for i in range(4))])
    if m.flag():
        y = m.one("Relu", [y])
    m.keep(y, (n, out, h, w))


def padded(m: Maker, x: str, rank: int, pads: list[int]) -> str:
    return m.one("Pad", [x, m.ints(pads)] if m.flag() else [x, m.ints(pads), m.tensor(np.float32(0))])


@step()
def pool(m: Maker) -> None:
    x = m.pick(lambda value: value.rank == 4 and all(isinstance(s, int) and s >= 2 for s in value.shape[2:]))
    if x is None:
        return
    n, c, h, w = x.shape
    assert isinstance(h, int) and isinstance(w, int)
    match m.integer(0, 3):
        case 0:
            m.keep(m.one("MaxPool", [x.name], kernel_shape=[2, 2], strides=[2, 2]), (n, c, h // 2, w // 2))
        case 1:
            name = m.one("AveragePool", [x.name], kernel_shape=[2, 2], strides=[1, 1])
            m.keep(name, (n, c, h - 1, w - 1))
        case 2:
            m.keep(m.one("GlobalAveragePool", [x.name]), (n, c, 1, 1))
        case _:
            m.keep(m.axes_op("ReduceMean", x.name, [2, 3], 18, keepdims=1), (n, c, 1, 1))


@step(2)
def transpose(m: Maker) -> None:
    if x := m.pick(lambda value: value.rank >= 2):
        perm = m.order(x.rank)
        y = m.one("Transpose", [x.name], perm=perm)
        if m.flag():
            m.keep(m.one("Transpose", [y], perm=[perm.index(i) for i in range(x.rank)]), x.shape)
        elif perm[0] == 0 or not x.dynamic:
            m.keep(y, [x.shape[axis] for axis in perm])


@step(2)
def reshape(m: Maker) -> None:
    """To two axes and, perhaps, back; the target a constant, or worked out from the shape at run time."""
    x = m.pick(lambda value: value.rank >= 2 and all(isinstance(size, int) for size in value.shape[1:]))
    if x is None:
        return
    rest = [int(size) for size in x.shape[1:]]
    flat = int(np.prod(rest))
    y = (
        m.one("Flatten", [x.name], axis=1)
        if m.flag()
        else m.one("Reshape", [x.name, m.ints([m.choose((0, -1)), flat])])
    )
    if m.flag():
        m.keep(y, (x.shape[0], flat))
        return
    if m.flag():
        target = m.ints([0 if m.flag() else -1, *rest])
    else:
        shape = m.one("Shape", [x.name])
        first = m.one("Gather", [shape, m.ints([0])], axis=0)
        target = m.one("Concat", [first, m.ints(rest)], axis=0)
    m.keep(m.one("Reshape", [y, target]), x.shape)


@step()
def squeeze(m: Maker) -> None:
    if x := m.pick(lambda value: value.rank <= 4):
        axis = m.integer(1, x.rank) if x.rank else 0
        y = m.axes_op("Unsqueeze", x.name, [axis], 13)
        if m.flag():
            m.keep(m.axes_op("Squeeze", y, [axis], 13), x.shape)
        elif x.rank < 4:
            m.keep(y, (*x.shape[:axis], 1, *x.shape[axis:]))


@step()
def slice_concat(m: Maker) -> None:
    """Cut along an axis, and put together again, in order or not."""
    x = m.pick(lambda value: value.rank >= 2 and isinstance(value.shape[-1], int) and value.shape[-1] >= 2)
    if x is None:
        return
    axis, size = x.rank - 1, int(x.shape[-1])
    cut = m.integer(1, size - 1)
    if m.flag():
        parts = [
            m.one("Slice", [x.name, m.ints([a]), m.ints([b]), m.ints([axis])])
            for a, b in ((0, cut), (cut, m.choose((size, 2**31 - 1, 2**63 - 1))))
        ]
    elif m.opset >= 13:
        parts = m.add("Split", [x.name, m.ints([cut, size - cut])], 2, axis=axis)
    else:
        parts = m.add("Split", [x.name], 2, axis=axis, split=[cut, size - cut])
    if m.flag():
        m.keep(parts[0], (*x.shape[:-1], cut))
    if m.flag():
        m.keep(m.one("Concat", parts if m.flag() else parts[::-1], axis=m.choose((axis, -1))), x.shape)


@step()
def nothing(m: Maker) -> None:
    """What changes nothing."""
    if x := m.pick():
        match m.integer(0, 5):
            case 0:
                y = m.one("Cast", [m.one("Cast", [x.name], to=TensorProto.DOUBLE)], to=FLOAT)
            case 1:
                y = m.one("Dropout", [x.name])
            case 2:
                y = m.one("Expand", [x.name, m.ints([1] * max(x.rank, 1))]) if x.rank else m.one("Identity", [x.name])
            case 3:
                y = padded(m, x.name, x.rank, [0] * (2 * x.rank)) if x.rank else m.one("Identity", [x.name])
            case 4:
                y = m.one("Concat", [x.name], axis=0) if x.rank else m.one("Identity", [x.name])
            case _:
                y = m.one("Tile", [x.name, m.ints([1] * x.rank)]) if x.rank else m.one("Identity", [x.name])
        m.keep(y, x.shape)


@step()
def constant_expression(m: Maker) -> None:
    c = m.one(m.choose(("Neg", "Abs", "Sigmoid")), [m.weight((4,))])
    if m.flag():
        c = m.one("Add", [c, m.weight((4,))])
    m.keep(c, (4,))


@step()
def composed(m: Maker) -> None:
    """The pieces of what newer opsets have as one operator."""
    x = m.pick(lambda value: value.rank >= 2 and isinstance(value.shape[-1], int) and value.shape[-1] > 1)
    if x is None:
        return
    match m.integer(0, 3):
        case 0:
            m.products += 1
            y = m.one("Mul", [x.name, m.one("Sigmoid", [x.name])])
        case 1:
            erf = m.one("Erf", [m.one("Div", [x.name, m.tensor(np.float32(np.sqrt(2)))])])
            half = m.one("Mul", [x.name, m.one("Add", [erf, m.tensor(np.float32(1))])])
            y = m.one("Mul", [half, m.tensor(np.float32(0.5))])
        case 2:
            size = int(x.shape[-1])
            mean = m.axes_op("ReduceMean", x.name, [-1], 18)
            centred = m.one("Sub", [x.name, mean])
            square = m.one("Pow", [centred, m.tensor(np.float32(2))])
            variance = m.axes_op("ReduceMean", square, [-1], 18)
            std = m.one("Sqrt", [m.one("Add", [variance, m.tensor(np.float32(1e-5))])])
            scaled = m.one("Mul", [m.one("Div", [centred, std]), m.weight((size,))])
            y = m.one("Add", [scaled, m.weight((size,))])
        case _:
            six = m.one(
                "Clip",
                [m.one("Add", [x.name, m.tensor(np.float32(3))]), m.tensor(np.float32(0)), m.tensor(np.float32(6))],
            )
            y = m.one("Div", [m.one("Mul", [x.name, six]), m.tensor(np.float32(6))])
    m.keep(y, x.shape)


@step()
def softmax(m: Maker) -> None:
    if x := m.pick(lambda value: value.rank >= 2):
        m.keep(m.one("Softmax", [x.name], axis=x.rank - 1), x.shape)


@step()
def where(m: Maker) -> None:
    """A mask that depends on graph inputs only."""
    x = m.pick(lambda value: value.shape == ("N", 4))
    if x is not None:
        mask = m.one("Greater", ["y", m.tensor(np.float32(0))])
        y = m.pick(lambda value: value.shape == x.shape) or x
        m.keep(m.one("Where", [mask, x.name, y.name]), x.shape)


@step()
def call(m: Maker) -> None:
    """A local function, with an attribute of its own or without."""
    if x := m.pick():
        name = m.choose(("Swish", "Leaky"))
        m.called.add(name)
        attributes = {"slope": m.choose((0.1, 0.5))} if name == "Leaky" else {}
        m.products += 1
        m.keep(m.one(name, [x.name], domain="local", **attributes), x.shape)


@step(2)
def neutral(m: Maker) -> None:
    """Arithmetic that changes nothing, or nearly: also what must not be taken for it."""
    if x := m.pick():
        op, number = m.choose(
            (
                ("Add", 0.0),
                ("Sub", 0.0),
                ("Mul", 1.0),
                ("Div", 1.0),
                ("Pow", 1.0),
                ("Mul", 0.0),
                ("Mul", -1.0),
                ("Add", 1e-3),
                ("Max", -3e38),
                ("Min", 3e38),
            )
        )
        shape = m.choose(((), (1,), (1,) * x.rank, (1,) * (x.rank + 1)))
        made = x.shape if len(shape) <= x.rank else (1, *x.shape)
        if len(made) <= 4:
            m.keep(m.one(op, [x.name, m.tensor(np.full(shape, number, np.float32))]), made)


@step()
def twofold(m: Maker) -> None:
    """The same again, which is nothing, or the same as once."""
    if x := m.pick():
        op = m.choose(("Neg", "Relu", "Abs", "Identity", "Clip", "Sigmoid"))
        y = m.one(op, [x.name])
        if m.integer(0, 3) == 0:
            m.keep(y, x.shape)
        m.keep(m.one(op, [y]), x.shape)


@step()
def reduce(m: Maker) -> None:
    x = m.pick(lambda value: value.rank >= 2)
    if x is None:
        return
    axis, keep = m.integer(1, x.rank - 1), m.flag()
    op = m.choose(("ReduceMean", "ReduceMax", "ReduceSum"))
    since = 13 if op == "ReduceSum" else 18
    name = m.axes_op(op, x.name, [axis if m.flag() else axis - x.rank], since, keepdims=int(keep))
    m.keep(name, [1 if i == axis else size for i, size in enumerate(x.shape) if keep or i != axis])


@step()
def gather(m: Maker) -> None:
    x = m.pick(lambda value: value.rank >= 2 and isinstance(value.shape[-1], int) and value.shape[-1] >= 1)
    if x is None:
        return
    size = int(x.shape[-1])
    if m.flag():
        index = m.tensor(np.array(m.integer(-size, size - 1), np.int64))
        m.keep(m.one("Gather", [x.name, index], axis=x.rank - 1), x.shape[:-1])
    else:
        picked = [m.integer(0, size - 1) for _ in range(m.integer(1, 3))]
        m.keep(m.one("Gather", [x.name, m.ints(picked)], axis=-1), (*x.shape[:-1], len(picked)))


@step()
def stride(m: Maker) -> None:
    """Slices with steps and from the end."""
    x = m.pick(lambda value: value.rank >= 2 and isinstance(value.shape[-1], int) and value.shape[-1] >= 2)
    if x is None:
        return
    size = int(x.shape[-1])
    start, end, by = m.choose(((0, size, 2), (-1, -(2**31), -1), (1, -1, 1), (-size, size, 1)))
    inputs = [x.name, *(m.ints([number]) for number in (start, end, m.choose((-1, x.rank - 1)), by))]
    m.keep(m.one("Slice", inputs), (*x.shape[:-1], len(range(size)[slice(start, end if end > -size else None, by)])))


@step()
def join_constant(m: Maker) -> None:
    x = m.pick(lambda value: value.rank >= 1 and not value.dynamic)
    if x is not None:
        c = m.weight([int(size) for size in x.shape])
        m.keep(m.one("Concat", [x.name, c, x.name], axis=0), (3 * int(x.shape[0]), *x.shape[1:]))


@step()
def spread(m: Maker) -> None:
    """Ones of a size that is known at run time, or an Expand to it."""
    if x := m.pick(lambda value: value.rank >= 1):
        shape = m.one("Shape", [x.name])
        if m.flag():
            value = numpy_helper.from_array(np.array([m.choose((0.0, 1.0))], np.float32))
            ones = m.one("ConstantOfShape", [shape], value=value)
            m.keep(m.one("Add", [x.name, ones]), x.shape)
        else:
            m.keep(m.one("Expand", [m.weight((1,)), shape]), x.shape)


@step()
def rounding(m: Maker) -> None:
    """A cast that loses bits, and must stay; on an input, so that no rounding before it can flip it."""
    y = m.one("Cast", [m.one("Cast", ["y"], to=m.choose((TensorProto.FLOAT16, TensorProto.INT32, INT)))], to=FLOAT)
    m.keep(y, ("N", 4))


@step()
def logic(m: Maker) -> None:
    """Conditions on an input, constants among them."""
    a = m.one("Greater", ["y", m.weight((4,))])
    b = m.one("Not", [a]) if m.flag() else m.tensor(np.array([True, False, True, True]))
    c = m.one(m.choose(("And", "Or")), [a, b])
    x = m.pick(lambda value: value.shape == ("N", 4))
    assert x is not None
    m.keep(m.one("Where", [c, x.name, m.weight(m.choose(((), (4,))))]), ("N", 4))


@step()
def chosen(m: Maker) -> None:
    """A Where over a constant condition."""
    if x := m.pick(lambda value: value.rank >= 1):
        condition = m.tensor(np.array(m.choose(([True], [False]))))
        y = m.pick(lambda value: value.shape == x.shape) or x
        m.keep(m.one("Where", [condition, x.name, y.name]), x.shape)


@step()
def spare_results(m: Maker) -> None:
    """Nodes with results that nobody reads."""
    x = m.pick(lambda value: value.rank == 4 and all(isinstance(s, int) and s >= 2 for s in value.shape[2:]))
    if x is None or m.flag():
        if y := m.pick():
            m.keep(m.add("Dropout", [y.name], 2)[0], y.shape)
        return
    n, c, h, w = x.shape
    assert isinstance(h, int) and isinstance(w, int)
    m.keep(m.add("MaxPool", [x.name], 2, kernel_shape=[2, 2], strides=[2, 2])[0], (n, c, h // 2, w // 2))


@step()
def transposed_convolution(m: Maker) -> None:
    x = m.pick(lambda value: value.rank == 4 and all(isinstance(size, int) and size <= 8 for size in value.shape[1:]))
    if x is None:
        return
    n, c, h, w = x.shape
    assert isinstance(c, int) and isinstance(h, int) and isinstance(w, int)
    y = m.one("ConvTranspose", [x.name, m.weight((c, 2, 2, 2), 0.4)], strides=[2, 2])
    if m.flag():
        y = m.one("BatchNormalization", [y, *(m.weight((2,), positive=i in (0, 3)) for i in range(4))])
    m.keep(y, (n, 2, 2 * h, 2 * w))


@step(2)
def branches(m: Maker) -> None:
    """An If whose condition is a constant or known at run time, with bodies that read what stands outside."""
    x = m.pick()
    if x is None or len(m.scopes) > 2:
        return
    condition = m.tensor(np.array(m.flag())) if m.integer(0, 2) == 0 else "flag"
    bodies = [body(m, x) for _ in range(2)]
    m.keep(m.one("If", [condition], then_branch=bodies[0], else_branch=bodies[1]), x.shape)


def body(m: Maker, x: Val, parameters: Sequence[onnx.ValueInfoProto] = ()) -> onnx.GraphProto:
    m.scopes.append(Scope())
    for info in parameters:
        if info.type.tensor_type.elem_type == FLOAT:
            m.keep(info.name, x.shape)
    for _ in range(m.integer(0, 3)):
        m.choose(STEPS)(m)
    made = [
        value
        for value in m.scope.values
        if value.shape == x.shape and not any(value.name == p.name for p in parameters)
    ]
    result = made[-1].name if made and m.integer(0, 3) else m.one(m.choose(("Relu", "Identity", "Neg")), [x.name])
    scope = m.scopes.pop()
    outputs = [info_of(Val(result, x.shape))]
    if parameters:
        keep_on = "on" + result
        scope.nodes.append(helper.make_node("Identity", [parameters[1].name], [keep_on], f"n_{keep_on}"))
        outputs = [helper.make_tensor_value_info(keep_on, BOOL, []), *outputs]
    return helper.make_graph(scope.nodes, m.fresh("body"), list(parameters), outputs, scope.weights)


@step()
def loop(m: Maker) -> None:
    """A few rounds over one carried value."""
    x = m.pick()
    if x is None or len(m.scopes) > 1:
        return
    carried = m.fresh("p")
    parameters = [
        helper.make_tensor_value_info(m.fresh("i"), INT, []),
        helper.make_tensor_value_info(m.fresh("on"), BOOL, []),
        info_of(Val(carried, x.shape)),
    ]
    products, m.products = m.products, 3  # none inside: they would be repeated
    inner = body(m, Val(carried, x.shape), parameters)
    m.products = products
    rounds = m.tensor(np.array(m.choose((0, 1, 2)), np.int64))
    m.keep(m.one("Loop", [rounds, m.choose(("", m.tensor(np.array(True)))), x.name], body=inner), x.shape)
