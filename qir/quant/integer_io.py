"""Integer inputs and outputs of a model: what their codes stand for, written into the model for its callers.

The metadata property ``qir.io`` holds a JSON object: for each integer input or output its ``dtype``, ``scale`` and
``zero_point``; a code q stands for ``(q - zero_point) * scale``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from qir.errors import ModelError
from qir.ir import DType, StaticQuant

__all__ = ["IO_KEY", "io_text", "read_io"]

IO_KEY = "qir.io"


def io_text(types: Mapping[str, StaticQuant]) -> str:
    """What goes into the metadata; the types are per tensor."""
    return json.dumps(
        {
            name: {"dtype": quant.dtype.numpy.name, "scale": quant.scale[0], "zero_point": quant.zero_point[0]}
            for name, quant in types.items()
        }
    )


def read_io(metadata: Mapping[str, str] | None) -> dict[str, StaticQuant]:
    """The integer inputs and outputs that a model's metadata names; empty where there are none.

    Raises ModelError where the property is there but says something else.
    """
    text = (metadata or {}).get(IO_KEY)
    if text is None:
        return {}
    try:
        return {
            name: StaticQuant.per_tensor(DType.from_numpy(entry["dtype"]), entry["scale"], entry["zero_point"])
            for name, entry in json.loads(text).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the model's metadata property {IO_KEY!r} is damaged ({error}): emit it again") from error
