"""Other libraries' graph passes as passes of ours: the model goes out as a ModelProto, and what comes back replaces it.

    from qir.interop import GraphSurgeon, OnnxIrPass, OnnxscriptRules

    Pipeline(["canonicalize", OnnxIrPass(CommonSubexpressionEliminationPass()), GraphSurgeon(my_function), "fuse"])

They go into Python lists; they have no text form, since what they wrap has none. The verifier, `--verify-numerics` and
the journal watch them like any other pass.
"""

from __future__ import annotations

import traceback
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from qir.errors import ModelError, QirError, UnsupportedError
from qir.ir import Model, UseQuantMarker
from qir.pipeline import Effect, Pass, PassContext, PassResult

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphSurgeon", "OnnxIrPass", "OnnxscriptRules"]


@dataclass(frozen=True, init=False)
class ForeignPass(Pass):
    """The detour that all three take."""

    effect: ClassVar[Effect] = Effect.EXACT

    wrapped: Any = field(init=False)

    def __init__(self, wrapped: Any, *, effect: Effect = Effect.EXACT) -> None:
        object.__setattr__(self, "wrapped", wrapped)
        # What a wrapped function does to the numbers only its user knows.
        object.__setattr__(self, "effect", effect)

    @abstractmethod
    def transform(self, proto: onnx.ModelProto) -> onnx.ModelProto | None:
        """The model after the foreign pass, None where it changed nothing."""

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises UnsupportedError where the model carries quantization annotations, which a ModelProto cannot hold,
        where inputs or outputs were changed, or where the library is not installed; ModelError where it raised."""
        from qir.codegen import export_model
        from qir.frontend import import_model
        from qir.interop.swap import replace_content

        for value in model.values():
            if value.quant is not None or any(use.quant is not UseQuantMarker.INHERIT for use in value.uses):
                raise UnsupportedError(
                    f"value {value.name!r} carries a quantization annotation, which ONNX cannot express: "
                    "run it before 'quantize' or after 'emit-qdq'"
                )
        try:
            proto = self.transform(export_model(model, strip_provenance=True))
        except QirError:
            raise
        except Exception as error:
            said = f"{_name(self.wrapped)} raised {type(error).__name__}: {error}{_line(self.wrapped, error)}"
            raise ModelError(said) from error
        result = PassResult()
        if proto is not None:
            before = sum(1 for _ in model.walk())
            replace_content(model, import_model(proto))
            result.changed = True
            after = sum(1 for _ in model.walk())
            result.remarks.append(self.applied(None, f"{_name(self.wrapped)}: {before} nodes became {after}"))
        return result


@dataclass(frozen=True, init=False)
class OnnxIrPass(ForeignPass):
    """Run a pass of onnx-ir: an object that takes an ``onnx_ir.Model`` and answers its ``PassResult``.

    Before::

        %a: f32[2] = Identity(%x)
        %y: f32[2] = Relu(%a)

    After ``OnnxIrPass(IdentityEliminationPass())``::

        %y: f32[2] = Relu(%x)
    """

    name: ClassVar[str] = "onnx-ir"

    def transform(self, proto: onnx.ModelProto) -> onnx.ModelProto | None:
        onnx_ir = _need("onnx_ir", "onnx-ir")
        result = self.wrapped(onnx_ir.serde.deserialize_model(proto))
        model, modified = (result.model, result.modified) if hasattr(result, "modified") else (result, True)
        return onnx_ir.serde.serialize_model(model) if modified else None


@dataclass(frozen=True, init=False)
class OnnxscriptRules(ForeignPass):
    """Apply rewrite rules of onnxscript: a ``RewriteRuleSet``, a sequence of rules or one. Its clean-up comes with it.

    Before::

        %a: f32[2] = Neg(%x)
        %y: f32[2] = Neg(%a)

    After rules that know that Neg undoes Neg::

        %y: f32[2] = Identity(%x)
    """

    name: ClassVar[str] = "onnxscript-rules"

    def __init__(self, rules: Any, *, effect: Effect = Effect.EXACT) -> None:
        if not hasattr(rules, "rules"):  # a RewriteRuleSet has them
            rules = tuple(rules) if isinstance(rules, Iterable) else (rules,)
        super().__init__(rules, effect=effect)

    def transform(self, proto: onnx.ModelProto) -> onnx.ModelProto | None:
        rewriter = _need("onnxscript.rewriter", "onnxscript")
        before = proto.SerializeToString(deterministic=True)
        after: onnx.ModelProto = rewriter.rewrite(proto, pattern_rewrite_rules=self.wrapped)
        return None if after.SerializeToString(deterministic=True) == before else after


@dataclass(frozen=True, init=False)
class GraphSurgeon(ForeignPass):
    """Run a function over an ``onnx_graphsurgeon.Graph``, which it edits, or answers anew.

    Before::

        %y: f32[2] = Relu(%x)

    After a function that puts another op in its place::

        %y: f32[2] = Abs(%x)
    """

    name: ClassVar[str] = "graph-surgeon"

    def __init__(self, function: Callable[[Any], Any], *, effect: Effect = Effect.EXACT) -> None:
        super().__init__(function, effect=effect)

    def transform(self, proto: onnx.ModelProto) -> onnx.ModelProto | None:
        surgeon = _need("onnx_graphsurgeon", "onnx-graphsurgeon")
        graph = surgeon.import_onnx(proto)
        answer = self.wrapped(graph)
        made: onnx.ModelProto = surgeon.export_onnx(graph if answer is None else answer, do_type_check=False)
        return made


def _need(module: str, package: str) -> Any:
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise UnsupportedError(f"it needs the package {package!r} ({error}): pip install 'qir[interop]'") from error


def _line(wrapped: Any, error: Exception) -> str:
    """Where in a wrapped function's own file an error came up; empty for what is no function."""
    file = getattr(getattr(wrapped, "__code__", None), "co_filename", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines else ""


def _name(wrapped: Any) -> str:
    if isinstance(wrapped, tuple):
        return "1 rule" if len(wrapped) == 1 else f"{len(wrapped)} rules"
    return str(getattr(wrapped, "__name__", type(wrapped).__name__))
