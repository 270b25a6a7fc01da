"""The feeds that a model wants and the outputs that it gives, read off the IR."""

from __future__ import annotations

from qir.ir import Model, SequenceType, TensorType, Value
from qir.runtime.specs import InputSpec, OutputSpec

__all__ = ["input_specs", "output_specs"]


def input_specs(model: Model) -> tuple[InputSpec, ...]:
    """One spec for each input that has no default (an input that is an initializer too may be left out)."""
    return tuple(_spec(value) for value in model.graph.inputs if not value.is_initializer)


def output_specs(model: Model) -> tuple[OutputSpec, ...]:
    """One spec for each output."""
    return tuple(_spec(value) for value in model.graph.outputs)


def _spec(value: Value) -> InputSpec:
    match value.type:
        case TensorType(dtype=dtype, shape=shape):
            return InputSpec(value.name, dtype.numpy if dtype.code else None, shape)
        case SequenceType():
            return InputSpec(value.name, None, None, "sequence")
        case _:
            return InputSpec(value.name, None, None, "opaque")
