"""The feeds that a model wants, read off the IR."""

from __future__ import annotations

from qir.ir import Model, SequenceType, TensorType
from qir.runtime.specs import InputSpec

__all__ = ["input_specs"]


def input_specs(model: Model) -> tuple[InputSpec, ...]:
    """One spec for each input that has no default (an input that is an initializer too may be left out)."""
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer:
            continue
        match value.type:
            case TensorType(dtype=dtype, shape=shape):
                specs.append(InputSpec(value.name, dtype.numpy if dtype.code else None, shape))
            case SequenceType():
                specs.append(InputSpec(value.name, None, None, "sequence"))
            case _:
                specs.append(InputSpec(value.name, None, None, "opaque"))
    return tuple(specs)
