"""Quantized models of others, lifted and emitted again: how far the outputs move, in steps of their quantizer.

    python -m tools.bench.round_trip NAME.qdq.onnx=eval.npz NAME.qop.onnx=eval.npz ...

Each is emitted in each spelling. A step is a 255th of the range of an output over the samples; "on" and
"off" are the runtime's optimisations. QDQ with optimisations off computes in floats, integer operators compute in
integers (and saturate where the processor does), so that corner compares two machines, not two models. What such a
difference means, the column "nudged" says: how far the original's own outputs move, optimisations off, when one number
of its input moves by a 255th of that input's range.
"""

from __future__ import annotations

import argparse
from itertools import islice
from typing import Any

import numpy as np

import qir
from qir.calibration.data import open_data
from qir.calibration.specs import input_specs
from qir.codegen import to_bytes
from qir.errors import QirError
from qir.ir import Model
from qir.pipeline import Pipeline, RemarkKind
from qir.runtime.session import OPTIMIZED, PLAIN, OrtRunner, SessionConfig

__all__ = ["main"]

EMISSIONS = {"qdq": "emit-qdq", "contrib": "emit-qoperator", "qoperator": "emit-qoperator{contrib=false}"}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL=DATA.npz")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help="optimisations off as well")
    chosen = parser.parse_args(arguments)
    heads = ["model", "not lifted", *EMISSIONS, *(["nudged"] if chosen.plain else [])]
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for text in chosen.models:
        path, _, data = text.partition("=")
        print(_row(path, data, chosen.samples, chosen.plain), flush=True)


def _row(path: str, data: str, count: int, plain: bool) -> str:
    name = path.rpartition("/")[2].removesuffix(".onnx")
    try:
        source = qir.load(path)
        feeds = list(islice(open_data(data, input_specs(source)), count))
        lifted = Pipeline.parse("lift").run(source)
    except QirError as error:
        return f"| {name} | {str(error).splitlines()[0][:90]} |" + " |" * len(EMISSIONS)
    missed = sum(remark.kind is RemarkKind.MISSED for remark in lifted.remarks)
    cells = [_cell(source, lifted.model, passes, feeds, plain) for passes in EMISSIONS.values()]
    if plain:
        cells.append(f"{_nudged_steps(to_bytes(source), feeds):.2f}")
    return f"| {name} | {missed} | " + " | ".join(cells) + " |"


def _cell(source: Model, lifted: Model, passes: str, feeds: list[Any], plain: bool) -> str:
    try:
        back = to_bytes(Pipeline.parse(passes).run(lifted).model)
    except QirError as error:
        return str(error).splitlines()[0][:60]
    on = _steps(to_bytes(source), back, feeds, OPTIMIZED)
    return f"{on:.2f}" + (f" / {_steps(to_bytes(source), back, feeds, PLAIN):.2f} off" if plain else "")


def _steps(a: bytes, b: bytes, feeds: list[Any], config: SessionConfig) -> float:
    """The largest difference of a float output."""
    runners = OrtRunner(a, config), OrtRunner(b, config)
    return _apart([(runners[0].run(feed), runners[1].run(feed)) for feed in feeds])


def _nudged_steps(model: bytes, feeds: list[Any]) -> float:
    """The same between a model and itself, a number in the middle of a float input moved by a step."""
    runner = OrtRunner(model, PLAIN)
    before = [runner.run(feed) for feed in feeds]
    worst = 0.0
    for name, array in feeds[0].items():
        if array.dtype.kind == "f":
            worst = max(
                worst, _apart([(a, runner.run(_nudge(feed, name))) for a, feed in zip(before, feeds, strict=True)])
            )
    return worst


def _nudge(feed: Any, name: str) -> dict[str, np.ndarray]:
    moved = np.array(feed[name])
    moved.reshape(-1)[moved.size // 2] += (moved.max() - moved.min()) / 255
    return {**feed, name: moved}


def _apart(pairs: list[tuple[Any, Any]]) -> float:
    worst = 0.0
    for name, array in pairs[0][0].items():
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            spread = max(one[name].max() for one, _ in pairs) - min(one[name].min() for one, _ in pairs)
            apart = max(float(np.abs(one[name] - other[name]).max(initial=0)) for one, other in pairs)
            worst = max(worst, apart / max(float(spread) / 255, 1e-30))
    return worst


if __name__ == "__main__":
    main()
