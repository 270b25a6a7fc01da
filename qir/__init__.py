"""qir: a compiler that quantizes ONNX models.

>>> import qir
>>> report = qir.quantize("model.onnx", "model.int8.onnx", calibration="samples.npz")  # doctest: +SKIP

`import qir` is cheap: each public name is loaded from its module when it is first used.
"""

import os as _os

__version__ = "0.1.0"

# Public name -> module that defines it.
_EXPORTS = {
    "Pass": "qir.api",
    "PassContext": "qir.api",
    "PassResult": "qir.api",
    "Pipeline": "qir.api",
    "QirError": "qir.errors",
    "Remark": "qir.api",
    "load": "qir.api",
    "quantize": "qir.api",
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

    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
