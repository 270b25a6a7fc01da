"""``convert-opset``: bring the model to a newer opset of the default domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qir.errors import OptionError
from qir.ir import Model
from qir.ops.opset import convert_opset, newest_opset
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult

__all__ = ["ConvertOpset"]


@dataclass(frozen=True)
class ConvertOpset(Pass):
    """Convert ops to opset ``to``: attributes that became inputs, changed meanings and removed ops included.

    Before, at opset 9::

        %y: f32[2,3] = Unsqueeze(%x) {axes=[0]}

    After, at opset 13::

        %y: f32[2,3] = Unsqueeze(%x, @y_axes)

    A model that is at ``to`` or above already stays as it is. A node that the newer opset cannot express is an error.
    """

    name: ClassVar[str] = "convert-opset"
    effect: ClassVar[Effect] = Effect.EXACT
    keeps_observed: ClassVar[bool] = True

    to: int = 17
    """The opset to convert to."""

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        if not 7 <= self.to <= newest_opset():
            raise OptionError(f"convert-opset: to={self.to} is no opset between 7 and {newest_opset()}")
        result = PassResult()
        version = model.opset()
        if version is not None and version > self.to:
            result.remarks.append(self.note(None, f"the model is at opset {version} already, it is not lowered"))
            return result
        old_ir_version = model.ir_version
        conversion = convert_opset(model, self.to)
        result.changed = version != self.to or bool(conversion.nodes) or model.ir_version != old_ir_version
        for kind, count in sorted(conversion.adapted.items()):
            result.count(kind, count)
        if version != self.to:
            text = f"opset {version} became {self.to}, {sum(conversion.adapted.values())} nodes changed their form"
            result.remarks.append(self.applied(None, text))
        return result
