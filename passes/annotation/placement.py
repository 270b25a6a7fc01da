"""Writing down what a search decided, as a recipe that gives the same placement without searching."""

from __future__ import annotations

from qir.ir import Model, Node
from qir.pipeline.instruments import Instrument, PassRun
from qir.quant.recipe import Choice, Precision, Recipe

__all__ = ["PlacementRecorder", "placement"]


class PlacementRecorder(Instrument):
    """Keeps the placement as it stands before the annotations are emitted: ``recipe``, None before that."""

    def __init__(self) -> None:
        self.recipe: Recipe | None = None

    def before_pass(self, run: PassRun) -> None:
        if self.recipe is None and run.pass_.name.startswith("emit-"):
            self.recipe = placement(run.model)


def placement(model: Model) -> Recipe:
    """A choice for every node of an annotated model about which a pass has decided, by the name that it has in the
    imported model."""
    taken: set[str] = set()
    choices: list[Choice] = []
    for node in model.walk():
        name, precision = _name(node), _precision(node)
        if precision is not None and name and name not in taken:
            taken.add(name)
            choices.append(Choice(name, precision, "the search"))
    order = {"float": 0, "int8-dynamic": 1, "int8": 2}
    return Recipe(tuple(sorted(choices, key=lambda choice: order[str(choice.precision)])))


def _precision(node: Node) -> Precision | None:
    if node.kernel is None:
        return None
    return "float" if node.kernel == "float" else "int8-dynamic" if node.kernel == "dynamic" else "int8"


def _name(node: Node) -> str:
    sources = node.sources
    if not sources or node.name in sources:
        return node.label
    return sources[0]
