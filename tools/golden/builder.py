"""A small ONNX graph builder: one method call per node, opset differences of common ops hidden behind named methods.

The golden models are written as ONNX directly, not through an exporter, so that each of them shows on purpose one way
in which exporters spell things (BatchNorm left alone, LayerNorm decomposed, weights listed as inputs ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
Shape = Sequence[int | str]

# The IR version that was current with each operator set; older files really do carry these numbers.
IR_VERSION = {9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


class GraphBuilder:
    """Collects nodes, weights, inputs and outputs of one graph; a body of If or Loop is another builder with a parent.

    Values are plain strings. Every node is named, and its first output is called ``<node name>_out``.
    """

    def __init__(self, opset: int, name: str, parent: GraphBuilder | None = None) -> None:
        self.opset = opset
        self.name = name
        self.parent = parent
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self._taken: dict[str, int] = {} if parent is None else parent._taken

    def _unique(self, name: str) -> str:
        count = self._taken.get(name, 0)
        self._taken[name] = count + 1
        return name if count == 0 else f"{name}_{count}"

    # -- interface ------------------------------------------------------------------------------------------------
    def input(self, name: str, dtype: Any, shape: Shape) -> str:
        """Declare an input of the graph (or an argument of a body)."""
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: Shape | None) -> None:
        """Make ``value`` an output called ``name``: the node that produces it is renamed, no Identity is added."""
        producer = next(node for node in self.nodes if value in node.output)
        for node in self.nodes:
            node.input[:] = [name if item == value else item for item in node.input]
        producer.output[:] = [name if item == value else item for item in producer.output]
        self.outputs.append(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
        )

    def weight(self, name: str, array: Array) -> str:
        """Store a weight as an initializer under exactly this name; asking twice for one name shares it."""
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(array.copy(order="C"), name)
        return name

    def floats(self, values: Any, name: str = "const") -> str:
        """A small float32 constant as an initializer with a generated name."""
        return self.weight(self._unique(name), np.asarray(values, np.float32))

    def ints(self, values: Any, name: str = "const") -> str:
        """A small int64 constant as an initializer with a generated name."""
        return self.weight(self._unique(name), np.asarray(values, np.int64))

    # -- nodes ----------------------------------------------------------------------------------------------------
    def add(self, op: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Append a node with one output and return that output's name."""
        return self.add_many(op, *inputs, outputs=1, name=name, **attributes)[0]

    def add_many(self, op: str, *inputs: str, outputs: int, name: str | None = None, **attributes: Any) -> list[str]:
        """Append a node with several outputs and return their names."""
        name = self._unique(name or op.lower())
        results = [f"{name}_out"] + [f"{name}_out{index}" for index in range(1, outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), results, name=name, **attributes))
        return results

    def unsqueeze(self, value: str, axes: list[int], name: str | None = None) -> str:
        """Unsqueeze; the axes are an input from opset 13 on, an attribute before."""
        if self.opset >= 13:
            return self.add("Unsqueeze", value, self.ints(axes, "axes"), name=name)
        return self.add("Unsqueeze", value, name=name, axes=axes)

    def squeeze(self, value: str, axes: list[int], name: str | None = None) -> str:
        """Squeeze; the axes are an input from opset 13 on, an attribute before."""
        if self.opset >= 13:
            return self.add("Squeeze", value, self.ints(axes, "axes"), name=name)
        return self.add("Squeeze", value, name=name, axes=axes)

    def reduce_mean(self, value: str, axes: list[int], keepdims: bool, name: str | None = None) -> str:
        """ReduceMean; the axes are an input from opset 18 on, an attribute before."""
        if self.opset >= 18:
            return self.add("ReduceMean", value, self.ints(axes, "axes"), name=name, keepdims=int(keepdims))
        return self.add("ReduceMean", value, name=name, axes=axes, keepdims=int(keepdims))

    def reshape(self, value: str, shape: list[int], name: str | None = None) -> str:
        """Reshape to a constant shape."""
        return self.add("Reshape", value, self.ints(shape, "shape"), name=name)

    def conv(self, value: str, name: str, weight: Array, bias: Array | None, *, stride: int = 1, group: int = 1) -> str:
        """Conv with "same" padding for odd kernels; the rank follows the weight's."""
        kernel = list(weight.shape[2:])
        inputs = [value, self.weight(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.weight(f"{name}.bias", bias))
        return self.add(
            "Conv",
            *inputs,
            name=name,
            kernel_shape=kernel,
            strides=[stride] * len(kernel),
            pads=[size // 2 for size in kernel] * 2,
            group=group,
        )

    def gemm(self, value: str, name: str, weight: Array, bias: Array) -> str:
        """Gemm with the weight stored as torch does: [out, in], transB = 1."""
        return self.add(
            "Gemm", value, self.weight(f"{name}.weight", weight), self.weight(f"{name}.bias", bias), name=name, transB=1
        )

    def linear(self, value: str, name: str, weight: Array, bias: Array | None = None) -> str:
        """MatMul, then Add if there is a bias: how exporters write a linear layer in three dimensions."""
        product = self.add("MatMul", value, self.weight(f"{name}.weight", weight.T), name=f"{name}/MatMul")
        if bias is None:
            return product
        return self.add("Add", self.weight(f"{name}.bias", bias), product, name=f"{name}/Add")

    # -- results --------------------------------------------------------------------------------------------------
    def graph(self) -> onnx.GraphProto:
        """The graph built so far."""
        return helper.make_graph(
            self.nodes, self.name, self.inputs, self.outputs, initializer=list(self.weights.values())
        )

    def model(self, *, weights_as_inputs: bool = False) -> onnx.ModelProto:
        """The finished, checked model; ``weights_as_inputs`` also lists weights as inputs, as IR version 3 demanded."""
        graph = self.graph()
        if weights_as_inputs:
            graph.input.extend(
                helper.make_tensor_value_info(item.name, item.data_type, item.dims) for item in graph.initializer
            )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=3 if weights_as_inputs else IR_VERSION[self.opset],
            producer_name="qir.tools.make_golden_models",
        )
        onnx.checker.check_model(model, full_check=True)
        return model
