"""docs/when-a-pass-breaks-your-model.md works when pasted, and prints what it says."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from qir.cli import main
from qir.pipeline import PassContext
from tests.pipeline.test_docs import blocks
from tests.pipeline.toys import chain, ops

PAGE = "when-a-pass-breaks-your-model.md"


def test_the_page_about_broken_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_rules", raising=False)
    make_model, plugin, by_hand, from_python = blocks(PAGE, "python")
    scope: dict[str, object] = {}
    exec(make_model, scope)
    Path("my_rules.py").write_text(plugin)
    codes = []
    for block in blocks(PAGE, "console"):
        for command, expected in re.findall(r"^\$ qir (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
            codes.append(main(shlex.split(command)))
            captured = capsys.readouterr()
            assert captured.err + captured.out == expected
    assert codes == [1, 1, 0, 0, 0, 1]
    assert not Path("out.onnx").exists()

    monkeypatch.syspath_prepend(tmp_path)
    exec(from_python, scope)
    assert capsys.readouterr().out == "drop-ones was undone\nmul-by-one ('body/gain',)\n"

    ctx, model = PassContext(), chain()
    ctx.numbering.limit = 2
    exec(by_hand, {"model": model, "ctx": ctx})
    assert ops(model) == ["Identity", "Relu"]
