"""A plug-in with a wrong rule, and models that it breaks at one known node."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qir.ir import DType, Model, Tensor, TensorType, Value
from qir.pipeline import Pipeline, Registry, default_registry

__all__ = ["PLUGIN", "chain", "feeds", "registry"]

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
from qir import Effect, Pass, PassContext, PassResult, RewritePass
from qir.rewriting import Any, Const, Op, Rule

@dataclass(frozen=True)
class DropOnes(RewritePass):
    """x * 1 -> x, but it takes 1.5 for 1 too."""

    name: ClassVar[str] = "drop-ones"
    effect: ClassVar[Effect] = Effect.EXACT

    def rules(self, model):
        nearly_one = Const(where=lambda array: array.size == 1 and abs(array.item() - 1) < 0.6)
        return [Rule("mul-by-one", Op("Mul", Any("x"), nearly_one), lambda match: match["x"])]

@dataclass(frozen=True)
class ByHand(Pass):
    """Does the same without rules. mode: counted, silent, crash, or before (damage outside of what it counts)."""

    name: ClassVar[str] = "by-hand"
    effect: ClassVar[Effect] = Effect.EXACT
    mode: str = "counted"

    def run(self, model, ctx):
        result = PassResult()
        for node in list(model.walk()):
            if self.mode == "before" and node.op == "Mul" and node.inputs[1].tensor.item() == 1.5:
                node.set_op("Div")
                result.changed = True
            elif node.op == "Mul" and (self.mode == "silent" or ctx.numbering.allow("one", node)):
                if self.mode == "crash" and node.inputs[1].tensor.item() == 1.5:
                    raise ZeroDivisionError("oops")
                if self.mode == "before":
                    continue
                node.output.replace_all_uses(node.input(0))
                node.erase()
                result.changed = True
        return result

@dataclass(frozen=True)
class Halve(Pass):
    """Rounds the factors of Mul to a multiple of 1/8, which is a little off."""

    name: ClassVar[str] = "halve"
    effect: ClassVar[Effect] = Effect.LOSSY
    step: float = 0.125

    def run(self, model, ctx):
        from qir.ir import Tensor
        import numpy as np
        result = PassResult()
        for value in model.graph.initializers:
            new = np.float32(round(value.tensor.item() / self.step) * self.step)
            if new != value.tensor.item():
                value.const = Tensor.of(new)
                result.changed = True
        return result
'''


def registry(folder: Path) -> Registry:
    """The built-in passes and those above, from a file in ``folder``."""
    path = folder / "sloppy.py"
    path.write_text(PLUGIN)
    return default_registry().with_plugin(path)


def pipeline(text: str, folder: Path) -> Pipeline:
    return Pipeline.parse(text, registry=registry(folder))


def chain(factors: list[float], filler: int = 1) -> Model:
    """x -> Mul by each factor (node ``mul<i>``) and ``filler`` pairs of Neg after it -> y; f32[4]."""
    model = Model(opset_imports={"": 17}, ir_version=8)
    graph = model.graph
    type_ = TensorType(DType.FLOAT, (4,))

    def node(op: str, name: str, *inputs: Value) -> Value:
        return graph.add_node(op, inputs, name=name, types=[type_], source=[name]).output

    value = graph.add_input("x", type_)
    for index, factor in enumerate(factors):
        constant = graph.add_initializer(f"c{index}", Tensor.of(np.float32(factor)))
        value = node("Mul", f"mul{index}", value, constant)
        for place in range(filler):
            value = node("Neg", f"neg{index}.{place}", value)
    output = graph.add_node("Identity", [value], name="last", outputs=["y"], types=[type_], source=["last"]).output
    graph.add_output(output)
    return model


def feeds(count: int = 2) -> dict[str, np.ndarray]:
    """Stacked samples."""
    return {"x": np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)}
