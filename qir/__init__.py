"""qir: a compiler that quantizes ONNX models.

>>> import qir
>>> report = qir.quantize("model.onnx", "model.int8.onnx", calibration="samples.npz")  # doctest: +SKIP

`import qir` is cheap: each public name is loaded from its module when it is first used.
"""

import os as _os
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what __getattr__ below does, for type checkers and editors
    from qir.api import Effect as Effect
    from qir.api import Instrument as Instrument
    from qir.api import Pass as Pass
    from qir.api import PassContext as PassContext
    from qir.api import PassResult as PassResult
    from qir.api import Pipeline as Pipeline
    from qir.api import PipelineResult as PipelineResult
    from qir.api import Preset as Preset
    from qir.api import Remark as Remark
    from qir.api import RemarkKind as RemarkKind
    from qir.api import RewritePass as RewritePass
    from qir.api import Verdict as Verdict
    from qir.api import bench as bench
    from qir.api import check as check
    from qir.api import compare as compare
    from qir.api import diff as diff
    from qir.api import load as load
    from qir.api import quantize as quantize
    from qir.api import ranges as ranges
    from qir.api import save as save
    from qir.errors import QirError as QirError

__version__ = "0.1.0"

# Public name -> module that defines it. ``qir.diff`` is a room that can be called.
_EXPORTS = {
    "Effect": "qir.api",
    "Instrument": "qir.api",
    "Pass": "qir.api",
    "PassContext": "qir.api",
    "PassResult": "qir.api",
    "Pipeline": "qir.api",
    "PipelineResult": "qir.api",
    "Preset": "qir.api",
    "QirError": "qir.errors",
    "Remark": "qir.api",
    "RemarkKind": "qir.api",
    "RewritePass": "qir.api",
    "Verdict": "qir.api",
    "bench": "qir.api",
    "check": "qir.api",
    "compare": "qir.api",
    "diff": "qir.diff",
    "load": "qir.api",
    "quantize": "qir.api",
    "ranges": "qir.api",
    "save": "qir.api",
}

__all__ = ["__version__", *_EXPORTS]

# In a source tree, qir.passes and qir.golden_models are the sibling folders ./passes and ./golden_models. An install
# maps them itself, but inside the tree ./qir shadows the install, so there this package looks in the tree's root too.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if all(_os.path.isfile(_os.path.join(_root, *parts)) for parts in (("pyproject.toml",), ("passes", "__init__.py"))):
    __path__.append(_root)
del _root


def __getattr__(name: str) -> object:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'qir' has no attribute {name!r}")
    from importlib import import_module

    loaded = import_module(module)
    value: object = loaded if module == f"qir.{name}" else getattr(loaded, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
