"""Each exact pass keeps the outputs of models that no one here wrote."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from qir.codegen import export_model
from qir.errors import QirError
from qir.frontend import import_model
from qir.ir import Model
from qir.ops.shape_inference import infer
from qir.passes.structure.canonicalize import Canonicalize
from qir.passes.structure.fold_constants import FoldConstants
from qir.passes.structure.folding.estimate import FOLDABLE, elements, result_sizes
from qir.passes.structure.fuse import Fuse
from qir.pipeline.contract import Pass
from qir.rewriting.edits import opset_of
from tests.conformance.cases import SOURCES, Case, cases
from tests.passes.support import apply, assert_close, outputs

PASSES = (Canonicalize(), FoldConstants(), Fuse())
ZOO = Path(__file__).resolve().parents[3] / "shared" / "zoo"


def changed_copies(model: Model, alone: bool = True) -> list[tuple[str, Model]]:
    """The model after all passes, and after each of them ``alone``, where that changes anything."""
    found = []
    for pipeline in (*((pass_,) for pass_ in PASSES if alone), (*PASSES, PASSES[0])):
        copy = model.clone()
        results = [_run(pass_, copy) for pass_ in pipeline]
        if any(results):
            found.append((",".join(pass_.name for pass_ in pipeline), copy))
    return found


def _run(pass_: Pass, model: Model) -> bool:
    changed = apply(pass_, model).changed
    if changed:
        infer(model)
    return changed


@pytest.mark.parametrize("source", [source for source in SOURCES if source != "light"])
def test_outputs_stay_on_the_conformance_models(source: str) -> None:
    changed = 0
    for case in cases(source):
        if case.feeds is None:
            continue
        try:
            expected = outputs(case.model, case.feeds)
        except (QirError, RuntimeError, TypeError, ValueError):
            continue  # an op that onnxruntime lacks
        model = import_model(case.model)
        infer(model)
        for what, copy in changed_copies(model, alone=source != "node"):
            changed += 1
            try:
                assert_close(outputs(copy, case.feeds), expected)
            except (AssertionError, QirError) as error:
                raise AssertionError(f"{case.name} after {what}: {error}") from error
    assert changed > 3


def constant_form(case: Case) -> onnx.ModelProto | None:
    """The case with its inputs turned into initializers, and a node behind each output, so that all of it can fold."""
    feeds = case.feeds or {}
    if not feeds or not all(isinstance(array, np.ndarray) for array in feeds.values()):
        return None
    proto = onnx.ModelProto()
    proto.CopyFrom(case.model)
    proto.ir_version = max(proto.ir_version, 4)
    del proto.graph.input[:]
    try:
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in feeds.items())
    except (TypeError, NotImplementedError, KeyError):
        return None
    for output in proto.graph.output:
        proto.graph.node.add(op_type="Identity", input=[output.name], output=[f"{output.name}__copy"])
        output.name = f"{output.name}__copy"
    return proto


def test_folding_computes_what_the_runtime_would() -> None:
    folded = 0
    for case in cases("node"):
        proto = constant_form(case)
        if proto is None:
            continue
        try:
            expected = outputs(proto, {})
        except (QirError, RuntimeError):
            continue
        model = import_model(proto)
        infer(model)
        folded += int(apply(FoldConstants(), model).statistics.get("folded-node", 0))
        try:
            assert_close(outputs(model, {}), expected, 1e-6)
        except (AssertionError, QirError) as error:
            raise AssertionError(f"{case.name}: {error}") from error
    assert folded > 600


def test_sizes_are_told_before_computing() -> None:
    told = 0
    for case in cases("node"):
        model = import_model(case.model)
        nodes = list(model.graph.nodes)
        feeds = case.feeds or {}
        if len(nodes) != 1 or nodes[0].op not in FOLDABLE or not _dense(feeds):
            continue
        node = nodes[0]
        try:
            expected = outputs(case.model, feeds)
        except (QirError, RuntimeError):
            continue
        operands = [None if value is None else feeds[value.name] for value in node.inputs]
        shapes = [None if array is None else array.shape for array in operands]
        assert opset_of(model, model.graph) >= 1
        sizes = result_sizes(node, shapes, lambda i, o=operands: tuple(int(x) for x in o[i].reshape(-1)))  # type: ignore[misc]
        for size, value in zip(sizes, node.outputs, strict=True):
            if value.name:
                real = expected[value.name].shape
                assert size == real if isinstance(size, tuple) else elements(size) >= int(np.prod(real)), case.name
                told += 1
    assert told > 600


def _dense(feeds: dict[str, Any]) -> bool:
    return all(isinstance(array, np.ndarray) for array in feeds.values())


def zoo() -> ModuleType | None:
    if not (ZOO / "load.py").is_file():
        return None
    spec = importlib.util.spec_from_file_location("zoo_load", ZOO / "load.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault("zoo_load", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


ZOO_MODELS = sorted(path.parent.name for path in ZOO.glob("*/meta.json")) or ["none"]


@pytest.mark.parametrize("name", ZOO_MODELS)
def test_outputs_stay_on_the_zoo(name: str) -> None:
    module = zoo()
    if module is None:
        pytest.skip("the model zoo is not beside this folder (../shared/zoo)")
    photos = any(entry.get("source") == "imagenet224" for entry in module.meta(name)["prep"].values())
    if photos and not (ZOO / "_shared" / "imagenet224_u8.npy").is_file():
        pytest.skip("the zoo's photos are not decoded (../shared/zoo/load.py does it, with Pillow)")
    path, feeds, _, _ = module.load(name, 1, 1)
    proto = onnx.load(path)
    model = import_model(proto)
    infer(model)
    expected = outputs(proto, feeds[0])
    for what, copy in changed_copies(model):
        try:
            assert_close(outputs(copy, feeds[0]), expected)
        except (AssertionError, QirError) as error:
            raise AssertionError(f"{name} after {what}: {error}") from error
        assert [value.name for value in export_model(copy).graph.output] == [value.name for value in proto.graph.output]
