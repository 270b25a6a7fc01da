"""Every type, block size and form of a weight with every reader and odd size: numpy, optimisations off and on.

K and N are no multiples of the block, K is shorter than one, N is no multiple of 4, or the weight is square, where a
mistaken axis would not show as a wrong shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.ir import Model, StaticQuant
from qir.pipeline import Pipeline
from qir.quant.arithmetic import dequantize, quantize
from qir.runtime.session import PLAIN, OrtRunner
from tests.passes.int8 import feeds, model

FORMS = ("contrib", "qdq", "fold")
TYPES = {"u4": "bits=4", "s4": "bits=4 symmetric", "u8": "bits=8", "s8": "bits=8 symmetric"}
BLOCKS = (16, 32, 64, 128, 256, None)
EXACT = 1e-5
LEVEL_4 = 2e-2
"""Accuracy level 4 of MatMulNBits quantizes its input to 8 bits."""

READERS = {
    "matmul": ("[2,2,{k}]", "[2,2,{n}]", "[{k},{n}]", "MatMul(%{x}, @{w})"),
    "gemm": ("[4,{k}]", "[4,{n}]", "[{k},{n}]", "Gemm(%{x}, @{w}, @{b})"),
    "transposed": ("[4,{k}]", "[4,{n}]", "[{n},{k}]", "Gemm(%{x}, @{w}, @{b}) {{transB=1}}"),
    "scaled": ("[4,{k}]", "[4,{n}]", "[{k},{n}]", "Gemm(%{x}, @{w}, @{b}) {{alpha=0.5}}"),
    "left": ("[{k},4]", "[{n},4]", "[{n},{k}]", "MatMul(@{w}, %{x})"),
    "batched": ("[3,2,{k}]", "[3,2,{n}]", "[3,{k},{n}]", "MatMul(%{x}, @{w})"),
    "conv": ("[1,{k},3,3]", "[1,{n},2,2]", "[{n},{k},2,2]", "Conv(%{x}, @{w}, @{b})"),
    "depthwise": ("[1,{n},3,3]", "[1,{n},2,2]", "[{n},1,2,2]", "Conv(%{x}, @{w}, @{b}) {{group={n}}}"),
    "transpose": ("[1,{k},2,2]", "[1,{n},3,3]", "[{k},{n},2,2]", "ConvTranspose(%{x}, @{w}, @{b})"),
}
COMPUTED: Mapping[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "matmul": lambda x, w, b: x @ w,
    "gemm": lambda x, w, b: x @ w + b,
    "transposed": lambda x, w, b: x @ w.T + b,
    "scaled": lambda x, w, b: 0.5 * (x @ w) + b,
    "left": lambda x, w, b: w @ x,
    "batched": lambda x, w, b: x @ w,
    "conv": lambda x, w, b: _conv(x, w) + b[:, None, None],
    "depthwise": lambda x, w, b: np.concatenate(
        [_conv(x[:, i : i + 1], w[i : i + 1]) for i in range(len(w))], axis=1
    ) + b[:, None, None],
    "transpose": lambda x, w, b: _conv(
        np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), w.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1]
    ) + b[:, None, None],
}  # fmt: skip


def _conv(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Without padding, in steps of one."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (2, 3))
    return np.asarray(np.einsum("bihwkl,oikl->bohw", windows, w, optimize=True))


def build(sizes: list[tuple[int, int]]) -> tuple[Model, dict[str, str]]:
    """A model with each reader of each size, and which kind of reader each output is of."""
    inputs, results, constants, nodes, kinds = [], [], [], [], {}
    for k, n in sizes:
        for kind, (x, y, w, call) in READERS.items():
            at = f"{len(kinds)}"
            x, y, w = (text.format(k=k, n=n) for text in (x, y, w))
            inputs.append(f"%x{at}: f32{x}")
            results.append(f"%y{at}")
            constants.append(f"  @w{at}: f32{w} #{10 + len(kinds)} @b{at}: f32[{n}] #{99 + len(kinds)}")
            nodes.append(f"  %y{at}: f32{y} = " + call.format(x=f"x{at}", w=f"w{at}", b=f"b{at}", n=n))
            kinds[f"y{at}"] = kind
    text = "\n".join([f"graph g({', '.join(inputs)}) -> ({', '.join(results)}) {{", *constants, *nodes, "}"])
    return model(text, opset=21), kinds


def stored_numbers(source: Model, options: str) -> dict[str, np.ndarray]:
    """The numbers that each weight's codes stand for, and float biases, by name."""
    annotated = Pipeline.parse(f"quantize-weights{{{options}}}").run(source).model
    found = {one.name: one.tensor.numpy() for one in annotated.graph.initializers if one.tensor is not None}
    for node in annotated.walk():
        for use in node.uses:
            if use is not None and isinstance(use.quant, StaticQuant):
                made = dequantize(quantize(found[use.value.name], use.quant), use.quant)
                # A rounded weight may have got a new name.
                found[f"w{node.output.name[1:]}"] = made
    return {name: array.astype(np.float64) for name, array in found.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("kind", TYPES)
def test_numpy_off_and_on_agree(kind: str, block: int | None, form: str) -> None:
    width = block or 24
    small = min(width, 64)
    source, kinds = build([(width + 9, 33), (small, small), (7, 2), (2 * small, 6)])
    options = f"min-size=1 rounding=nearest {TYPES[kind]} block-size={'none' if block is None else block}"
    made = Pipeline.parse(f"quantize-weights{{{options}}},emit-weight-only{{form={form}}}").run(source).model
    data, numbers = feeds(source, 1)[0], stored_numbers(source, options)
    off, on = (OrtRunner(to_bytes(made), *config).run(data) for config in ((PLAIN,), ()))
    for name, reader in kinds.items():
        x, w, b = data[f"x{name[1:]}"].astype(np.float64), numbers[f"w{name[1:]}"], numbers[f"b{name[1:]}"]
        wanted = COMPUTED[reader](x, w, b)
        for outputs, plain in ((off, True), (on, False)):
            level = LEVEL_4 if form == "contrib" or (form == "qdq" and not plain) else EXACT
            got = np.asarray(outputs[name])
            assert np.abs(got - wanted).max() <= level * np.abs(wanted).max(), (name, reader, w.shape, plain)


def test_the_matrix_quantizes_every_reader() -> None:
    source, kinds = build([(20, 8)])
    made = Pipeline.parse("quantize-weights{min-size=1}").run(source).model
    held = [node.output.name for node in made.walk() if any(u and isinstance(u.quant, StaticQuant) for u in node.uses)]
    assert sorted(held) == sorted(kinds)
