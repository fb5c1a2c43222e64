"""How do the repository's pages and notebooks become pages of the documentation site? Text in, text out.

`site_hooks.py` hands these to MkDocs. Pages stay as GitHub shows them: what MkDocs needs otherwise is changed here.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from typing import Any

_FENCE = re.compile(r"^( *)(```+|~~~+)")
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d+[.)]) ")
_NAME = re.compile(r"(?<![\[`])`(interp(?:\.[A-Za-z_]\w*)+)(\(\))?`(?![`\]])")
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)([^)]*\))")
_BAR = re.compile(r".*\d+%\|.*\|.*|.*\bit/s\].*")  # progress of a run
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_EXTERNAL = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=[\"']?(?P<src>(?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|icon|preconnect|dns-prefetch|manifest|modulepreload))[^>]*?"
    r"\bhref=[\"']?(?P<href>(?:https?:)?//[^\"'\s>]+)",
    re.I,
)
_EXTERNAL_IN_CSS = re.compile(r"(?:url\(\s*[\"']?|@import\s+[\"'])((?:https?:)?//[^\"')\s]+)", re.I)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """Apply a function to the lines of a Markdown page outside fenced blocks."""
    done, fence = [], ""
    for line in text.split("\n"):
        mark = _FENCE.match(line)
        if fence:
            fence = "" if mark and mark[2].startswith(fence) and not line.strip().strip(fence[0]) else fence
        elif mark:
            fence = mark[2]
        else:
            line = change(line)
        done.append(line)
    return "\n".join(done)


def with_spaced_lists(text: str) -> str:
    """Put an empty line before each list that follows a line of text: Python-Markdown needs one, GitHub does not."""
    done: list[str] = []
    fence = False
    for line in text.split("\n"):
        if _FENCE.match(line):
            fence = not fence
        before = done[-1] if done else ""
        starts = not fence and _ITEM.match(line) and before.strip() and not _ITEM.match(before)
        if starts and not before.startswith((" ", "#", "|", "<", ">")):
            done.append("")
        done.append(line)
    return "\n".join(done)


def with_details(text: str) -> str:
    """Render Markdown inside `<details>`, as on GitHub."""
    return re.sub(r"<details(?![^>]*\bmarkdown\b)([^>]*)>", r'<details markdown="1"\1>', text)


def with_references(text: str, known: Callable[[str], bool | None], missing: Callable[[str], None]) -> str:
    """Make each name of the package in backticks, `interp.heads.classify_heads`, a link to the reference.

    Args:
        text: a Markdown page.
        known: whether a dotted name is documented; None where there is no such name.
        missing: called with each unknown name.

    Returns:
        The page. Headings, links and fenced blocks stay as they are.
    """

    def linked(match: re.Match[str]) -> str:
        found = known(match[1])
        if found is None:
            missing(match[1])
        return f"[`{match[1]}{match[2] or ''}`][{match[1]}]" if found else match[0]

    return outside_code(text, lambda line: line if line.startswith("#") else _NAME.sub(linked, line))


def with_made_pages(text: str) -> str:
    """Point links to notebooks, and to folders of the gallery, at their pages."""

    def moved(match: re.Match[str]) -> str:
        target = match[2]
        if target.startswith(("http:", "https:")):
            return match[0]
        if target.endswith(".ipynb"):
            return match[1] + target.removesuffix(".ipynb") + ".md" + match[3]
        folder = re.fullmatch(r"((?:\.\./)*figures/)(\w+)/?", target)
        return f"{match[1]}{folder[1]}README.md#{folder[2]}{match[3]}" if folder else match[0]

    return outside_code(text, lambda line: _LINK.sub(moved, line))


def link_targets(text: str) -> list[str]:
    """The files that a Markdown page links to, as written, without anchors."""
    found: list[str] = []

    def collect(line: str) -> str:
        found.extend(m[2] for m in _LINK.finditer(line) if not re.match(r"[a-z]+:", m[2]))
        return line

    outside_code(text, collect)
    return found


def external_resources(page: str, suffix: str = ".html") -> list[str]:
    """What a browser would load from elsewhere to show a page or a style sheet: addresses, in order.

    Ordinary links do not count.
    """
    if suffix == ".css":
        return _EXTERNAL_IN_CSS.findall(page)
    found = [match["src"] or match["href"] for match in _EXTERNAL.finditer(page)]
    for style in re.findall(r"<style[^>]*>(.*?)</style>", page, re.S | re.I):
        found += _EXTERNAL_IN_CSS.findall(style)
    return found


# --- notebooks --------------------------------------------------------------------------------------------------------


def notebook_page(notebook: Any, name: str) -> tuple[str, list[str]]:
    """Turn a notebook into a Markdown page and the HTML of its outputs.

    Args:
        notebook: as nbformat reads it, with outputs.
        name: the file's name, which the page offers to download.

    Returns:
        The page, in which `<div data-output="3"></div>` stands for the fourth output, and the outputs.
    """
    parts, outputs = [], []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code" and cell.source.strip():
            ticks = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`{3,}", cell.source)), 0)
            shown = [f"{ticks}python\n{cell.source}\n{ticks}"]
            for output in _outputs(cell.outputs):
                shown.append(f'<div data-output="{len(outputs)}"></div>')
                outputs.append(output)
            if "solution" in cell.metadata.get("tags", []):
                shown = ['<details class="solution" markdown="1">\n<summary>Solution</summary>', *shown, "</details>"]
            parts += shown
    where = f"[Download the notebook]({name}){{ .notebook download }}"
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n{where}\n\n{rest}", outputs


def _outputs(outputs: Any) -> list[str]:
    """The HTML of a cell's outputs, one after the other; output printed in pieces is joined."""
    found: list[str] = []
    printed = ""
    for output in outputs:
        if output.output_type == "stream":
            printed += output.text
            continue
        if printed.strip():
            found.append(_plain(printed))
        printed = ""
        shown = _shown(output)
        if shown:
            found.append(shown)
    return found + ([_plain(printed)] if printed.strip() else [])


