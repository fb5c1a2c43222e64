"""How is a result of `reproduce` shown? Published values next to ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.results import provenance
from interp.tables import Cell, table_of, title

_EDGE = 3.0  # in tolerances; points farther out are drawn here, with an arrow
_LONG = 28  # characters next to a line of the figure
_PASS, _FAIL, _OTHER = "pass", "FAIL", "other reading"
_VERDICTS = {
    _PASS: Text(_PASS, style="green"),
    _FAIL: Text(_FAIL, style="bold red"),
    _OTHER: Text(_OTHER, style="yellow"),
}
_SHOWN = {_PASS: "ours: pass", _FAIL: "ours: fail", _OTHER: "ours: another reading passes"}  # in the figure


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Published, ours, difference, tolerance, pass or FAIL; then the lists by name, what failed, and the sources."""
    about = provenance(result)
    whose = "measured when they were recorded, and here" if about.get("regression") else "published, and measured here"
    yield title(f"{about['title']}: {whose} on '{about['model']['name']}'")
    recorded = "recorded" if about.get("regression") else "published"
    shown = table_of("check", recorded, "ours", "difference", "tolerance", Cell("", {"": "verdict"}), words=("",))
    rows = [result.sel(check=name) for name in result["check"].values]
    for row in rows:
        shown.add_row(str(row["check"].item()), *_cells(row), _VERDICTS[_verdict(row)])
    yield shown
    for row in rows:
        if bool(row["several"]):
            ours = _cut(row["ours_text"].item(), 160)
            yield Text(f"{row['check'].item()}: {recorded} {row['published_text'].item()}; ours {ours}")
    for row in rows:
        if _verdict(row) == _FAIL:
            yield Text(f"FAIL {row['check'].item()}: {row['what'].item()} Tolerance: {row['why'].item()}")
    yield from map(Text, _readings(result))
    values = _values(result)
    if about.get("regression"):
        yield Text(
            f"{int(values.sum())} of {len(values)} recorded values come out within their tolerance. They are this "
            "package's own: a check of the installation, no reproduction."
        )
        return
    yield Text(f"{int(values.sum())} of {len(values)} published values are reproduced within their tolerance.")
    yield Text("Sources: " + "; ".join(f"{c} {u}" if u else c for c, u in about["sources"].values()))


def _verdict(row: xr.Dataset) -> str:
    """The verdict on one check: pass, FAIL, or that another reading of the source passes."""
    if bool(row["passed"]):
        return _PASS
    return _OTHER if "reproduced" in row and bool(row["reproduced"]) else _FAIL


def _by_reading(result: xr.Dataset) -> dict[str, dict[str, np.ndarray]]:
    """For each open question, whether the checks of each reading passed."""
    found: dict[str, dict[str, np.ndarray]] = {}
    if "question" in result.coords:  # not in results of earlier releases
        questions, readings = result["question"].values, result["reading"].values
        for question, reading in dict.fromkeys(zip(questions, readings, strict=True)):
            if question:
                at = (questions == question) & (readings == reading)
                found.setdefault(str(question), {})[str(reading)] = result["passed"].values[at].astype(bool)
    return found


def _readings(result: xr.Dataset) -> Iterator[str]:
    """A line for each question that a source leaves open: which reading gives the published values?"""
    for question, passed in _by_reading(result).items():
        counts = "; ".join(f"{reading}: {those.sum()} of {len(those)} pass" for reading, those in passed.items())
        yield f"{question} {counts}."


def _values(result: xr.Dataset) -> np.ndarray:
    """Whether each published value is reproduced; with several readings, the one that reproduces most."""
    certain = result["passed"].values.astype(bool)
    if "question" in result.coords:
        certain = certain[result["question"].values == ""]
    best = [max(passed.values(), key=np.sum) for passed in _by_reading(result).values()]
    return np.concatenate([certain, *best])


