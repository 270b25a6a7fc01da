"""Running one pass on IR text or ONNX models, and comparing what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser

from qir.codegen import to_bytes
from qir.frontend import import_model
from qir.ir import Model
from qir.ir.parser import parse_model
from qir.ir.printer import print_model
from qir.ops.shape_inference import infer
from qir.pipeline.contract import Pass, PassContext, PassResult
from qir.runtime.session import PLAIN, OrtRunner

HEADER = "model ir=10 opset=[{opset}]\n"


def ir(text: str, opset: int = 17) -> Model:
    """A model from the text of its graphs, types inferred."""
    model = parse_model(HEADER.format(opset=opset) + text)
    infer(model)
    return model


def onnx_text(text: str, opset: int = 17) -> Model:
    """A model from ONNX's own text form, types inferred."""
    model = import_model(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}'))
    infer(model)
    return model


def apply(pass_: Pass, model: Model) -> PassResult:
    """Run in a transaction; what the result says of changes has to be true, and a second run must change nothing."""
    journal = model.begin(pass_.name)
    result = pass_.run(model, PassContext())
    model.commit()
    assert result.changed == bool(journal.edits), (result, journal.counts())
    again = model.begin("again")
    second = pass_.run(model, PassContext())
    model.commit()
    assert not second.changed and not again.edits, (second.statistics, again.counts())
    return result


def plain(model: Model) -> str:
    """The text without provenance and types, which these tests are not about."""
    copy = model.clone()
    for node in copy.walk():
        node.provenance = "x"
        node.extra = None
        for value in node.outputs:
            value.type = None
    return print_model(copy).replace(' from="x"', "")


def becomes(pass_: Pass, before: str, after: str, opset: int = 17) -> PassResult:
    """Text in, pass, text out."""
    model = ir(before, opset)
    result = apply(pass_, model)
    assert plain(model) == plain(ir(after, opset))
    return result


def stays(pass_: Pass, text: str, opset: int = 17) -> PassResult:
    """The pass leaves this as it is."""
    model = ir(text, opset)
    result = apply(pass_, model)
    assert plain(model) == plain(ir(text, opset))
    assert not result.changed
    return result


def outputs(model: Model | onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """What onnxruntime computes without optimisations."""
    data = model.SerializeToString() if isinstance(model, onnx.ModelProto) else to_bytes(model)
    runner = OrtRunner(data, PLAIN)
    names = {spec.name for spec in runner.inputs}
    return runner.run({name: array for name, array in feeds.items() if name in names})


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    """Equal names and shapes; floats within ``tolerance`` of the largest number, anything else exactly."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for name in theirs:
            assert_close(ours[name], theirs[name], tolerance)
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, tolerance)
    elif isinstance(theirs, np.ndarray) and theirs.dtype.kind in "fV":
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        a, b = ours.astype(np.float64), theirs.astype(np.float64)
        scale = np.abs(b[np.isfinite(b)]).max(initial=1.0)
        if theirs.dtype.itemsize < 4:
            tolerance = max(tolerance, 4e-3)  # the runtime casts to float32 and back around other pieces
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)
    else:
        np.testing.assert_array_equal(ours, theirs)
