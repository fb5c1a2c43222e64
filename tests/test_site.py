"""Does the documentation site show what the pages and notebooks say, and does its build notice what is broken?"""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import executed_notebooks  # noqa: E402
import site_pages  # noqa: E402

PAGE = """# `interp.load` in a heading

See `interp.heads.classify_heads()`, `interp.nothing` and [`interp.load`](x.md), `interp run`.
- one
- two

```python
import interp  # `interp.load`
- no list
```
"""


def test_names_of_the_package_become_links_and_unknown_ones_are_reported():
    told = []
    page = site_pages.with_references(PAGE, lambda name: None if name == "interp.nothing" else True, told.append)
    assert (
        "See [`interp.heads.classify_heads()`][interp.heads.classify_heads], `interp.nothing` and [`interp.load`](x.md)"
        in page
    )
    assert told == ["interp.nothing"]
    for line in ("# `interp.load` in a heading", "import interp  # `interp.load`"):
        assert line in page.splitlines()


def test_a_list_after_text_gets_an_empty_line_and_code_does_not():
    page = site_pages.with_spaced_lists(PAGE)
    assert "`interp run`.\n\n- one\n- two\n" in page
    assert "import interp  # `interp.load`\n- no list" in page
    assert site_pages.with_spaced_lists(page) == page


def test_links_to_notebooks_and_to_folders_of_the_gallery_lead_to_pages():
    page = "[a](../notebooks/01_x.ipynb#part) [b](https://x.org/y.ipynb) [c](../figures/x_y)\n```\n[d](w.ipynb)\n```"
    moved = "[a](../notebooks/01_x.md#part) [b](https://x.org/y.ipynb) [c](../figures/README.md#x_y)"
    assert site_pages.with_made_pages(page) == moved + "\n```\n[d](w.ipynb)\n```"
    assert site_pages.link_targets(page) == ["../notebooks/01_x.ipynb", "../figures/x_y"]
    picture = "![a](../figures/x_y/z.png)"
    assert site_pages.with_made_pages(picture) == picture


@pytest.mark.parametrize(
    "loads",
    [
        '<script src="https://cdn.org/x.js"></script>',
        "<link rel=stylesheet href=//fonts.org/a.css>",
        '<img alt="" src="http://x.org/a.png">',
        "<style>@import 'https://x.org/a.css'; p { background: url(//x.org/b.png) }</style>",
    ],
)
def test_external_resources_are_found(loads):
    assert site_pages.external_resources(f"<html>{loads}</html>")


def test_ordinary_links_are_not_external_resources():
    page = '<a href="https://xarray.dev">x</a><link rel="canonical" href="https://x.org"><img src="a.png"><script src="b.js">'
    assert site_pages.external_resources(page) == []
    assert site_pages.external_resources("a { background: url(data:image/png;base64,AA) }", ".css") == []


def test_every_kind_of_output_is_shown():
    figure = {"data": [{"y": [1, 2], "name": "</script>"}], "layout": {"height": 321}}
    cells = [
        new_markdown_cell("# Title\n\nProse, [link](02.ipynb)."),
        new_code_cell(
            'print("```")',
            outputs=[
                new_output("stream", name="stdout", text="\x1b[1mbold\x1b[0m <b>\n"),
                new_output(
                    "stream", name="stderr", text="10 of 64\r64 of 64\nrun:  50%|###   | 1/2 [00:01, 1.0it/s]\n"
                ),
                new_output(
                    "display_data",
                    data={"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "run: 0%"},
                ),
                new_output(
                    "execute_result", data={"text/html": "<table><tr><td>1</td></tr></table>", "text/plain": "1"}
                ),
                new_output("display_data", data={"application/vnd.plotly.v1+json": figure, "text/html": "<script>"}),
                new_output("execute_result", data={"text/plain": "{'a': 1}"}),
            ],
        ),
        new_code_cell("", outputs=[]),
        new_code_cell("# Solution\nx = 2", metadata={"tags": ["solution"]}),
    ]
    page, outputs = site_pages.notebook_page(new_notebook(cells=cells), "01.ipynb")
    assert page.startswith("# Title\n\n[Download the notebook](01.ipynb)")
    assert '````python\nprint("```")\n````' in page
    assert page.count("data-output") == len(outputs) == 4
    folded = page.partition('<details class="solution" markdown="1">')[2]
    assert folded.strip().startswith("<summary>Solution</summary>\n\n```python\n# Solution")
    assert folded.rstrip().endswith("</details>")
    assert outputs[0] == '<pre class="output">bold &lt;b&gt;\n64 of 64</pre>'
    assert "<table>" in outputs[1]
    held = outputs[2].partition('json">')[2].partition("</script>")[0]
    assert json.loads(held) == figure
    assert "min-height:321px" in outputs[2]
    assert outputs[3] == '<pre class="output">{&#x27;a&#x27;: 1}</pre>'
    shown = site_pages.with_outputs('<p>a</p><div data-output="1"></div>', outputs)
    assert shown == f"<p>a</p>{outputs[1]}"


def test_an_executed_copy_is_reused_until_code_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(executed_notebooks, "EXECUTED", tmp_path / "executed")
    path = tmp_path / "a.ipynb"
    prose, code = new_markdown_cell("# Before"), new_code_cell("1 + 1")
    nbformat.write(new_notebook(cells=[prose, code]), path)
    assert executed_notebooks.stored(path) is None
    ran = nbformat.read(path, as_version=4)
    ran.cells[1].outputs = [new_output("execute_result", data={"text/plain": "2"})]
    ran.cells.insert(0, new_code_cell("import os"))  # a test may put a cell in front
    executed_notebooks.keep(path, ran)
    with pytest.raises(ValueError, match=r"not a\.ipynb"):
        executed_notebooks.keep(path, new_notebook(cells=[new_code_cell("1 + 3")]))
    prose.source = "# After"
    nbformat.write(new_notebook(cells=[prose, code]), path)
    found = executed_notebooks.stored(path)
    assert found.cells[0].source == "# After"
    assert found.cells[1].outputs[0].data["text/plain"] == "2"
    code.source = "1 + 2"
    nbformat.write(new_notebook(cells=[prose, code]), path)
    assert executed_notebooks.stored(path) is None
    code.source = "1 + 1"
    nbformat.write(new_notebook(cells=[prose, code]), path)
    monkeypatch.setattr(executed_notebooks, "_package_hash", lambda: b"another version of the package")
    assert executed_notebooks.stored(path) is None
