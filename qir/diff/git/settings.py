"""Switching the diff driver on and off: two entries of git's configuration, and a line in an attributes file.

git(1) gitattributes, "Performing a three-way merge" and "Generating diff text": ``diff.NAME.command`` is asked by
`git diff`, ``diff.NAME.textconv`` by `git log -p` and `git show`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qir.errors import OutputError, UnsupportedError

__all__ = ["GitStatus", "disable", "enable", "run_git", "status"]

_DRIVER = "qir"
_LINE = f"*.onnx diff={_DRIVER}"
_COMMENT = "# qir shows what changed in a model; 'qir git disable' removes these two lines"


@dataclass(frozen=True, slots=True)
class GitStatus:
    """What is set. ``attributes`` is the file with the line, None where no file has it; ``command`` what git runs."""

    repository: Path | None
    attributes: Path | None
    command: str | None
    textconv: str | None

    @property
    def enabled(self) -> bool:
        return None not in (self.attributes, self.command, self.textconv)


def run_git(*arguments: str, folder: Path | None = None) -> str:
    """git's standard output. Raises UnsupportedError where git is missing or fails."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnsupportedError("git is not installed, or not on the path") from None
    if done.returncode:
        reason = done.stderr.strip().partition("\n")[0]
        raise UnsupportedError(f"'git {' '.join(arguments)}' failed: {reason or f'exit code {done.returncode}'}")
    return done.stdout


def enable(everywhere: bool = False) -> GitStatus:
    """Set the driver up in the repository around the current folder, or for all repositories of this user."""
    scope = "--global" if everywhere else "--local"
    attributes = _attributes_file(everywhere)
    program = f"{shlex.quote(Path(sys.executable).as_posix())} -m qir git"
    run_git("config", scope, f"diff.{_DRIVER}.command", f"{program} driver")
    run_git("config", scope, f"diff.{_DRIVER}.textconv", f"{program} textconv")
    run_git("config", scope, f"diff.{_DRIVER}.cachetextconv", "false")
    if everywhere and not _config("core.attributesFile", scope):
        run_git("config", scope, "core.attributesFile", str(attributes))
    lines = _read(attributes)
    if _LINE not in lines:
        _write(attributes, [*lines, _COMMENT, _LINE])
    return status(everywhere)


def disable(everywhere: bool = False) -> GitStatus:
    """Take out what ``enable`` put in, and nothing else."""
    scope = "--global" if everywhere else "--local"
    attributes = _attributes_file(everywhere)
    if _config(f"diff.{_DRIVER}.command", scope) or _config(f"diff.{_DRIVER}.textconv", scope):
        run_git("config", scope, "--remove-section", f"diff.{_DRIVER}")
    lines = _read(attributes)
    kept = [line for line in lines if line not in (_LINE, _COMMENT)]
    if kept:
        if kept != lines:
            _write(attributes, kept)
    elif lines:
        attributes.unlink()
    return status(everywhere)


def status(everywhere: bool = False) -> GitStatus:
    """What stands in the repository's configuration, or in the user's."""
    attributes = _attributes_file(everywhere)
    return GitStatus(
        repository=None if everywhere else attributes.parent,
        attributes=attributes if _LINE in _read(attributes) else None,
        command=_config(f"diff.{_DRIVER}.command"),
        textconv=_config(f"diff.{_DRIVER}.textconv"),
    )


def _config(key: str, *scope: str) -> str | None:
    try:
        done = subprocess.run(["git", "config", *scope, "--get", key], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UnsupportedError("git is not installed, or not on the path") from None
    return done.stdout.strip() or None


def _attributes_file(everywhere: bool) -> Path:
    if not everywhere:
        return Path(run_git("rev-parse", "--show-toplevel").strip()) / ".gitattributes"
    named = _config("core.attributesFile", "--global")
    return Path(named).expanduser() if named else Path.home() / ".config" / "git" / "attributes"


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{str(path)!r} cannot be read ({error}): repair it first") from error


def _write(path: Path, lines: list[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written ({error.strerror}): check its permissions") from error
