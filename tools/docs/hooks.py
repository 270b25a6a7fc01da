"""mkdocs' hooks: pages that no one writes by hand are added when the site is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.docs.reference import pages


def on_files(files: Files, config: Any) -> Files:
    """mkdocs asks: which files are there?"""
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    return files
