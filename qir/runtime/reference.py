"""The same interface over onnx.reference, ONNX's own (slow, numpy) evaluator: for ops that onnxruntime lacks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx.reference import ReferenceEvaluator

from qir.errors import ModelError
from qir.runtime.specs import Model, Output, specs_from_value_infos


class ReferenceRunner:
    """A model in `onnx.reference`. Raises ModelError when it does not load or fails on a feed."""

    def __init__(self, model: Model) -> None:
        try:
            proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else onnx.load(os.fspath(model))
            self._evaluator = ReferenceEvaluator(proto)
        except Exception as error:
            raise ModelError(f"onnx.reference {onnx.__version__} cannot load the model: {_line(error)}") from error
        constants = {tensor.name for tensor in proto.graph.initializer}
        self.inputs = tuple(s for s in specs_from_value_infos(proto.graph.input) if s.name not in constants)
        self.outputs = specs_from_value_infos(proto.graph.output)

    def run(self, feeds: Mapping[str, Any], outputs: Sequence[str] | None = None) -> dict[str, Output]:
        names = [spec.name for spec in self.outputs] if outputs is None else list(outputs)
        try:
            return dict(zip(names, self._evaluator.run(names, dict(feeds)), strict=True))
        except Exception as error:
            raise ModelError(f"onnx.reference failed while running the model: {_line(error)}") from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
