"""How does a result of `dose_response` look: do copying and indicators follow the times a token was trained on?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType

from interp import plots
from interp.exhibits import RANKED, Caption, GalleryEntry
from interp.request import Request
from interp.tables import interval, number, table_of, title

_INDICATOR = "e_out_cosine_centred"
_TICKS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List how copying and each indicator correlate with exposure, and the copying of each dose.

    Args:
        result: a result of `dose_response`.

    Returns:
        What rich can print, line by line: Spearman's correlations with 95% intervals; mean log-prob (nats) and rank by
        dose.

    Example:
        >>> result = interp.run("dose_response", "organism", contexts=1, block=4, resamples=10)
        >>> print(next(table(result)))
        Spearman correlation with the times a token was trained on (95% interval over tokens)
    """
    yield title("Spearman correlation with the times a token was trained on (95% interval over tokens)")
    groups = list(map(str, result["group"].values))
    rows = table_of("response", *groups)
    for response in result["response"].values:
        of = [result["correlation"].sel(response=response, group=group) for group in groups]
        cells = [interval(*(c.sel(bound=b) for b in ("value", "low", "high")), to="..") for c in of]
        rows.add_row(str(response), *cells)
    yield rows
    yield title("Copying of canaries: mean over the tokens of a dose")
    doses = table_of("dose", "log-prob (nats)", "rank")
    exposure, canary = result["exposure"].values, result["canary"].values.astype(bool)
    for dose in np.unique(exposure[canary]):
        log_prob, rank = (result[n].values[canary & (exposure == dose)].mean() for n in ("log_prob", "rank"))
        doses.add_row(number(dose, ",d"), number(log_prob), number(rank, ".0f"))
    yield doses


def exposure_response(result: xr.Dataset) -> go.Figure:
    """Draw copying and one indicator of every token against the number of times it was trained on.

    Args:
        result: a result of `dose_response`.

    Returns:
        Two panels of dots, x exposure + 1 (logarithmic), y log-prob (nats) and the indicator; canaries apart.

    Example:
        >>> result = interp.run("dose_response", "organism", contexts=1, block=4, resamples=10)
        >>> [trace.name for trace in exposure_response(result).data[:2]]
        ['natural tokens', 'canaries']
    """
    exposure, canary = result["exposure"].values, result["canary"].values.astype(bool)
    responses = {
        "log-prob when copied (nats)": result["log_prob"].values,
        _INDICATOR: result["value"].sel(indicator=_INDICATOR).values,
    }
    groups = ((~canary, "natural tokens", plots.COLOURS[0], 0), (canary, "canaries", plots.COLOURS[1], 2))
    doses = np.unique(exposure[canary])
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (words, values) in enumerate(responses.items(), start=1):
        for at, name, colour, symbol in groups:
            texts = zip(result["text"].values[at], exposure[at], strict=True)
            figure.add_scatter(
                x=exposure[at] + 1,
                y=values[at],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                marker={"color": colour, "size": 6, "opacity": 0.5, "symbol": symbol},
                text=[f"{plots.token_label(text)} · {n} times" for text, n in texts],
                hovertemplate="%{text}<br>%{y:.3f}<extra></extra>",
                row=row,
                col=1,
            )
        figure.add_scatter(
            x=doses + 1,
            y=[values[canary & (exposure == dose)].mean() for dose in doses],
            mode="lines",
            line={"color": plots.COLOURS[1], "width": 2},
            name="mean of the canaries",
            legendgroup="mean",
            showlegend=row == 1,
            row=row,
            col=1,
        )
        figure.update_yaxes(title=words, row=row, col=1)
    figure.update_xaxes(type="log", tickvals=[t + 1 for t in _TICKS], ticktext=[f"{t:,}" for t in _TICKS])
    figure.update_xaxes(title="times trained on", row=2, col=1)
    title = plots.titled("How often must a token be seen to be copied, and to look it?", result)
    return figure.update_layout(template=plots.TEMPLATE, height=700, title=title)


FIGURES = [exposure_response]


GALLERY = (
    GalleryEntry(
        "dose_response",
        Request.of("dose_response"),
        (
            Caption(
                "exposure_response",
                "Copying, and the embedding rows, of every token against the times it was trained on.",
            ),
        ),
        "the vocabulary",
        tolerance=RANKED,
        order=30,
    ),
)