def _plain(text: str) -> str:
    """Text as a terminal would show it: without colours, the last of lines that overwrite each other."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in _ANSI.sub("", text).split("\n")]
    kept = "\n".join(line for line in lines if not _BAR.fullmatch(line)).strip("\n")
    return f'<pre class="output">{html.escape(kept)}</pre>' if kept.strip() else ""


def _shown(output: Any) -> str:
    """The HTML of what a cell displays: a figure, a table, an image or text; a failed cell's error."""
    if output.output_type == "error":
        return _plain("\n".join(output.traceback))
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return ""  # progress of a run
    if "application/vnd.plotly.v1+json" in data:
        figure = data["application/vnd.plotly.v1+json"]
        held = {"data": figure["data"], "layout": figure["layout"]}
        text = json.dumps(held, separators=(",", ":")).replace("</", "<\\/")
        height = int(figure["layout"].get("height") or 450)
        script = f'<script type="application/json">{text}</script>'
        return f'<div class="output"><div class="plotly-figure" style="min-height:{height}px">{script}</div></div>'
    if "text/html" in data:
        return f'<div class="output html">{data["text/html"]}</div>'
    if "image/svg+xml" in data:
        return f'<div class="output">{data["image/svg+xml"]}</div>'
    if "image/png" in data:
        return f'<div class="output"><img alt="" src="data:image/png;base64,{data["image/png"].strip()}"></div>'
    return _plain(str(data.get("text/plain", "")))


def with_outputs(page: str, outputs: list[str]) -> str:
    """Put the outputs of a notebook into its finished page."""
    return re.sub(r'<div data-output="(\d+)"></div>', lambda m: outputs[int(m[1])], page)


def with_links_to_images(page: str) -> str:
    """Let images load when they come near, and open in full size when they are clicked."""

    def linked(match: re.Match[str]) -> str:
        source = re.search(r'\bsrc="([^"]+)"', match[0])
        if not source or source[1].startswith("data:"):
            return match[0]
        image = match[0].replace("<img ", '<img loading="lazy" ', 1)
        return f'<a class="figure" href="{source[1]}">{image}</a>'

    return re.sub(r"<img\b[^>]*>", linked, page)
