"""Samples as onnxruntime's quantizer wants them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from onnxruntime.quantization import CalibrationDataReader


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out feeds one by one, then None."""

    def __init__(self, feeds: Iterable[Mapping[str, Any]]) -> None:
        self._left = iter(feeds)

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._left, None)
