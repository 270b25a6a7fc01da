"""What the renderers write: readable, bounded, honest about what is left out, and harmless whatever the names say."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from qir.diff import GraphDiff, diff
from qir.diff.render.layout import lay_out
from qir.ir import Model
from qir.ir.parser import parse_model
from tests.browser import opened

OLD = """
model ir=8 opset=[17]
graph g(%x: f32[1,8]) -> (%y) {
  @w: f32[8,8] #5a0a9bcd7950f8fe
  @v: f32[8,4] #fe8bcae945d841e3
  %h: f32[1,8] = MatMul(%x, @w) name="first"
  %r: f32[1,8] = Relu(%h) name="act"
  %y: f32[1,4] = MatMul(%r, @v) name="second"
}
"""


def text_of(model: Model) -> str:
    from qir.ir.printer import print_model

    return print_model(model)


def changed(*edits: tuple[str, str]) -> GraphDiff:
    text = text_of(parse_model(OLD))
    new = text
    for before, after in edits:
        assert before in new, (before, new)
        new = new.replace(before, after)
    return diff(parse_model(text), parse_model(new))


@pytest.fixture(scope="module")
def two_changes() -> GraphDiff:
    return changed(("= Relu(%h)", "= Sigmoid(%h)"), ("#fe8bcae945d841e3", "#fe8bcae945d841e4"))


def test_text_fits_eighty_columns_without_colour(two_changes: GraphDiff) -> None:
    text = two_changes.to_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "1 node changed, 1 weight changed." in text
    assert "Relu -> Sigmoid" in text
    assert "SQNR" in text and "|" in text


def test_text_with_colour(two_changes: GraphDiff) -> None:
    coloured = two_changes.to_text(colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).split() == two_changes.to_text().split()


def test_what_is_not_shown_is_counted(two_changes: GraphDiff) -> None:
    assert "1 more change not shown." in two_changes.to_text(max_changes=1)
    assert "2 more changes not shown." in two_changes.to_text(max_changes=0)
    assert "_1 more change;" in two_changes.to_markdown(max_changes=1)


def test_identical_models_are_one_line() -> None:
    same = diff(parse_model(OLD), parse_model(OLD))
    assert same.to_text() == "The models are identical.\n"
    assert "identical" in same.to_markdown()


def test_markdown_keeps_to_its_length() -> None:
    many = "".join(f'  %z{i}: f32[1,8] = Relu(%x) name="extra{i}"\n' for i in range(3000))
    outs = ", ".join(f"%z{i}" for i in range(3000))
    old = parse_model("model ir=8 opset=[17]\ngraph g(%x: f32[1,8]) -> (%y) {\n  %y: f32[1,8] = Relu(%x)\n}\n")
    new = parse_model(
        f"model ir=8 opset=[17]\ngraph g(%x: f32[1,8]) -> (%y, {outs}) {{\n{many}  %y: f32[1,8] = Tanh(%x)\n}}\n"
    )
    found = diff(old, new)
    text = found.to_markdown()
    assert 10_000 < len(text) <= 60_000
    listed = len(re.findall(r"^- ", text, re.MULTILINE))
    hidden = int(re.search(r"_([\d,]+) more changes;", text).group(1).replace(",", ""))  # type: ignore[union-attr]
    assert listed + hidden == len(found.changes)


def test_markdown_draws_what_changed(two_changes: GraphDiff) -> None:
    text = two_changes.to_markdown()
    picture = text.split("```mermaid")[1].split("```")[0]
    assert "flowchart TD" in picture
    assert '["Relu #8594; Sigmoid<br/>act"]:::changed' in picture
    assert picture.count('"') % 2 == 0


HOSTILE = "</script><img src=x onerror=alert(1)>`*_|&amp;"


def hostile() -> GraphDiff:
    from qir.ir.literals import quote

    new = text_of(parse_model(OLD)).replace('"act"', quote(HOSTILE)).replace("= Relu(", "= Tanh(")
    return diff(parse_model(OLD), parse_model(new))


def test_names_are_only_names(tmp_path: Path) -> None:
    found = hostile()
    assert "<img" not in found.to_markdown().replace("\\<", "")
    page = found.to_html()
    assert "<img" not in page
    assert "<img" not in found._repr_html_()
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with opened(tmp_path / "page.html") as tab:
        assert tab.locator("img").count() == 0
        assert HOSTILE in tab.locator("#changes").inner_text()


def test_the_page_in_a_browser(two_changes: GraphDiff, tmp_path: Path) -> None:
    path = tmp_path / "diff.html"
    path.write_text(two_changes.to_html(), encoding="utf-8")
    with opened(path) as page:
        entries = page.locator("#changes .entry:visible")
        assert entries.count() == 2
        assert page.locator("#changes svg.histogram").count() == 1
        page.fill("#search", "sigmoid")
        assert entries.count() == 1
        assert page.locator("#found").inner_text() == "1 of 2 changes"
        page.fill("#search", "")
        page.click("[data-tab=graphs]")
        boxes = page.locator("#graphs svg .box.changed")
        assert boxes.count() == 4, "the replaced node and the one with another weight, on either side"
        assert page.locator("#detail").is_hidden()
        boxes.first.click()
        detail = page.locator("#detail").inner_text()
        assert "Relu" in detail and "Sigmoid" in detail
        assert page.locator("svg .box.lit").count() >= 2, "its counterpart lights up too"
        panel = page.locator("#detail").bounding_box()
        for box in page.locator("#graphs svg .box.lit").all():
            place = box.bounding_box()
            assert place and panel and 0 <= place["y"] and place["y"] + place["height"] <= panel["y"], "not hidden"
        page.click("#close")
        assert page.locator("#detail").is_hidden()


def test_json_obeys_its_schema_in_the_docs(two_changes: GraphDiff) -> None:
    content = json.loads(json.dumps(two_changes.to_json(), allow_nan=False))
    schema = json.loads((Path(__file__).parents[2] / "docs/diff.schema.json").read_text(encoding="utf-8"))
    assert set(schema["required"]) <= set(content)
    assert set(content["summary"]) == set(schema["properties"]["summary"]["properties"])


def test_nodes_of_a_layout_do_not_overlap() -> None:
    keys = [str(i) for i in range(40)]
    edges = [(str(i), str(j)) for i in range(40) for j in (i + 1, i + 7) if j < 40]
    widths = {key: 50.0 + 3 * int(key) for key in keys}
    layout = lay_out(keys, edges, widths, gap=10, row=60)
    rows: dict[float, list[str]] = {}
    for key, (_, y) in layout.places.items():
        rows.setdefault(y, []).append(key)
    for row in rows.values():
        row.sort(key=lambda key: layout.places[key][0])
        for a, b in pairwise(row):
            room = layout.places[b][0] - layout.places[a][0] - (widths[a] + widths[b]) / 2
            assert room >= 9.99
    for a, b in edges:
        assert layout.places[a][1] < layout.places[b][1]
    assert all(widths[k] / 2 <= layout.places[k][0] <= layout.width - widths[k] / 2 for k in keys)
