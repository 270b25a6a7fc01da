"""Which form ``emit-weight-only`` gives each weight, where the user leaves that to it."""

from __future__ import annotations

from typing import Literal

import numpy as np

from qir.calibration.collect import expose
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.codegen import runnable
from qir.ir import Model, Node, StaticQuant, Value
from qir.pipeline.contract import PassContext
from qir.quant.slots import Role, WeightSlot
from qir.runtime.session import OrtRunner

__all__ = ["FILLED", "WORTH_PADDING", "Form", "choose_forms"]

Form = Literal["auto", "contrib", "qdq", "fold"]

_FEW_ROWS = 2
_SMALL_WEIGHT = 1 << 16
_SMALL_TABLE = 1 << 20
_MUCH_MEMORY = 1 << 30
FILLED = 1.25
"""Times as long as a sum its blocks may be for the kernels that fill the last one up."""
WORTH_PADDING = 512
"""Bytes; about what the nodes that fill a folded block up when the model is loaded take themselves."""


def choose_forms(form: Form, model: Model, slots: list[WeightSlot], ctx: PassContext) -> dict[Node, Form]:
    """The form of each node, never ``auto``."""
    if form != "auto":
        return {slot.node: form for slot in slots}
    linear = [slot for slot in slots if slot.role is Role.LINEAR]
    if sum(4 * int(np.prod(slot.shape)) for slot in linear) > _MUCH_MEMORY:
        return {slot.node: "contrib" for slot in slots}
    rows = _rows(model, linear, ctx)
    forms: dict[Node, Form] = {slot.node: "contrib" for slot in slots}
    for slot in linear:
        count = rows.get(slot.node)
        few = count is None or count <= _FEW_ROWS
        fits = few and int(np.prod(slot.shape)) >= _SMALL_WEIGHT and _filled(slot) <= FILLED
        forms[slot.node] = "contrib" if fits else "fold"
    kept = {slot.value for slot in linear if forms[slot.node] == "contrib"}
    for slot in slots:
        if slot.role is Role.LOOKUP and slot.value not in kept and 4 * int(np.prod(slot.shape)) <= _SMALL_TABLE:
            forms[slot.node] = "fold"
    return forms


def _filled(slot: WeightSlot) -> float:
    """How many times as long as its sum the whole blocks of a weight are."""
    quant, length = slot.use.quant, slot.shape[slot.axis]
    if not isinstance(quant, StaticQuant) or quant.block_size is None:
        return 1.0
    return -(-length // quant.block_size) * quant.block_size / length


def _rows(model: Model, linear: list[WeightSlot], ctx: PassContext) -> dict[Node, int]:
    """How many vectors each operator multiplies: by shape, else as the first sample has it; missing where unknown."""
    found: dict[Node, int] = {}
    unknown: dict[Node, Value] = {}
    for slot in linear:
        data = slot.node.input(0)
        assert data is not None
        shape = data.shape
        if shape is not None and all(isinstance(size, int) for size in shape[:-1]):
            found[slot.node] = int(np.prod([size for size in shape[:-1] if isinstance(size, int)]))
        elif data.graph is model.graph and not data.is_constant:
            unknown[slot.node] = data
    if not unknown or ctx.calibration is None:
        return found
    feed = next(iter(open_data(ctx.calibration, input_specs(model))), None)
    if feed is None:
        return found
    exposed, names = expose(model, list(dict.fromkeys(unknown.values())))
    with runnable(exposed, annotations="drop") as source:
        arrays = OrtRunner(source).run(feed, list(names))
    counted = {names[name]: array.size // max(array.shape[-1], 1) for name, array in arrays.items()}
    found.update({node: counted[value] for node, value in unknown.items() if value in counted})
    return found