def published_and_ours(result: xr.Dataset) -> go.Figure:
    """Ours minus published, in tolerances: a dot inside the bar passes. On the right, both values."""
    names = [plots.escaped(name) for name in result["check"].values]
    difference, tolerance = result["difference"].values, result["tolerance"].values
    with np.errstate(divide="ignore", invalid="ignore"):
        # with tolerance 0, no difference is allowed
        apart = np.where(difference == 0, 0.0, difference / tolerance)
    at = np.clip(apart, -_EDGE, _EDGE)
    figure = go.Figure()
    figure.add_scatter(
        x=np.zeros(len(names)),
        y=names,
        mode="markers",
        name="published, with its tolerance",
        hoverinfo="skip",
        marker={"color": plots.GREY, "symbol": "line-ns", "size": 12, "line": {"color": plots.GREY, "width": 2}},
        error_x={"array": (tolerance > 0).astype(float), "width": 6, "color": plots.GREY},
    )
    verdicts = np.array([_verdict(result.sel(check=name)) for name in result["check"].values])
    for verdict, colour in zip(_SHOWN, (plots.COLOURS[0], plots.COLOURS[1], plots.COLOURS[4]), strict=True):
        of = verdicts == verdict
        if of.any():
            figure.add_scatter(
                x=np.where(np.isnan(at), 0.0, at)[of],
                y=[n for n, here in zip(names, of, strict=True) if here],
                mode="markers",
                name=_SHOWN[verdict],
                customdata=_hover(result, of),
                marker={
                    "color": colour,
                    "size": 11,
                    "symbol": [_symbol(value) for value in apart[of]],
                },
                hovertemplate="%{customdata[0]}<br>published %{customdata[1]}<br>ours %{customdata[2]}<br>difference "
                "%{customdata[3]}, tolerance %{customdata[4]}<br>%{customdata[5]}<extra></extra>",
            )
    for name, row in zip(names, (result.sel(check=name) for name in result["check"].values), strict=True):
        published, ours, *_ = _cells(row)
        figure.add_annotation(
            x=1.01,
            xref="paper",
            xanchor="left",
            y=name,
            showarrow=False,
            align="left",
            text=plots.escaped(_cut(f"{published}  →  {ours}", _LONG)),
        )
    about = provenance(result)
    title = f"{plots.escaped(about['title'])}: published and ours · {plots.escaped(str(about['model']['name'])[-40:])}"
    figure.update_yaxes(range=[len(names) - 0.4, -0.6], categoryorder="array", categoryarray=names, automargin=True)
    figure.update_xaxes(range=[-_EDGE - 0.3, _EDGE + 0.3], dtick=1, zeroline=True)
    height = 200 + 26 * len(names)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=title,
        xaxis_title="ours less published, in tolerances (published → ours at the right)",
        title_y=1 - 20 / height,
        legend_y=1,
        height=height,
        margin={"r": 200},
    )


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


def _cells(row: xr.Dataset) -> tuple[Cell, ...]:
    """Published, ours, difference and tolerance of one check, as text; in a CSV file, lists by name."""
    difference, tolerance = float(row["difference"]), float(row["tolerance"])
    if bool(row["several"]):
        count = int(row["published"])
        words = f"{count} named", f"{int(row['ours'])} of them", f"{difference:+.0f}", f"{tolerance:.0f} missing"
        published, ours = (row[name].item() for name in ("published_text", "ours_text"))
    else:
        unit = " decades" if row["scale"].item() == "log10" else ""
        measured = row["ours_text"].item() if np.isfinite(float(row["ours"])) else "not measured"
        apart = f"{difference:+.3g}{unit}" if np.isfinite(difference) else "-"
        words = row["published_text"].item(), measured, apart, f"{tolerance:.3g}{unit}"
        published, ours = (float(row[name]) for name in ("published", "ours"))
    values: list[dict[str, Any]] = [{"": published}, {"": ours}, {"": difference}, {"": tolerance}]
    values[2]["scale"] = row["scale"].item()
    return tuple(map(Cell, words, values))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


FIGURES = [published_and_ours]
