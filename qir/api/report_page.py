"""The page of a quantization: gathers what the report shows beside its numbers, and writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qir.api.branches import compare_views
from qir.calibration.data import DataSource, spread
from qir.diff import diff
from qir.errors import OptionError, OutputError, QirError
from qir.ir import Model
from qir.pipeline import Progress
from qir.report.page import Evidence, to_html, to_markdown
from qir.report.quantization import QuantizationReport
from qir.targets.audit import Island
from qir.validation.layers import LayerErrors

__all__ = ["check_page_name", "written_page"]

_SAMPLES = 16
_SUFFIXES = {".html": to_html, ".htm": to_html, ".md": to_markdown, ".markdown": to_markdown}


def check_page_name(path: Path) -> None:
    """Raises OptionError for a file whose name does not say the format."""
    if path.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"report {str(path)!r}: its name must end in .html or .md")


@contextmanager
def written_page(
    path: Path,
    report: QuantizationReport,
    source: Model,
    quantized: Model,
    samples: DataSource | None,
    islands: tuple[Island, ...],
    progress: Progress,
) -> Iterator[None]:
    """The page gets its name when the block has run: so where one of page and model cannot be written, neither is.
    Raises OutputError."""
    errors, missing = _layers(source, quantized, samples, progress)
    page = Evidence(errors, diff(source, quantized), islands, missing)
    content = _SUFFIXES[path.suffix.lower()](report, page)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_text(content, encoding="utf-8")
        except OSError as error:
            raise _unwritable(path, error) from error
        yield
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{str(path)!r} cannot be written ({error.strerror}): choose another place")


def _layers(
    source: Model, quantized: Model, samples: DataSource | None, progress: Progress
) -> tuple[LayerErrors | None, str]:
    """Errors by layer, or why there are none."""
    if samples is None:
        return None, "Layers were not compared: no data were given."
    try:
        return compare_views(source, quantized, spread(samples, _SAMPLES), progress)[0], ""
    except QirError as error:  # the model is made and measured; its page says what it lacks
        return None, f"Layers could not be compared: {error}"
