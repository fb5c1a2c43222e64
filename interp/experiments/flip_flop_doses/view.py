"""How does a result of `flip_flop_doses` look: are tokens of low dose misread, and is attention at fault?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import NO_COUNTERPART, Caption, GalleryEntry
from interp.request import Request
from interp.results import provenance
from interp.statistics import binomial_interval, groups_differ_p
from interp.tables import number, percent, table_of, title

_ORDINARY = -1
_GROUPS = {
    "matching": ("dilution", "tie", "wrong write", "ignored value", "other key"),
    "content": ("content",),
    "read-out": ("read-out",),
}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List wrong reads and attention glitches by dose, and the faults of the wrong reads.

    Args:
        result: a result of `flip_flop_doses`.

    Returns:
        What rich can print, line by line: percent with exact 95% intervals, and counts by fault.

    Example:
        >>> result = interp.run("flip_flop_doses", "flipflop-doses", registers=2, tokens_each=64, calibration=4)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:4]), sep=" | ")
        FFL(0.8) | 0 | 16 | 100.0 (79.4 .. 100.0)%
    """
    model = provenance(result)["model"]["name"]
    yield title(f"Registers of '{model}' that hold a token of known dose: first reads, exact 95% intervals")
    columns = ("reads", "wrong", "attention glitch", "glitch here, not at ordinary", "on register")
    rows = table_of("language", "dose", *columns, *_GROUPS, "no cause", words=("dose",))
    for language in result["language"].values:
        name = str(language)
        for dose in result["dose"].values:
            at = result.sel(language=language, dose=dose)
            usual = result["glitch"].sel(language=language, dose=_ORDINARY)
            alone = int((at["glitch"].values > usual.values).sum())
            causes = [int(np.isin(at["cause"].values, of).sum()) for of in _GROUPS.values()]
            size, wrong = at.sizes["read"], int(at["is_wrong"].sum())
            rows.add_row(
                name,
                _dose(dose),
                number(size, "d"),
                percent(wrong, size, ".1f"),
                percent(int(at["glitch"].sum()), size, ".1f"),
                percent(np.nan if dose == _ORDINARY else alone, size, ".1f"),
                number(at["on_register"].mean()),
                *(number(count, "d") for count in causes),
                number(wrong - sum(causes), "d"),
            )
            name = ""
    yield rows
    for language in result["language"].values:
        yield Text(f"{language}: {_said(result.sel(language=language))}")
    yield Text(
        "Attention glitch: the largest score lies outside the register. All doses stand in the same sequences at the "
        "same places, so that they are compared sequence by sequence."
    )


def _dose(dose: int) -> str:
    return "ordinary" if dose == _ORDINARY else str(int(dose))


def _said(at: xr.Dataset) -> str:
    """Whether glitches differ by dose, by a permutation of doses within sequences."""
    glitch = at["glitch"].transpose("dose", "read").values
    if not glitch.any():
        return "no attention glitch at any dose"
    if (glitch == glitch[0]).all():
        return f"an attention glitch at the same {int(glitch[0].sum())} of {glitch.shape[1]} places, whatever the dose"
    doses, reads = np.indices(glitch.shape)
    p = float(groups_differ_p(glitch.ravel(), doses.ravel(), reads.ravel()))
    return f"whether glitches are as frequent at all doses, by permutation within sequences: p = {p:.3f}"


def errors_by_dose(result: xr.Dataset) -> go.Figure:
    """Draw wrong reads and attention glitches by dose.

    Args:
        result: a result of `flip_flop_doses`.

    Returns:
        Lines, x reads in training, y percent of first reads with exact 95% intervals, for each language.

    Example:
        >>> result = interp.run("flip_flop_doses", "flipflop-doses", registers=2, tokens_each=64, calibration=4)
        >>> errors_by_dose(result).layout.yaxis.title.text
        'first reads (%), exact 95% intervals'
    """
    figure = go.Figure()
    names = [_dose(dose) for dose in result["dose"].values]
    for i, language in enumerate(result["language"].values):
        at = result.sel(language=language)
        for values, words, dash in ((at["is_wrong"], "wrong", "solid"), (at["glitch"], "attention glitch", "dot")):
            counts = values.transpose("dose", "read").values.astype(float).sum(1)
            mean, low, high = 100 * binomial_interval(counts, float(at.sizes["read"]))
            figure.add_scatter(
                x=names,
                y=mean,
                name=f"{language}, {words}",
                mode="lines+markers",
                line={"color": plots.colour(i), "dash": dash},
                marker={"size": 8, "symbol": "circle" if dash == "solid" else "square-open"},
                error_y=plots.errors(mean, low, high, width=4),
            )
    figure.update_xaxes(type="category")
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Does under-training make attention glitches?", result),
        xaxis_title="reads in training that the token was the answer of",
        yaxis_title="first reads (%), exact 95% intervals",
    )


def causes_by_dose(result: xr.Dataset) -> go.Figure:
    """Draw the share of first reads of each dose that is wrong through each fault.

    Args:
        result: a result of `flip_flop_doses`.

    Returns:
        Stacked bars in percent, a panel for each language.

    Example:
        >>> result = interp.run("flip_flop_doses", "flipflop-doses", registers=2, tokens_each=64, calibration=4)
        >>> causes_by_dose(result).layout.yaxis.title.text
        'first reads that are wrong (%)'
    """
    names = [_dose(dose) for dose in result["dose"].values]
    languages = plots.labels(result["language"].values)
    figure = make_subplots(1, len(languages), column_titles=languages, shared_yaxes=True, horizontal_spacing=0.04)
    cause = result["cause"].transpose("language", "dose", "read").values
    wrong = result["is_wrong"].transpose("language", "dose", "read").values.astype(bool)
    told = np.zeros_like(wrong)
    shares: dict[str, tuple[np.ndarray, str]] = {}
    for i, (group, of) in enumerate(_GROUPS.items()):
        hit = np.isin(cause, of) & wrong
        told |= hit
        shares[group] = 100 * hit.mean(-1), plots.colour(i)
    shares["no cause"] = 100 * (wrong & ~told).mean(-1), plots.GREY
    for group, (share, colour) in shares.items():
        for k in range(len(languages)):
            where = {"row": 1, "col": k + 1}
            style = {"name": group, "legendgroup": group, "showlegend": k == 0, "marker_color": colour}
            figure.add_bar(x=names, y=share[k], **style, **where)
    figure.update_xaxes(type="category", title={"text": "reads in training", "standoff": 30}, tickangle=-45)
    figure.update_yaxes(title="first reads that are wrong (%)", col=1)
    return figure.update_layout(
        template=plots.TEMPLATE,
        barmode="stack",
        title=plots.titled("Through which fault are tokens of each dose misread?", result),
        legend={"y": 1.08, "traceorder": "normal"},
        margin={"b": 90},
    )


FIGURES = [errors_by_dose, causes_by_dose]

GALLERY = (
    GalleryEntry(
        "flip_flop_doses",
        Request.of("flip_flop_doses", model="flipflop-doses"),
        (
            Caption(
                "errors_by_dose",
                "Wrong reads and attention glitches by dose: tokens of low dose are misread, and attention finds them "
                "as it finds ordinary ones.",
                NO_COUNTERPART,
            ),
            Caption("causes_by_dose", "Through which fault tokens of each dose are misread."),
        ),
        "attention glitches",
        order=30,
    ),
)
