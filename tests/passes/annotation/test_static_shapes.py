"""quantize-static of every width on odd sizes, beside numpy, the runtime's optimisations off and on."""

from __future__ import annotations

import numpy as np
import pytest

from qir.codegen import to_bytes
from qir.ir import Model, StaticQuant
from qir.pipeline import Pipeline
from qir.quant.arithmetic import fake_quantize
from qir.runtime.session import PLAIN, OrtRunner
from tests.passes.int8 import feeds, model


def outputs_of(made: Model, source: Model, plain: bool) -> list[np.ndarray]:
    runner = OrtRunner(to_bytes(made), PLAIN) if plain else OrtRunner(to_bytes(made))
    return [runner.run(feed)["y"] for feed in feeds(source)]


@pytest.mark.parametrize("name", ["f8e4m3fn", "f8e5m2", "u16", "s16"])
@pytest.mark.parametrize(("k", "n"), [(33, 50), (32, 32), (7, 2), (50, 33)])
@pytest.mark.parametrize("kind", ["matmul", "batched", "gemm", "transposed"])
def test_odd_sizes_off_and_on(kind: str, k: int, n: int, name: str) -> None:
    """Beside numpy on the numbers that the codes stand for, in float64."""
    shapes = {"matmul": (k, n), "batched": (3, k, n), "gemm": (k, n), "transposed": (n, k)}
    rows = (3, 4) if kind == "batched" else (4,)
    call = "MatMul(%x, @w)" if kind in ("matmul", "batched") else f"Gemm(%x, @w) {{transB={int(kind == 'transposed')}}}"
    x, w = ",".join(map(str, (*rows, k))), ",".join(map(str, shapes[kind]))
    source = model(f"graph net(%x: f32[{x}]) -> (%y) {{ @w: f32[{w}] #1 %y = {call} }}", opset=21)
    options = f"activation={name} weight={name if name.startswith('f8') else 's8'}"
    made = Pipeline.parse(f"quantize-static{{{options}}}").run(source, calibration=feeds(source)).model
    user = next(node for node in made.walk() if node.op in ("MatMul", "Gemm"))
    barriers = [node.use(0) for node in made.walk() if node.op == "Max"]  # around fp8 quantizers on ort-cpu
    fed = next((use for use in barriers if use is not None and isinstance(use.quant, StaticQuant)), user.use(0))
    assert fed is not None and isinstance(fed.quant, StaticQuant)
    weight_use = user.use(1)
    assert weight_use is not None and isinstance(weight_use.quant, StaticQuant) and weight_use.value.tensor is not None
    weight = fake_quantize(weight_use.value.tensor.numpy(), weight_use.quant).astype(np.float64)
    weight = weight.T if kind == "transposed" else weight
    emitted = Pipeline.parse("emit-qdq").run(made).model
    for plain in (True, False):
        for feed, got in zip(feeds(source), outputs_of(emitted, source, plain), strict=True):
            wanted = fake_quantize(feed["x"], fed.quant).astype(np.float64) @ weight
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
