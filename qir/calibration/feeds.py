"""Checking one feed against what a model wants: names, element types, shapes, numbers that are numbers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from qir.errors import DataError, suggest
from qir.runtime.specs import InputSpec, format_shape


class DataWarning(UserWarning):
    """Sample data was used, but not all of it, or not as it stands."""


class FeedChecker:
    """Turns what a user supplies into feeds that a runtime takes as they are. Says what it ignores once per key."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        self.specs = tuple(specs)
        self._names = {spec.name for spec in specs}
        self._warned: set[str] = set()

    def check(self, feed: object, where: str) -> dict[str, Any]:
        """The feed with exactly the model's inputs, in their order and element types.

        `where` opens every message ("samples.npz, sample 3"). Raises DataError for a missing key, an element type or
        shape that does not fit, NaN or infinity.
        """
        if not isinstance(feed, Mapping):
            raise DataError(
                f"{where}: is a {type(feed).__name__}; a sample is a dict of input name -> array with the keys "
                f"{_listed(self._names)}"
            )
        for spec in self.specs:
            if spec.name not in feed:
                raise missing(spec, feed, where)
        self.warn_unknown(feed, where)
        return {spec.name: fit(feed[spec.name], spec, where) for spec in self.specs}

    def warn_unknown(self, keys: Iterable[Any], where: str) -> None:
        """A warning for each key that is no input, the first time it is seen."""
        for key in keys:
            if key not in self._names and key not in self._warned:
                self._warned.add(key)
                warnings.warn(
                    f"{where}: '{key}' is no input of the model and is ignored{suggest(str(key), self._names)}",
                    DataWarning,
                    stacklevel=3,
                )


def missing(spec: InputSpec, keys: Iterable[str], where: str) -> DataError:
    """The error for an input without data."""
    return DataError(f"{where}: no data for input {spec}; the keys are {_listed(keys)}{suggest(spec.name, keys)}")


def _listed(keys: Iterable[Any]) -> str:
    names = sorted(str(key) for key in keys)
    shown = ", ".join(f"'{name}'" for name in names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"


def fit(value: Any, spec: InputSpec, where: str) -> Any:
    """`value` as an array of the input's element type and a shape that it allows. Raises DataError otherwise."""
    if spec.kind != "tensor" or spec.dtype is None:
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, np.ndarray):
                check_finite(item, spec.name, where)
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where}: input '{spec.name}' is no array: {error}") from error
    if spec.shape == () and array.shape == (1,):  # the runtime takes either for a scalar; a graph that reshapes may not
        array = array.reshape(())
    check_shape(array.shape, spec, where)
    check_dtype(array.dtype, spec, where)
    check_finite(array, spec.name, where)
    return cast(array, spec, where)


def check_shape(shape: tuple[int, ...], spec: InputSpec, where: str) -> None:
    """Raises DataError when the rank or a fixed axis differs."""
    wanted = spec.shape
    if wanted is None:
        return
    if len(shape) != len(wanted) or any(isinstance(w, int) and w != h for w, h in zip(wanted, shape, strict=True)):
        raise DataError(
            f"{where}: input '{spec.name}' has shape {format_shape(shape)}, the model wants {format_shape(wanted)}"
        )


def check_dtype(dtype: np.dtype[Any], spec: InputSpec, where: str) -> None:
    """Raises DataError unless `cast` can try: the same family (float to float, integer to integer), or raw bytes."""
    wanted = spec.dtype
    assert wanted is not None
    if dtype == wanted or _is_raw(dtype, wanted) or family(dtype) == family(wanted) != "other":
        return
    name = "strings" if wanted == np.object_ else str(wanted)
    raise DataError(
        f"{where}: input '{spec.name}' is {dtype}, the model wants {name}; convert it as your application does "
        "(scale, mean) before it goes in"
    )


def check_finite(array: np.ndarray, name: str, where: str) -> None:
    """Raises DataError where a float array holds NaN or infinity."""
    if family(array.dtype) != "float" or np.isfinite(array).all():
        return
    bad = int(np.count_nonzero(~np.isfinite(array)))
    kind = "NaN" if np.isnan(array).any() else "infinity"
    raise DataError(f"{where}: input '{name}' holds {kind} ({bad} of {array.size} numbers are not finite)")


def cast(array: np.ndarray, spec: InputSpec, where: str) -> np.ndarray:
    """The array in the input's element type. Raises DataError where a number does not survive it."""
    wanted = spec.dtype
    assert wanted is not None
    if array.dtype == wanted:
        return array
    if _is_raw(array.dtype, wanted):
        return array.view(wanted)
    kind = family(wanted)
    if kind == "string":
        return np.char.decode(array, "utf-8").astype(object) if array.dtype.kind == "S" else array.astype(object)
    if kind == "int":
        info = ml_dtypes.iinfo(wanted)  # type: ignore[no-untyped-call]
        fits = array.size == 0 or (int(array.min()) >= info.min and int(array.max()) <= info.max)
        if not fits:
            raise DataError(f"{where}: input '{spec.name}' has {array.dtype} numbers that {wanted} cannot hold")
        return array.astype(wanted)
    with np.errstate(over="ignore"):
        result: np.ndarray = array.astype(wanted)
    if kind == "float" and not np.isfinite(result).all():
        raise DataError(f"{where}: input '{spec.name}' has {array.dtype} numbers that {wanted} cannot hold")
    return result


def family(dtype: np.dtype[Any]) -> str:
    """`float`, `int`, `bool`, `string`, `complex` or `other`; ml_dtypes' types are told by their limits."""
    known = {
        "f": "float",
        "i": "int",
        "u": "int",
        "b": "bool",
        "O": "string",
        "U": "string",
        "S": "string",
        "c": "complex",
    }
    if dtype.kind in known:
        return known[dtype.kind]
    for name, limits in (("float", ml_dtypes.finfo), ("int", ml_dtypes.iinfo)):
        try:
            limits(dtype)
        except (TypeError, ValueError):
            continue
        return name
    return "other"


def _is_raw(dtype: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether `dtype` is what an .npy file makes of `wanted`: bfloat16 and the like come back as bare bytes (`V2`)."""
    return dtype.type is np.void and dtype.names is None and wanted.kind == "V" and dtype.itemsize == wanted.itemsize
