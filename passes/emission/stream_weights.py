"""``stream-weights``: quantize and emit weights one at a time, for models that are larger than memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from qir.codegen.spool import Spool
from qir.errors import OptionError
from qir.ir import Model, Node, StaticQuant
from qir.passes.annotation.quantize_weights import QuantizeWeights, Weight, gather_weights, layout_of
from qir.passes.emission.emit_weight_only import Emitter
from qir.passes.emission.weight_forms import Form, choose_forms
from qir.pipeline import Pipeline
from qir.pipeline.contract import Effect, Pass, PassContext, PassResult
from qir.quant.blocks import code_dtype
from qir.quant.slots import Role

__all__ = ["StreamWeights"]


@dataclass(frozen=True)
class StreamWeights(Pass):
    """``quantize-weights`` and ``emit-weight-only`` in one, weight by weight: each is read from its mapped file,
    quantized, written to ``file`` and let go before the next, so that memory depends on the largest weight only.

    ``weights``: the options, as pipeline text. A journal beside ``file`` keeps what is done; run again after an
    interruption, with the same options, it goes on where it was: a weight whose content and options are the same is
    taken from ``file``. Only for roundings that look at no samples.

    Before::

        %y: f32[1,8] = MatMul(%x, @w)

    After::

        %y: f32[1,8] = com.microsoft.MatMulNBits(%x, @w_packed, @w_scale) {K=64, N=8, bits=4, block_size=32}
    """

    name: ClassVar[str] = "stream-weights"
    effect: ClassVar[Effect] = Effect.LOSSY

    file: str
    weights: str = "quantize-weights"
    form: Form = "auto"
    """As of ``emit-weight-only``."""

    def run(self, model: Model, ctx: PassContext) -> PassResult:
        """Raises OptionError for text that is no ``quantize-weights`` or wants samples, OutputError for the file."""
        options = self._options()
        result = PassResult()
        weights = gather_weights(options, model, result)
        bits = options.choose_bits(model, weights, {}, ctx)
        slots = [slot for weight in weights for slot in weight.slots if bits[weight.value] is not None]
        forms = choose_forms(self.form, model, slots, ctx)
        tables = {slot.value for slot in slots if slot.role is Role.LOOKUP and forms[slot.node] == "contrib"}
        ctx.progress.start("quantizing weights", len(weights))
        with Spool(Path(self.file), {"pass": str(Pipeline([options])), "form": self.form}) as spool:
            emitter = Emitter(model, tables, result, spool.put)
            for weight in weights:
                chosen = bits[weight.value]
                options.say(weight, chosen, result)
                if chosen is not None:
                    self._stream(weight, options, chosen, forms, emitter, spool)
                ctx.progress.advance()
            if spool.resumed:
                result.count("resumed", spool.resumed)
            emitter.finish()
        ctx.progress.finish()
        result.changed = bool(weights)
        return result

    def _options(self) -> QuantizeWeights:
        passes = Pipeline.parse(self.weights).passes
        if len(passes) != 1 or not isinstance(passes[0], QuantizeWeights):
            raise OptionError(
                f"stream-weights: weights={self.weights!r} is not one 'quantize-weights' with its options"
            )
        if passes[0].needs_calibration:
            raise OptionError("stream-weights looks at no samples: rounding=gptq is not for it")
        return passes[0]

    def _stream(
        self,
        weight: Weight,
        options: QuantizeWeights,
        bits: int,
        forms: dict[Node, Form],
        emitter: Emitter,
        spool: Spool,
    ) -> None:
        tensor = weight.value.tensor
        assert tensor is not None
        plan = [(slot.node.op, slot.role.value, slot.axis, forms[slot.node]) for slot in weight.slots]
        text = f"{weight.value.name} {tensor.digest().hex()} {bits} {weight.layouts(options)} {plan}"
        key = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
        done = spool.begin(key)
        if done is None:
            types = weight.types(options, bits, {})
        else:
            types = _blank_types(weight, options, bits, done["symmetric"], emitter)
        for slot, quant in zip(weight.slots, types, strict=True):
            emitter.emit(slot, quant, forms[slot.node])
        emitter.forget()
        spool.end({"symmetric": [quant.is_symmetric for quant in types]})
        tensor.release()


def _blank_types(
    weight: Weight, options: QuantizeWeights, bits: int, symmetric: list[bool], emitter: Emitter
) -> list[StaticQuant]:
    """Types of the right form without the numbers, which are in the file: the nodes come out the same."""
    dtype = code_dtype(bits, options.symmetric)
    types = []
    for slot, even in zip(weight.slots, symmetric, strict=True):
        axis, block = layout_of(slot, options.block_size)
        size = int(np.prod(slot.shape))
        units = slot.shape[axis] if block is None else size // slot.shape[axis] * -(-slot.shape[axis] // block)
        types.append(StaticQuant(dtype, (1.0,) * units, (0 if even else 1,), axis, block))
        emitter.codes[weight.value, types[-1]] = np.zeros(slot.shape, dtype.numpy)
    return types
