"""A session in a real repository: models in `git diff`, `git log -p` and `git show`, in hooks and pull requests."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qir.cli import main
from qir.cli.git import _fitting

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def write(path: Path, op: str = "Relu", scale: float = 1.0, external: bool = False) -> None:
    weight = (np.arange(4096, dtype=np.float32).reshape(64, 64) + 1) * scale
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "linear"), helper.make_node(op, ["h"], ["y"], "act")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")


class Repository:
    """A repository with settings of its own, whatever the machine's are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        home = folder / "home"
        home.mkdir()
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
            "HOME": str(home),
            "XDG_CONFIG_HOME": str(home / "xdg"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.git("init", "-q", "-b", "main")
        self.git("config", "user.email", "a@example.com")
        self.git("config", "user.name", "A")

    def run(self, *command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def git(self, *arguments: str, code: int = 0) -> str:
        return self.run("git", *arguments, code=code)

    def qir(self, *arguments: str, code: int = 0) -> str:
        """The command in this process, which is quicker than one of its own; git starts real ones for models."""
        said = io.StringIO()
        with (
            mock.patch.dict(os.environ, self.environment, clear=True),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            found = main(list(arguments))
        assert found == code, (arguments, found, said.getvalue())
        return said.getvalue()

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", message)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path)
    write(made.folder / "model.onnx")
    made.commit("first")
    return made


def test_a_session(repository: Repository) -> None:
    repository.qir("git", "status", code=1)
    assert "enabled" in repository.qir("git", "enable")
    assert "enabled" in repository.qir("git", "status")
    assert (repository.folder / ".gitattributes").read_text().splitlines()[-1] == "*.onnx diff=qir"
    repository.commit("attributes")
    assert repository.git("diff") == ""

    write(repository.folder / "model.onnx", op="Sigmoid")
    shown = repository.git("diff")
    assert shown.startswith("diff --qir a/model.onnx b/model.onnx\n")
    assert "1 node changed." in shown
    assert "Relu -> Sigmoid" in shown
    assert "Binary files" not in shown
    repository.commit("second")

    for command in (["log", "-p", "-1"], ["show"]):
        text = repository.git(*command)
        assert "Relu(%h)" in text and "Sigmoid(%h)" in text
        assert "\n-" in text and "\n+" in text

    repository.qir("git", "disable")
    assert not (repository.folder / ".gitattributes").exists()
    assert "Binary files" in repository.git("diff", "HEAD~1", "--", "model.onnx")
    repository.qir("git", "status", code=1)


def test_disabling_leaves_what_others_wrote(repository: Repository) -> None:
    attributes = repository.folder / ".gitattributes"
    attributes.write_text("*.bin filter=lfs\n")
    repository.qir("git", "enable")
    repository.qir("git", "enable")
    assert attributes.read_text().count("*.onnx diff=qir") == 1
    repository.qir("git", "disable")
    assert attributes.read_text() == "*.bin filter=lfs\n"
    repository.qir("git", "disable")


def test_for_all_repositories(repository: Repository) -> None:
    repository.qir("git", "enable", "--global")
    write(repository.folder / "model.onnx", scale=2.0)
    assert "1 weight changed." in repository.git("diff")
    assert not (repository.folder / ".gitattributes").exists()
    repository.qir("git", "disable", "--global")
    assert "Binary files" in repository.git("diff")


def test_added_and_deleted_models(repository: Repository) -> None:
    repository.qir("git", "enable")
    repository.commit("attributes")
    write(repository.folder / "other.onnx")
    (repository.folder / "model.onnx").unlink()
    repository.git("add", "-A")
    shown = repository.git("diff", "--cached", "--no-renames")
    assert "new model: 2 nodes" in shown
    assert "deleted model: 2 nodes" in shown


def test_a_pointer_of_git_lfs_gives_a_sentence(repository: Repository) -> None:
    repository.qir("git", "enable")
    repository.commit("attributes")
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 12345\n"
    (repository.folder / "model.onnx").write_text(pointer)
    shown = repository.git("diff")
    assert "a Git LFS pointer to 12345 bytes (4d7a4d7a4d7a): run 'git lfs pull'" in shown
    assert "a Git LFS pointer to 12345 bytes" in repository.qir("git", "textconv", "model.onnx")


def test_what_is_no_model_gives_a_sentence(repository: Repository) -> None:
    shutil.copy(repository.folder / "model.onnx", repository.folder / "old.onnx")
    (repository.folder / "model.onnx").write_bytes(b"\x00\x01garbage")
    given = ("model.onnx", "old.onnx", "0" * 40, "100644", "model.onnx", "1" * 40, "100644")  # as git does
    assert "not compared:" in repository.qir("git", "driver", *given)
    assert "not shown:" in repository.qir("git", "textconv", "model.onnx")


def test_weights_in_a_file_of_their_own(repository: Repository) -> None:
    repository.qir("git", "enable")
    write(repository.folder / "large.onnx", external=True)
    repository.commit("large")
    write(repository.folder / "large.onnx", op="Tanh", external=True)
    shown = repository.git("diff", "--", "large.onnx")
    assert "Relu -> Tanh" in shown
    assert "were not compared" in shown


def test_the_hook_and_the_pull_request(repository: Repository) -> None:
    repository.git("checkout", "-q", "-b", "work")
    write(repository.folder / "model.onnx", scale=3.0)
    repository.git("add", "-A")
    assert "1 weight changed." in repository.qir("git", "staged", "model.onnx")
    assert "fails on weights>0.1" in repository.qir("git", "staged", "--fail-on", "outputs,weights>0.1", code=1)
    repository.qir("git", "staged", "--fail-on", "outputs,weights>5")
    repository.commit("other weights")
    comment = repository.folder / "comment.md"
    repository.qir("git", "changes", "main", "--markdown", str(comment), "--fail-on", "weights", code=1)
    text = comment.read_text()
    assert text.startswith("### `a/model.onnx` → `b/model.onnx`")
    assert "model.onnx: fails on weights" in text
    assert "unknown condition 'wieghts' (did you mean 'weights'?)" in repository.qir(
        "git", "staged", "--fail-on", "wieghts", code=2
    )


def test_models_in_git_lfs_are_compared_where_its_filter_has_them(repository: Repository) -> None:
    """A filter like that of git-lfs: the repository holds pointers, files beside it the models."""
    (repository.folder / ".gitattributes").write_text("*.onnx filter=lfs\n")
    store = repository.folder.parent / "store"
    store.mkdir()
    for name, scale in (("a", 1.0), ("b", 1.5)):
        write(store / name, scale=scale)
    repository.git("config", "filter.lfs.smudge", f"sed -n 's/^oid sha256://p' | xargs -I ID cat '{store}/ID'")
    for name in "ab":
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize 9\n"
        (repository.folder / "m.onnx").write_text(pointer)
        repository.commit(name)
    assert "fails on weights>0.1" in repository.qir("git", "changes", "HEAD~1", "--fail-on", "weights>0.1", code=1)
    repository.git("config", "filter.lfs.smudge", "false")
    repository.git("config", "filter.lfs.required", "true")
    assert "pointer" in repository.qir("git", "changes", "HEAD~1")
    told = repository.qir("git", "changes", "HEAD~1", "--fail-on", "outputs", code=1)
    assert "m.onnx: not compared, so --fail-on cannot be judged: a Git LFS pointer" in told


@pytest.mark.parametrize(("condition", "code"), [("outputs", 0), ("outputs,weights>9", 1)])
def test_a_check_that_cannot_see_the_weights_does_not_pass(repository: Repository, condition: str, code: int) -> None:
    for scale in (1.0, 1.5):
        write(repository.folder / "m.onnx", scale=scale, external=True, op="Relu" if scale == 1 else "Abs")
        repository.commit("m")
    comment = repository.folder / "comment.md"
    told = repository.qir("git", "changes", "HEAD~1", "--fail-on", condition, "--markdown", str(comment), code=code)
    assert ("m.onnx: not compared, so --fail-on cannot be judged: weights" in told) == bool(code)
    assert "Weights that stand in files of their own were not compared" in comment.read_text()


def test_a_file_that_became_no_model_does_not_pass(repository: Repository) -> None:
    write(repository.folder / "m.onnx")
    repository.commit("m")
    (repository.folder / "m.onnx").write_bytes(b"no model")
    repository.git("add", ".")
    repository.qir("git", "staged")
    assert "m.onnx: not compared" in repository.qir("git", "staged", "--fail-on", "any", code=1)
    assert "is neither NAME" in repository.qir("git", "staged", "--fail-on", "", code=2)


def test_outside_of_a_repository(tmp_path: Path) -> None:
    repository = Repository(tmp_path)
    shutil.rmtree(repository.folder / ".git")
    message = repository.qir("git", "enable", code=2)
    assert len(message.strip().splitlines()) == 1 and "git" in message


def test_a_comment_on_many_models_keeps_to_its_length() -> None:
    short = [f"### `{number}`\n" for number in range(3)]
    assert _fitting([("a" * 100, short[0]), ("b" * 200, short[1])]) == ["a" * 100, "b" * 200]
    fitted = _fitting([("a" * 30_000, short[0]), ("b" * 50_000, short[1]), ("c" * 20_000, short[2])])
    assert fitted == ["a" * 30_000, short[1], "c" * 20_000]
