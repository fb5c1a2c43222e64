"""How do figures become files? One HTML page that needs nothing else, and PNG images."""

from __future__ import annotations

import html
from contextlib import ExitStack
from pathlib import Path

import plotly.graph_objects as go
import plotly.io

from interp import plots
from interp.errors import InterpError
from interp.files import replacing, write_text

# marks that are black on white are light on a dark page
_DARK = """<script>
const dark = matchMedia("(prefers-color-scheme: dark)");
const own = new Map([...document.querySelectorAll(".plotly-graph-div")].map((f) => [f, JSON.stringify([f.data, f.layout])]));
const theme = () => own.forEach((text, f) => {
  const [data, layout] = JSON.parse(dark.matches ? text.replaceAll('"black"', '"#e0e0e0"').replaceAll('"#444444"', '"#bbbbbb"') : text);
  Plotly.react(f, data, layout);
});
if (dark.matches) theme();
dark.addEventListener("change", theme);
</script>"""


def clear(folder: str | Path, names: list[str]) -> None:
    """Remove the figures of an earlier result from a folder, so that they do not pass for those of a new one."""
    try:
        for name in ("figure.html", *(f"{name}.png" for name in names)):
            (Path(folder) / name).unlink(missing_ok=True)
    except OSError as error:
        raise InterpError(f"cannot write to {folder} ({error.strerror}): choose another --out") from error


def write_page(figures: dict[str, go.Figure], path: str | Path, *, about: str = "") -> Path:
    """One HTML page that holds all figures and needs nothing else, light or dark as the reader's system is."""
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
body {{ font-family: system-ui, sans-serif; max-width: 1000px; margin: 1rem auto; padding: 0 1rem; background: Canvas; color: CanvasText; }}
pre {{ white-space: pre-wrap; color: GrayText; font-size: 12px; }}
</style></head><body>
{body}
<details><summary>Where these numbers come from</summary><pre>{html.escape(about)}</pre></details>
{_DARK}
</body></html>
"""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except OSError as error:
        raise InterpError(f"cannot write {path} ({error.strerror}): choose another --out") from error
    return path


def write_images(figures: dict[str, go.Figure], folder: str | Path) -> list[Path]:
    """PNG files of the figures, on white; none where no browser (or no kaleido) is installed."""
    paths = [Path(folder) / f"{name}.png" for name in figures]
    printed = [
        go.Figure(figure).update_layout(paper_bgcolor="white", font_color="#404040") for figure in figures.values()
    ]
    heights = [figure.layout.height or plots.HEIGHT for figure in figures.values()]
    try:
        with ExitStack() as stack:
            temporary = [stack.enter_context(replacing(path)) for path in paths]
            # one start of the browser for all of them
            plotly.io.write_images(printed, temporary, width=900, height=heights, scale=1.5)
    except Exception:  # kaleido reports a missing browser in several ways, none of which is our failure
        return []
    return paths
