"""`qir git`: models in `git diff`, `git log -p`, `git show`, and in a commit hook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qir.diff import GraphDiff

__all__ = ["app"]

app = typer.Typer(
    help="Show what changed in models in git's own commands. Example: [bold]qir git enable[/bold], then git diff.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
Everywhere = Annotated[bool, typer.Option("--global", help="For all repositories of this user, not only this one.")]


@app.command()
def enable(everywhere: Everywhere = False) -> None:
    """Set up git's diff driver for .onnx files: two settings, and one line in .gitattributes.

    Example: [bold]qir git enable && git diff model.onnx[/bold]
    """
    from qir.diff.git import settings

    found = settings.enable(everywhere)
    typer.echo(f"enabled: git shows models of {_where(found)} through qir ({found.attributes})")
    if not everywhere:
        typer.echo("commit .gitattributes, and let others run 'qir git enable' too: git keeps commands per clone")


@app.command()
def disable(everywhere: Everywhere = False) -> None:
    """Take out what `enable` put in.

    Example: [bold]qir git disable[/bold]
    """
    from qir.diff.git import settings

    typer.echo(f"disabled for {_where(settings.disable(everywhere))}")


@app.command()
def status(everywhere: Everywhere = False) -> None:
    """Say whether git shows models through qir here. Exit 0: it does. 1: it does not.

    Example: [bold]qir git status[/bold]
    """
    from qir.diff.git import settings

    found = settings.status(everywhere)
    if found.enabled:
        typer.echo(f"enabled for {_where(found)} ({found.attributes})")
        return
    missing = [
        *([] if found.attributes else ["the line in .gitattributes"]),
        *([] if found.command and found.textconv else ["the driver in git's configuration"]),
    ]
    typer.echo(f"not enabled for {_where(found)}: {' and '.join(missing)} missing; run 'qir git enable'")
    raise typer.Exit(1)


@app.command()
def textconv(file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that git hands out.")]) -> None:
    """Print a model as text; git calls this for `git log -p` and `git show`.

    Example: [bold]qir git textconv model.onnx[/bold]
    """
    from qir.diff.git.show import model_text

    typer.echo(model_text(file), nl=False)


@app.command()
def driver(
    arguments: Annotated[
        list[str], typer.Argument(metavar="PATH OLD HEX MODE NEW HEX MODE", help="What git gives to a diff driver.")
    ],
) -> None:
    """Print what changed between two files; git calls this for `git diff`.

    Example: [bold]git diff model.onnx[/bold], after `qir git enable`
    """
    from qir.diff.git.show import driver_text
    from qir.errors import OptionError

    if len(arguments) not in (7, 9):  # two more where git saw a rename
        raise OptionError("git gives seven arguments to a diff driver; run 'git diff' after 'qir git enable'")
    typer.echo(driver_text(arguments[0], Path(arguments[1]), Path(arguments[4])), nl=False)


FailOn = Annotated[
    str | None, typer.Option(metavar="CONDITIONS", help="Exit 1 where one holds, as in 'outputs,weights>0.1'.")
]


@app.command()
def staged(
    files: Annotated[
        list[str] | None, typer.Argument(metavar="[FILE]...", help="Models; all staged ones if none.")
    ] = None,
    fail_on: FailOn = None,
) -> None:
    """Show what the models staged for the next commit change; for a commit hook.

    Example: [bold]qir git staged --fail-on outputs[/bold]

    Exit 0: shown. 1: a condition of --fail-on holds, or cannot be judged.
    """
    _show("HEAD", None, files or [], fail_on, None)


@app.command()
def changes(
    base: Annotated[str, typer.Argument(metavar="BASE", help="A commit, or the branch that a change goes into.")],
    head: Annotated[str, typer.Argument(metavar="[HEAD]", help="The commit with the change.")] = "HEAD",
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", help="Models; all if none.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a comment for a pull request instead of text.")
    ] = None,
    fail_on: FailOn = None,
) -> None:
    """Show what a branch changes in models, since it left BASE; for a pull request's check.

    Example: [bold]qir git changes origin/main --markdown comment.md --fail-on outputs[/bold]

    Exit 0: shown. 1: a condition of --fail-on holds, or cannot be judged.
    """
    _show(base, head, files or [], fail_on, markdown)


def _show(base: str, head: str | None, files: list[str], fail_on: str | None, markdown: Path | None) -> None:
    from qir.cli.options import write_text
    from qir.diff.gate import parse_conditions
    from qir.diff.git.show import STUBS, changed_models

    conditions = [] if fail_on is None else parse_conditions(fail_on)
    failing: list[str] = []
    blocks: list[tuple[str, str]] = []
    for model in changed_models(base, head, files):
        if markdown is None:
            typer.echo(model.text)
        elif model.diff is None:
            text = f"### {model.path}\n\n```\n{model.text}```\n"
            blocks.append((text, text))
        else:
            unseen = f"\n{STUBS}" if model.stubs else ""
            blocks.append((model.diff.to_markdown() + unseen, _in_short(model.path, model.diff) + unseen))
        holding = [str(condition) for condition in conditions if model.diff is not None and condition.holds(model.diff)]
        if holding:
            failing.append(f"{model.path}: fails on {', '.join(holding)}")
        unread = model.unread
        if model.stubs and any(condition.name == "weights" for condition in conditions):
            unread = "weights stand in files of their own; compare the two with 'qir diff', or leave that condition out"
        if conditions and unread:
            failing.append(f"{model.path}: not compared, so --fail-on cannot be judged: {unread}")
    if markdown is not None:
        closing = [f"**{line}**\n" for line in failing] or ([] if blocks else ["No model changes.\n"])
        write_text(markdown, "\n".join([*_fitting(blocks), *closing]))
    for line in failing:
        typer.echo(line)
    if failing:
        raise typer.Exit(1)


_LONGEST_COMMENT = 62_000
"""Characters: code hosts refuse comments of more than 65,536."""


def _fitting(blocks: list[tuple[str, str]]) -> list[str]:
    """What to say of each model, at length; the longest ones in short until all fit into one comment."""
    shown = [text for text, _ in blocks]
    for place in sorted(range(len(blocks)), key=lambda place: -len(shown[place])):
        if sum(map(len, shown)) <= _LONGEST_COMMENT:
            break
        shown[place] = blocks[place][1]
    return shown


def _in_short(path: str, diff: GraphDiff) -> str:
    from qir.diff.render.wording import headline

    return f"### `{path}`\n\n**{headline(diff)}** Too long for one comment: `qir diff` on the two files shows all.\n"


def _where(found: object) -> str:
    repository = getattr(found, "repository", None)
    return "all repositories of this user" if repository is None else repr(str(repository))
