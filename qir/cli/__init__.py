"""The command line. `main` is the console script; each command is a file of its own, imported when it is called.

To add a command, write `qir/cli/NAME.py` and add a line to COMMANDS. The file defines a function called as the module
(a plain command), or a `typer.Typer` called `app` (a command with sub-commands). It prints results to stdout and raises
QirError for what the user can mend; `raise typer.Exit(1)` says that a check failed.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from qir.errors import OptionError, QirError, suggest

if TYPE_CHECKING:
    import typer

__all__ = ["COMMANDS", "main"]

COMMANDS: dict[str, str] = {
    "quantize": "Quantize a float model and measure the result.",
    "opt": "Run passes over a model.",
    "diff": "Show what changed between two models.",
    "git": "Show what changed in models where git shows differences.",
    "compare": "Find where the error of a quantized model comes from, and what helps.",
    "bench": "Time two models side by side, node by node.",
    "ranges": "Show what values can be, are declared to be, and were seen to be.",
    "check": "Compare a model with its golden outputs.",
    "golden": "Record golden outputs of a model, or show them.",
    "inspect": "Show what a model is made of.",
    "bisect": "Find the pass and the rewrite that break a model.",
    "explain": "Say why a rewriting rule fits at a node, or does not.",
    "passes": "List the passes and presets, or describe one.",
    "targets": "List the runtimes to compile for, show one, measure its costs, lint a model.",
    "demo": "Quantize a bundled model and watch each stage.",
}
"""Command name -> what `qir --help` says about it. The module is qir.cli.NAME, with `_` for `-`."""

BUG, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 70, 2, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code.

    0: done. 1: a check failed. 2: bad input or usage, one line on stderr. 70: a bug of qir or of a plug-in, with its
    traceback. 130: interrupted. 141: whoever read the output has gone.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        # The process ends with this command: collecting a model of 100,000 nodes that nobody needs takes seconds.
        atexit.register(gc.freeze)
    arguments = list(arguments)
    try:
        with _readable_warnings():
            code = _run(arguments)
        sys.stdout.flush()
        return code
    except QirError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more when it leaves; let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except Exception as error:
        return INTERRUPTED if _was_interrupted(error) else _crashed(error)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether an error came of an interrupt: onnxruntime makes an ImportError of one that comes while it is loaded."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__
    return False


def _crashed(error: Exception) -> int:
    """Show a bug's traceback: of a plug-in's what lies in its own files, and one line as for any other error."""
    import traceback

    from qir import __version__

    foreign = _foreign_part(error.__traceback__)
    traceback.print_exception(type(error), error, foreign or error.__traceback__)
    if foreign is None:
        return _fail(f"this is a bug in qir {__version__}, please report it with the lines above", BUG)
    said = str(error.args[0]) if len(error.args) == 1 else str(error)  # a KeyError puts quotes around its message
    where = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
    if not foreign.tb_frame.f_globals.get("__name__", "").startswith("qir."):
        where += f" ({foreign.tb_frame.f_code.co_filename}, line {foreign.tb_lineno})"
    return _fail(f"{type(error).__name__}: {said}{where}", BUG)


def _foreign_part(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that lies in a pass or rule of a plug-in, else in what ran it; None where the pass is
    one of ours, or none ran."""
    caller = None
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module == "qir.pipeline.pipeline":
            pass_ = trace.tb_frame.f_locals.get("pass_")
            caller = None if type(pass_).__module__.startswith("qir.") else trace
        elif caller and not module.startswith(("qir.pipeline.", "qir.rewriting.", "qir.interop.")):
            return caller if module.startswith("qir.") else trace
        trace = trace.tb_next
    return caller


@contextmanager
def _readable_warnings() -> Iterator[None]:
    """Our own warnings are one line on stderr; Python's format names a line of our code, which helps nobody."""
    with warnings.catch_warnings():
        python_shows = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category.__module__.startswith("qir."):
                print(f"warning: {message}", file=sys.stderr)
            else:
                python_shows(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _run(arguments: list[str]) -> int:
    import typer

    called = next((word for word in arguments if not word.startswith("-")), None)
    if called is not None and called not in COMMANDS:
        raise OptionError(f"unknown command {called!r}{suggest(called, COMMANDS)}: 'qir --help' lists all")
    try:
        code = _app(called)(arguments or ["--help"], standalone_mode=False, prog_name="qir")
    except typer.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer would leave with 1, "a check failed"
            raise stop.__context__ from None
        raise
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        # The base class of usage errors has no public name in all versions of typer: some have their own copy of click.
        if not any(cls.__name__ == "ClickException" for cls in type(error).__mro__):
            raise
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "qir"
        message = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
        return _fail(f"{message}: see '{where} --help'", BAD_INPUT)
    return code if isinstance(code, int) else 0


def _app(called: str | None) -> typer.Typer:
    """The application with the called command in full and all others as their line in the help."""
    import typer

    from qir import __version__

    app = typer.Typer(
        name="qir", add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"qir {__version__}")
            raise typer.Exit

    @app.callback()
    def qir(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Show the version."
        ),
    ) -> None:
        """A compiler that quantizes ONNX models.

        Example: [bold]qir opt model.onnx --passes canonicalize -o smaller.onnx[/bold]
        """

    for name, summary in COMMANDS.items():
        if name == called:
            _add(app, name)
        else:
            app.command(name, help=summary)(_placeholder)
    return app


def _add(app: typer.Typer, name: str) -> None:
    module_name = name.replace("-", "_")
    module = import_module(f"qir.cli.{module_name}")
    group = getattr(module, "app", None)
    if group is not None:
        app.add_typer(group, name=name)
    else:
        app.command(name)(getattr(module, module_name))


def _placeholder() -> None:
    raise AssertionError("a command that was not called")


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
