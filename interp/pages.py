"""How do figures and tables become files? One self-contained HTML page, images, CSV."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import plotly.graph_objects as go
import plotly.io
from rich.table import Table

from interp import plots
from interp.errors import InterpError
from interp.files import replacing, write_errors, write_text
from interp.tables import LabelledTable, csv_text

IMAGES = ("png", "svg", "pdf")
_DENSITY = 300  # dots an inch of a PNG for print
_SHOWN = re.compile(r'<div id="(\w+)" class="plotly-graph-div"')
# marks that are black on white become light on a dark page
_DARK = """<script>
const dark = matchMedia("(prefers-color-scheme: dark)");
const drawn = [...document.querySelectorAll(".plotly-graph-div")];
const own = new Map(drawn.map((f) => [f, JSON.stringify([f.data, f.layout])]));
const lighter = (text) => text.replaceAll('"black"', '"#e0e0e0"').replaceAll('"#444444"', '"#bbbbbb"');
const theme = () => own.forEach((text, f) => {
  const [data, layout] = JSON.parse(dark.matches ? lighter(text) : text);
  Plotly.react(f, data, layout);
});
if (dark.matches) theme();
dark.addEventListener("change", theme);
</script>"""


def clear(folder: str | Path, names: Iterable[str] = (), *, about: str | None = None) -> None:
    """Remove figures and tables of an earlier result from a folder, so that they are not mistaken for the new one's.

    Args:
        folder: where `write_page`, `write_images` and `write_tables` wrote.
        names: figures to remove in addition to those that the page shows.
        about: what the new result's page says about it. Where the existing page says the same, the files beside it are
            of the same result and stay.

    Raises:
        InterpError: the folder cannot be written to.
    """
    folder = Path(folder)
    page = folder / "figure.html"
    with write_errors(f"to {folder}"):
        text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
        if not text or about is None or _about(about) not in text:
            for name in {*_SHOWN.findall(text), *names}:
                for kind in IMAGES:
                    (folder / f"{name}.{kind}").unlink(missing_ok=True)
            if text:
                _clear_tables(folder)
        page.unlink(missing_ok=True)


def _about(text: str) -> str:
    """As it appears in a page."""
    return f"<pre>{html.escape(text)}</pre>"


def _clear_tables(folder: Path, start: int = 1) -> None:
    """Remove `table_START.csv` and its consecutive successors."""
    for number in count(start):
        path = folder / f"table_{number}.csv"
        if not path.exists():
            return
        path.unlink()


def write_page(figures: dict[str, go.Figure], path: str | Path, *, about: str = "") -> Path:
    """Write one self-contained HTML page with all figures, light or dark as the reader's system is."""
    path = Path(path)
    panels = [
        figure.to_html(full_html=False, include_plotlyjs=i == 0, div_id=name, config={"displaylogo": False})
        for i, (name, figure) in enumerate(figures.items())
    ]
    body = "\n".join(panels)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(path.parent.name)}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font-family: system-ui, sans-serif; max-width: 1000px; margin: 1rem auto; padding: 0 1rem; }}
body {{ background: Canvas; color: CanvasText; }}
pre {{ white-space: pre-wrap; color: GrayText; font-size: 12px; }}
</style></head><body>
{body}
<details><summary>Where these numbers come from</summary>{_about(about)}</details>
{_DARK}
</body></html>
"""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    return path


def write_images(
    figures: dict[str, go.Figure],
    folder: str | Path,
    formats: Sequence[str] = ("png",),
    *,
    required: bool = False,
    width: float | None = None,
) -> list[Path]:
    """Write each figure as an image, on white.

    Args:
        figures: by file name.
        folder: where they are written.
        formats: any of `IMAGES`: png for screens; svg and pdf, which scale, for print.
        required: whether it is an error if none can be drawn.
        width: inches of a printed column, for which figures are restyled (`plots.paper`); None: as on a screen.

    Returns:
        The files; empty if no browser (or no kaleido) is installed.

    Raises:
        InterpError: images are required and cannot be drawn.
    """
    files = [(figure, kind, Path(folder) / f"{name}.{kind}") for kind in formats for name, figure in figures.items()]
    if width is None:
        printed = [
            go.Figure(figure).update_layout(paper_bgcolor="white", font_color="#404040") for figure, _, _ in files
        ]
    else:
        printed = [plots.paper(figure, width=width) for figure, _, _ in files]
    how = {
        "width": [plots.WIDTH if width is None else figure.layout.width for figure in printed],
        "height": [figure.layout.height or plots.HEIGHT for figure in printed],
        "scale": [(1.5 if width is None else _DENSITY / 96) if kind == "png" else 1 for _, kind, _ in files],
    }
    try:
        with ExitStack() as stack:
            temporary = [stack.enter_context(replacing(path)) for _, _, path in files]
            # starts the browser once for all of them
            plotly.io.write_images(printed, temporary, **how)
    except Exception as error:  # kaleido reports a missing browser in several ways, none of them our fault
        if not required:
            return []
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise InterpError(
            f"no {' and no '.join(formats)} ({said}): pip install 'interp[figures]' and install Chrome or Chromium, "
            "or ask for --format html"
        ) from error
    return [path for _, _, path in files]


def write_tables(tables: Iterable[LabelledTable | Table], folder: str | Path) -> list[Path]:
    """Write each table to a CSV file `table_N.csv`, numbered from 1 in their order, and remove surplus ones of an
    earlier result.

    Args:
        tables: the tables that a view prints.
        folder: where the files are written.

    Returns:
        The files.

    Raises:
        InterpError: the folder cannot be written to.
    """
    folder = Path(folder)
    texts = list(map(csv_text, tables))
    paths = [folder / f"table_{number}.csv" for number in range(1, len(texts) + 1)]
    with write_errors(f"to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            write_text(path, text)
        _clear_tables(folder, len(texts) + 1)
    return paths
