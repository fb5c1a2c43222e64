"""What was reproduced? A table and a figure of a result of `reproduce`; no model, no torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from interp import plots
from interp.results import provenance

_EDGE = 3.0  # tolerances: what lies farther out is drawn here, with an arrow
_LONG = 28  # characters beside a line of the figure


def is_reproduction(result: xr.Dataset) -> bool:
    """Does a result hold published values beside ours?"""
    return {"published", "ours", "tolerance", "passed", "ours_text"} <= set(result.data_vars) and "check" in result.dims


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Published, ours, difference, tolerance, pass or FAIL; then the lists by name, what failed, and the sources."""
    from interp.tables.common import table_of, title  # here, since interp.tables shows this table, too

    about = provenance(result)
    yield title(f"{about['title']}: published, and measured here on '{about['model']['name']}'")
    shown = table_of("check", "published", "ours", "difference", "tolerance", "", words=("",))
    rows = [result.sel(check=name) for name in result["check"].values]
    for row in rows:
        passed = bool(row["passed"])
        verdict = Text("pass", style="green") if passed else Text("FAIL", style="bold red")
        shown.add_row(escape(str(row["check"].item())), *_cells(row), verdict)
    yield shown
    for row in rows:
        if bool(row["several"]):
            ours = _cut(row["ours_text"].item(), 160)
            yield Text(f"{row['check'].item()}: published {row['published_text'].item()}; ours {ours}")
    for row in rows:
        if not bool(row["passed"]):
            yield Text(f"FAIL {row['check'].item()}: {row['what'].item()} Tolerance: {row['why'].item()}")
    yield Text(f"{int(result['passed'].sum())} of {len(rows)} published values are reproduced within their tolerance.")
    yield Text("Sources: " + "; ".join(f"{c} {u}" if u else c for c, u in about["sources"].values()))


def published_and_ours(result: xr.Dataset) -> go.Figure:
    """Ours less published, in tolerances: a dot inside the bar passes. At the right, both as they are."""
    names = [plots.escaped(name) for name in result["check"].values]
    difference, tolerance = result["difference"].values, result["tolerance"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        # nothing is allowed to differ where the tolerance is 0
        apart = np.where(difference == 0, 0.0, difference / tolerance)
    at = np.clip(apart, -_EDGE, _EDGE)
    figure = go.Figure()
    figure.add_scatter(
        x=np.zeros(len(names)), y=names, mode="markers", name="published, with its tolerance", hoverinfo="skip",
        marker={"color": plots.GREY, "symbol": "line-ns", "size": 12, "line": {"color": plots.GREY, "width": 2}},
        error_x={"array": (tolerance > 0).astype(float), "width": 6, "color": plots.GREY},
    )  # fmt: skip
    passed = result["passed"].values.astype(bool)
    for verdict, colour, of in (("ours: pass", plots.COLOURS[0], passed), ("ours: fail", plots.COLOURS[1], ~passed)):
        if of.any():
            figure.add_scatter(
                x=np.where(np.isnan(at), 0.0, at)[of], y=[n for n, here in zip(names, of, strict=True) if here],
                mode="markers", name=verdict, customdata=_hover(result, of), marker={
                    "color": colour, "size": 11, "symbol": [_symbol(value) for value in apart[of]],
                },
                hovertemplate="%{customdata[0]}<br>published %{customdata[1]}<br>ours %{customdata[2]}<br>difference "
                "%{customdata[3]}, tolerance %{customdata[4]}<br>%{customdata[5]}<extra></extra>",
            )  # fmt: skip
    for name, row in zip(names, (result.sel(check=name) for name in result["check"].values), strict=True):
        published, ours, *_ = _cells(row)
        figure.add_annotation(
            x=1.01, xref="paper", xanchor="left", y=name, showarrow=False, align="left",
            text=plots.escaped(_cut(f"{published}  →  {ours}", _LONG)),
        )  # fmt: skip
    about = provenance(result)
    title = f"{plots.escaped(about['title'])}: published and ours · {plots.escaped(str(about['model']['name'])[-40:])}"
    figure.update_yaxes(autorange="reversed", categoryorder="array", categoryarray=names, automargin=True)
    figure.update_xaxes(range=[-_EDGE - 0.3, _EDGE + 0.3], dtick=1, zeroline=True)
    return figure.update_layout(
        template=plots.TEMPLATE, title=title,
        xaxis_title="ours less published, in tolerances (published → ours at the right)",
        height=200 + 26 * len(names), margin={"r": 200},
    )  # fmt: skip


def _symbol(apart: float) -> str:
    if np.isnan(apart):
        return "x-open"
    return "circle" if abs(apart) <= _EDGE else "triangle-right" if apart > 0 else "triangle-left"


def _hover(result: xr.Dataset, of: np.ndarray) -> list[list[str]]:
    rows = []
    for name in result["check"].values[of]:
        row = result.sel(check=name)
        texts = [row[n].item() for n in ("what", "published_text", "ours_text")]
        _, _, difference, tolerance = _cells(row)
        rows.append([plots.escaped(_cut(t, 100)) for t in (*texts, difference, tolerance, row["citation"].item())])
    return rows


def _cells(row: xr.Dataset) -> tuple[str, str, str, str]:
    """Published, ours, difference and tolerance of one check, as text."""
    difference, tolerance = float(row["difference"]), float(row["tolerance"])
    if bool(row["several"]):
        count = int(row["published"])
        return f"{count} named", f"{int(row['ours'])} of them", f"{difference:+.0f}", f"{tolerance:.0f} missing"
    unit = " decades" if row["scale"].item() == "log10" else ""
    ours = row["ours_text"].item() if np.isfinite(float(row["ours"])) else "not measured"
    apart = f"{difference:+.3g}{unit}" if np.isfinite(difference) else "-"
    return row["published_text"].item(), ours, apart, f"{tolerance:.3g}{unit}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"
