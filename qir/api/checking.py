"""One call that says how close a model is to expected outputs."""

from __future__ import annotations

import os
from typing import Any

from qir.api.emission import read_session_options
from qir.errors import DataError
from qir.report.check import CheckReport
from qir.runtime.session import PLAIN, OrtRunner, SessionConfig
from qir.validation.float_view import float_view
from qir.validation.golden import GoldenSet, check_against, open_golden

__all__ = ["check"]


def check(
    model: str | os.PathLike[str],
    golden: Any,
    *,
    against: str | os.PathLike[str] | None = None,
    min_sqnr: float | None = None,
    preset: str = "int8",
) -> CheckReport:
    """Run a model on golden inputs, with the runtime's optimisations on and off, and compare with the expected outputs.

    ``golden``: a golden folder, an ``.npz`` with inputs (and outputs), or anything else that ``calibration=`` takes.
    Where it holds no expected outputs they are those of the float model ``against``, run with optimisations off, as
    ``qir golden record`` runs it. ``min_sqnr`` in dB is for the worst output; without it, ``golden.toml`` is asked for
    ``[expected.PRESET] min_sqnr``.

    Raises ModelError or UnsupportedError where a model does not load, DataError where the data does not fit or holds
    no expected outputs and ``against`` is not given. The session options that the model's metadata recommends are used.
    """
    unoptimized = OrtRunner(os.fspath(model), PLAIN)
    config = SessionConfig(entries=read_session_options(unoptimized.session.get_modelmeta().custom_metadata_map))
    optimized, plain = float_view(OrtRunner(os.fspath(model), config)), float_view(unoptimized)
    opened = open_golden(golden, optimized.inputs, optimized.outputs)
    reference: OrtRunner | None = None
    if not opened.expected:
        if against is None:
            raise DataError(
                f"{opened.name}: holds no expected outputs: name the float model that gives them (--against)"
            )
        reference = OrtRunner(os.fspath(against), PLAIN)
    threshold, origin = (min_sqnr, "--min-sqnr") if min_sqnr is not None else _expected(opened, preset)
    return CheckReport(
        model=os.fspath(model),
        golden=opened.name,
        reference="stored outputs" if reference is None or against is None else os.fspath(against),
        optimized=check_against(opened, optimized, reference),
        plain=check_against(opened, plain, reference),
        min_sqnr=threshold,
        threshold_from=origin,
    )


def _expected(golden: GoldenSet, preset: str) -> tuple[float | None, str]:
    """The threshold that golden.toml names for a preset, and where it stands. DataError where it is no number."""
    table: Any = golden.info
    for key in ("expected", preset):
        table = table.get(key, {}) if hasattr(table, "get") else {}
    wanted = table.get("min_sqnr") if hasattr(table, "get") else None
    if wanted is None:
        return None, ""
    if isinstance(wanted, bool) or not isinstance(wanted, (int, float)):
        raise DataError(
            f"{golden.name}/golden.toml: [expected.{preset}] min_sqnr must be a number of dB, not {wanted!r}"
        )
    return float(wanted), f"golden.toml, [expected.{preset}]"
