"""Small passes and models for the tests of this room."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Literal

from qir.errors import ModelError
from qir.ir import DType, Model, TensorType
from qir.pipeline import Effect, Pass, PassContext, PassResult, Registry


class Mode(enum.Enum):
    FAST = "fast"
    BEST = "best"


class Level(enum.Enum):
    LOW_LEVEL = 1
    HIGH_LEVEL = 2


@dataclass(frozen=True)
class Everything(Pass):
    """One option of every kind."""

    name: ClassVar[str] = "everything"
    effect: ClassVar[Effect] = Effect.EXACT
    flag: bool = False
    on: bool = True
    max_rounds: int = 3
    ratio: float = 0.5
    label: str = ""
    mode: Mode = Mode.FAST
    level: Level = Level.LOW_LEVEL
    kind: Literal["a", "b-c", 4] = "a"
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    limit: float | None = None
    text: str | None = None
    count: int | Literal["auto"] = "auto"
    maybe_names: tuple[str, ...] | None = None

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        return PassResult()


@dataclass(frozen=True)
class DropIdentity(Pass):
    """Removes every Identity."""

    name: ClassVar[str] = "drop-identity"
    effect: ClassVar[Effect] = Effect.EXACT

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        result = PassResult()
        for node in list(model.walk()):
            if node.op == "Identity" and (source := node.input(0)) is not None:
                with ctx.timer.scope("replace"):
                    node.output.replace_all_uses(source)
                    result.remarks.append(self.applied(node, "removed"))
                    node.erase()
                result.count("removed")
                result.changed = True
        return result


@dataclass(frozen=True)
class Fails(Pass):
    """Edits, then raises."""

    name: ClassVar[str] = "fails"
    effect: ClassVar[Effect] = Effect.EXACT
    bug: bool = False

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        next(iter(model.graph.nodes)).set_op("Broken")
        if self.bug:
            raise ZeroDivisionError("oops")
        raise ModelError("node 'x' is odd: make it even")


@dataclass(frozen=True)
class Needs(Pass):
    """Has an option without a default."""

    name: ClassVar[str] = "needs"
    effect: ClassVar[Effect] = Effect.ANALYSIS
    path: str

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        return PassResult()


REGISTRY = Registry().with_passes(Everything, DropIdentity, Fails, Needs)


def chain(length: int = 3) -> Model:
    """x -> Identity ... -> Relu -> y."""
    model = Model(opset_imports={"": 17})
    graph = model.graph
    type_ = TensorType(DType.FLOAT, ("N", 4))
    value = graph.add_input("x", type_)
    for index in range(length):
        value = graph.add_node("Identity", [value], name=f"id{index}", types=[type_], source=[f"id{index}"]).output
    graph.add_output(graph.add_node("Relu", [value], name="relu", outputs=["y"], types=[type_]).output)
    return model


def ops(model: Model) -> list[str]:
    return [node.op for node in model.walk()]
