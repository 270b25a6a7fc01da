"""A form of a model that a runtime can load."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qir.codegen.exporter import model_message
from qir.codegen.graphs import Annotations
from qir.codegen.saving import save
from qir.ir import Model

__all__ = ["runnable"]

MOST_IN_MEMORY = 1 << 30


@contextmanager
def runnable(model: Model, *, annotations: Annotations = "error") -> Iterator[bytes | str]:
    """The serialized model, or, above 1 GiB, the path of a temporary file with its weights beside it.

    Both are what onnxruntime and qir.runtime take. The file lasts as long as the block. Raises QirError as ``to_bytes``
    does.
    """
    message = model_message(model, annotations=annotations)
    if message.size <= MOST_IN_MEMORY:
        yield message.to_bytes()
        return
    del message
    with tempfile.TemporaryDirectory(prefix="qir-") as folder:
        path = Path(folder) / "model.onnx"
        save(model, path, external_data=True, annotations=annotations)
        yield str(path)
