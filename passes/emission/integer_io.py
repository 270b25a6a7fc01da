"""``integer-io``: inputs and outputs of the emitted model hand over codes instead of floats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.codegen import runnable
from qir.errors import DataError, OptionError, suggest
from qir.ir import DType, Interval, Model, Node, StaticQuant, Tensor, TensorType, Value
from qir.passes.lifting.codes import NotLiftable, static_type
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.pipeline.registry import load_target
from qir.quant.integer_io import IO_KEY, io_text
from qir.quant.schemes import activation_quant
from qir.runtime.session import OrtRunner

__all__ = ["IntegerIo"]

_CONTRIB = "com.microsoft"
_DTYPES = {"uint8": DType.UINT8, "int8": DType.INT8, "uint16": DType.UINT16, "int16": DType.INT16}
Ranges = Callable[[str], Interval]


@dataclass(frozen=True)
class IntegerIo(Pass):
    """Give inputs and outputs of an emitted model an integer type. ``types`` lists dtypes (``uint8``: all float inputs
    and outputs) and ``NAME=DTYPE`` (that one alone). An input that goes to a quantizer of that type takes the codes
    themselves, the quantizer is gone; an output that comes from a dequantizer likewise. Others get a quantizer of their
    own, with the range of the calibration samples. Scales and zero points stand in the model's metadata (``qir.io``).

    In pipeline text a named one stands in quotes: ``integer-io{types="image=uint8"}``.

    Before::

        graph (%x: f32[1,4]) -> (%y) { %q: u8[1,4] = QuantizeLinear(%x, @scale, @zero_point) ...

    After::

        graph (%x: u8[1,4]) -> (%y) { ...
    """

    name: ClassVar[str] = "integer-io"
    effect: ClassVar[Effect] = Effect.LOSSY

    types: tuple[str, ...] = ("uint8",)

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError for an unknown name or dtype, DataError where a range is needed and there are no
        samples."""
        result = PassResult()
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs if not value.is_initializer}
        outputs = {value.name: value for value in graph.outputs}
        wanted = self._wanted({**inputs, **outputs})
        opset = model.opset() or 1
        barriers = load_target(ctx.target).barriers
        ranges = _Ranges(model, ctx)
        types: dict[str, StaticQuant] = {}
        for name, dtype in wanted.items():
            if name in inputs:
                types[name] = _quantize_input(inputs[name], dtype, ranges, opset, barriers)
            else:
                types[name] = _quantize_output(outputs[name], dtype, ranges, opset)
            quant = types[name]
            side = "input" if name in inputs else "output"
            result.count(f"{side}s")
            text = f"{side} is {quant.dtype}, scale {quant.scale[0]:g}, zero point {quant.zero_point[0]}"
            result.remarks.append(self.applied((inputs | outputs)[name], text))
        if any(node.domain == _CONTRIB for node in graph.nodes) and model.opset(_CONTRIB) is None:
            model.opset_imports = {**model.opset_imports, _CONTRIB: 1}
        if types:
            model.metadata = {**(model.metadata or {}), IO_KEY: io_text(types)}
            result.changed = True
        return result

    def _wanted(self, values: Mapping[str, Value]) -> dict[str, DType]:
        wanted: dict[str, DType] = {}
        for text in self.types:
            name, equals, kind = text.rpartition("=")
            if kind not in _DTYPES:
                raise OptionError(f"unknown dtype {kind!r}{suggest(kind, _DTYPES)}: use one of {', '.join(_DTYPES)}")
            if not equals:
                found = {name: _DTYPES[kind] for name, value in values.items() if value.dtype is DType.FLOAT}
                wanted = {**found, **wanted}
            elif name not in values:
                raise OptionError(f"no input or output is called {name!r}{suggest(name, values)}")
            elif values[name].dtype is not DType.FLOAT:
                raise OptionError(f"{name!r} is {values[name].dtype}, only f32 inputs and outputs become integers")
            else:
                wanted[name] = _DTYPES[kind]
        return wanted


class _Ranges:
    """What the samples show of inputs and outputs, found when the first one is asked for."""

    def __init__(self, model: Model, ctx: PassContext) -> None:
        self.model = model.clone()
        self.samples = ctx.calibration
        self.found: dict[str, Interval] | None = None

    def __call__(self, name: str) -> Interval:
        if self.found is None:
            if self.samples is None:
                raise DataError(f"{name!r} has no quantizer, so its range must be seen: give samples with --calib FILE")
            with runnable(self.model) as source:
                runner = OrtRunner(source)
                samples = open_data(self.samples, input_specs(self.model))
                self.found = _span({**feed, **runner.run(feed)} for feed in samples)
        if name not in self.found:
            raise DataError(f"the samples show no range of {name!r}: give at least one with numbers in it")
        return self.found[name]


def _span(rows: Iterable[Mapping[str, object]]) -> dict[str, Interval]:
    bounds: dict[str, tuple[float, float]] = {}
    for row in rows:
        for name, array in row.items():
            if isinstance(array, np.ndarray) and array.dtype == np.float32 and array.size:
                low, high = bounds.get(name, (np.inf, -np.inf))
                bounds[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return {name: Interval(low, high) for name, (low, high) in bounds.items()}


def _quantize_input(value: Value, dtype: DType, ranges: Ranges, opset: int, barriers: frozenset[str]) -> StaticQuant:
    """Type the input; quantizers that made just these codes go, all else reads a dequantizer."""
    found = [(node, _type(node)) for node in value.users if node.op == "QuantizeLinear" and node.input(0) is value]
    quant = next((one for _, one in found if one is not None and one.dtype is dtype and one.axis is None), None)
    if quant is None:
        quant = activation_quant(ranges(value.name), dtype)
    gone = [node for node, one in found if one == quant]
    others = [use for use in value.uses if use.node not in gone]
    for node in gone:
        node.output.replace_all_uses(value)
        node.erase()
    if others:
        graph = value.graph
        assert graph is not None
        numbers = graph.add_node(
            "DequantizeLinear", [value, *_parameters(value, quant)], types=[value.type],
            outputs=[graph.fresh_name(f"{value.name}_dequantized")], before=graph.nodes.first,
            domain=_domain(dtype, opset),
        ).output  # fmt: skip
        behind = (
            _barrier(numbers) if any(use.node is not None and use.node.op in barriers for use in others) else numbers
        )
        for use in others:
            use.replace(behind if use.node is not None and use.node.op in barriers else numbers)
    value.type = TensorType(dtype, value.shape)
    return quant


def _barrier(value: Value) -> Value:
    """A ``Max`` of one operand: the runtime would make integer operators of some float ones right behind a dequantizer
    by itself, less accurately."""
    maker, graph = value.producer, value.graph
    assert maker is not None and graph is not None
    return graph.insert_after(maker, "Max", [value], types=[value.type]).output


def _quantize_output(value: Value, dtype: DType, ranges: Ranges, opset: int) -> StaticQuant:
    maker, graph = value.producer, value.graph
    assert graph is not None
    quant = _type(maker) if maker is not None and maker.op == "DequantizeLinear" else None
    codes = maker.input(0) if maker is not None else None
    if quant is None or quant.dtype is not dtype or quant.axis is not None or codes is None or codes.is_constant:
        quant = activation_quant(ranges(value.name), dtype)
        codes = graph.add_node(
            "QuantizeLinear", [value, *_parameters(value, quant)], types=[TensorType(dtype, value.shape)],
            outputs=[graph.fresh_name(f"{value.name}_quantized")], before=None if maker is None else maker.next,
            source=[] if maker is None else [maker], domain=_domain(dtype, opset),
        ).output  # fmt: skip
    value.replace_all_uses(codes, where=lambda use: use.is_graph_output and use.graph is graph)
    if maker is not None and maker.op == "DequantizeLinear" and not value.uses:
        maker.erase()
    return quant


def _domain(dtype: DType, opset: int) -> str:
    """Of the quantizers for a type: standard ONNX has those of 16 bits since opset 21, onnxruntime has its own."""
    return _CONTRIB if dtype.bits > 8 and opset < 21 else ""


def _parameters(value: Value, quant: StaticQuant) -> list[Value]:
    graph = value.graph
    assert graph is not None
    zero = np.asarray(quant.zero_point_array()).astype(quant.dtype.numpy)
    return [
        graph.add_initializer(f"{value.name}_io_scale", Tensor.of(np.asarray(quant.scale_array()))),
        graph.add_initializer(f"{value.name}_io_zero_point", Tensor.of(zero, quant.dtype)),
    ]


def _type(node: Node) -> StaticQuant | None:
    """The type of a QuantizeLinear or DequantizeLinear; None where it is not constant."""
    codes = node.output if node.op == "QuantizeLinear" else node.input(0)
    dtype = None if codes is None else codes.dtype
    try:
        return static_type(node.input(1), node.input(2), dtype or DType.UINT8, node.get("axis", 1))
    except NotLiftable:
        return None
