"""The IR-printing instrument: the model's text after passes, to a stream or one file a pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qir.errors import OutputError
from qir.ir import Model
from qir.pipeline.contract import Pass
from qir.pipeline.instruments import Instrument, PassRun

__all__ = ["IrFolder", "IrPrinter"]


class IrPrinter(Instrument):
    """Hands the IR text to ``write`` after each pass, or only after those that changed something.

    ``brief`` leaves out hashes, long lists and documentation, which saves reading every weight.
    """

    label = "print IR"

    def __init__(self, write: Callable[[str], object], *, only_changed: bool = False, brief: bool = True) -> None:
        self._write = write
        self._only_changed = only_changed
        self._brief = brief

    def after_pass(self, run: PassRun) -> None:
        if run.changed:
            self._write(f"// after pass {run.index + 1}, {run.pass_.name}\n{self._text(run.model)}")
        elif not self._only_changed:
            self._write(f"// after pass {run.index + 1}, {run.pass_.name}: no change\n")

    def failed(self, run: PassRun, error: BaseException) -> None:
        self._write(f"// pass {run.index + 1}, {run.pass_.name}, failed and left\n{self._text(run.model)}")

    def _text(self, model: Model) -> str:
        from qir.ir.printer import print_model

        return print_model(model, brief=self._brief)


class IrFolder(IrPrinter):
    """Writes ``00-input.qir``, ``01-NAME.qir`` ... for the passes that changed something, whole, so that they parse.

    Raises OutputError where the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(self._write_file, only_changed=True, brief=False)
        self._folder = Path(folder)
        self._name = ""

    def begin(self, model: Model, passes: tuple[Pass, ...]) -> None:
        self._name = "00-input"
        self._write_file(self._text(model))

    def after_pass(self, run: PassRun) -> None:
        self._name = f"{run.index + 1:02}-{run.pass_.name}"
        super().after_pass(run)

    def failed(self, run: PassRun, error: BaseException) -> None:
        self._name = f"{run.index + 1:02}-{run.pass_.name}-failed"
        super().failed(run, error)

    def _write_file(self, text: str) -> None:
        path = self._folder / f"{self._name}.qir"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"IR text cannot be written to {str(path)!r}: {error.strerror}") from error
