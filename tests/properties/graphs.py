"""Random valid ONNX models over many operators, for property tests and ``tools/fuzz_passes.py``.

Models have a dynamic batch axis, shared constants, several outputs, If and Loop bodies that capture, local functions,
and nodes that do nothing, twice the same, or only with constants: what the exact passes look for. Numbers stay
moderate, so that float re-association stays small, and only graph inputs decide discontinuous things (conditions,
comparisons): rounding can flip nothing.
"""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper

from tests.properties.maker import BOOL, FLOAT, Maker, Sample, Shape, Val, info_of
from tests.properties.steps import STEPS

__all__ = ["Sample", "feeds_of", "models"]


def local_functions(names: set[str], opset: int) -> list[onnx.FunctionProto]:
    imports = [helper.make_opsetid("", opset)]
    swish = [helper.make_node("Sigmoid", ["a"], ["s"], "s"), helper.make_node("Mul", ["a", "s"], ["b"], "m")]
    leaky = helper.make_node("LeakyRelu", ["a"], ["b"], "l")
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    made = {
        "Swish": helper.make_function("local", "Swish", ["a"], ["b"], swish, imports),
        "Leaky": helper.make_function("local", "Leaky", ["a"], ["b"], [leaky], imports, ["slope"]),
    }
    return [made[name] for name in sorted(names)]


@st.composite
def models(draw: st.DrawFn, most_steps: int = 12) -> Sample:
    """A model with inputs ``x`` [N,2,4,4], ``y`` [N,4] and ``flag``, and one to three outputs."""
    m = Maker(draw)
    inputs: dict[str, tuple[Shape, int]] = {"x": (("N", 2, 4, 4), FLOAT), "y": (("N", 4), FLOAT), "flag": ((), BOOL)}
    given = [m.keep(name, shape) for name, (shape, kind) in inputs.items() if kind == FLOAT]
    for _ in range(m.integer(1, most_steps)):
        m.choose(STEPS)(m)
    made = [value for value in m.scope.values if value not in given]
    if not made:
        made = [m.keep(m.one("Relu", ["x"]), given[0].shape)]
    read = {name for node in m.scope.nodes for name in node.input}
    unread = [value for value in made if value.name not in read]
    outputs = (unread or made)[-m.integer(1, 4) :]  # else most of the graph would be dead
    if (other := m.choose(made)) not in outputs:
        outputs.append(other)
    if m.integer(0, 7) == 0:  # the same value under another name
        outputs.append(Val(m.one("Identity", [outputs[0].name]), outputs[0].shape))
    scope = m.scopes[0]
    shown = [helper.make_tensor_value_info(name, kind, shape) for name, (shape, kind) in inputs.items()]
    if m.integer(0, 5) == 0:  # as files before IR version 4 list them
        listed = [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in scope.weights]
        shown += listed
    graph = helper.make_graph(scope.nodes, "random", shown, [info_of(value) for value in outputs], scope.weights)
    imports = [helper.make_opsetid("", m.opset)]
    if m.called:
        imports.append(helper.make_opsetid("local", 1))
    functions = local_functions(m.called, m.opset)
    return Sample(helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions), inputs)


def feeds_of(sample: Sample, batch: int, flag: bool) -> dict[str, np.ndarray]:
    """Inputs for a batch of that size."""
    rng = np.random.default_rng(batch)
    feeds: dict[str, np.ndarray] = {"flag": np.array(flag)}
    for name, (shape, kind) in sample.inputs.items():
        if kind == FLOAT:
            sizes = [batch if size == "N" else int(size) for size in shape]
            feeds[name] = rng.standard_normal(sizes).astype(np.float32)
    return feeds
