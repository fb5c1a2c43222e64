"""How does a result of `head_attribution` look: do gradients find what ablation finds?"""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import Caption, GalleryEntry
from interp.request import Request
from interp.tables import number, strongest_heads, table_of, title


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List how well estimates by gradients agree with the exact sweep.

    Args:
        result: a result of `head_attribution`.

    Returns:
        What rich can print, line by line: correlations over heads, the share of the largest heads found, and the
        largest error.

    Example:
        >>> result = interp.run("head_attribution", "wired", "1:65", batch=2)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:65 | gradient | - | - | 1.00 | 39.58
    """
    yield title("Gradients against measured ablation, over all heads")
    columns = ("rank correlation", "correlation", f"share of the {result['fit'].values[2]} found")
    rows = table_of("pool", "estimate", *columns, f"largest error ({_unit(result)})", words=("estimate",))
    for pool in result["pool"].values:
        for estimate in ("gradient", "integrated"):
            row = result["agreement"].sel(pool=pool, estimate=estimate).values
            rows.add_row(str(pool), estimate, *map(number, row))
    yield rows
    mean = result["lost"].sel(estimate="exact").mean("batch")
    for pool in result["pool"].values:
        yield Text(f"{pool}: measured, {strongest_heads(mean.sel(pool=pool), 4)}.")


def _unit(result: xr.Dataset) -> str:
    return str(result.attrs.get("unit", "nats"))


def attribution_agreement(result: xr.Dataset) -> go.Figure:
    """Draw each head's estimated loss against the measured one.

    Args:
        result: a result of `head_attribution`.

    Returns:
        Dots in nats, a panel for each pool; on the diagonal the estimate is exact.

    Example:
        >>> result = interp.run("head_attribution", "wired", "1:65", batch=2)
        >>> attribution_agreement(result).layout.xaxis.title.text
        'nats lost, measured'
    """
    pools = plots.labels(result["pool"].values)
    figure = make_subplots(1, len(pools), column_titles=pools, horizontal_spacing=0.03, shared_yaxes=True)
    mean = result["lost"].mean("batch").transpose(..., "layer", "head")
    ends = [float(mean.min()), float(mean.max())]  # of all pools, so that panels can be compared
    for i in range(len(pools)):
        at = {"row": 1, "col": i + 1}
        diagonal = {"color": plots.GREY, "dash": "dot"}
        figure.add_scatter(x=ends, y=ends, mode="lines", line=diagonal, showlegend=False, hoverinfo="skip", **at)
        for k, estimate in enumerate(("gradient", "integrated")):
            rho = float(result["agreement"].isel(pool=i).sel(estimate=estimate, fit="spearman"))
            figure.add_scatter(
                x=mean.isel(pool=i).sel(estimate="exact").values.ravel(),
                y=mean.isel(pool=i).sel(estimate=estimate).values.ravel(),
                mode="markers",
                marker={"color": plots.COLOURS[k], "size": 9, "symbol": k, "opacity": 0.8},
                name=estimate,
                legendgroup=estimate,
                showlegend=i == 0,
                text=plots.head_names(mean),
                hovertemplate=f"%{{text}}, {estimate} (rank correlation {rho:.2f})<br>"
                "measured %{x:.3f}, estimated %{y:.3f}<extra></extra>",
                **at,
            )
    figure.update_xaxes(title=f"{_unit(result)} lost, measured")
    figure.update_yaxes(title=f"{_unit(result)} lost, estimated", col=1)
    title = plots.titled("Can gradients stand in for ablation?", result)
    return figure.update_layout(template=plots.TEMPLATE, legend_y=1.1, title=title)


FIGURES = [attribution_agreement]


GALLERY = (
    GalleryEntry(
        "head_attribution",
        Request.of("head_attribution"),
        (
            Caption(
                "attribution_agreement",
                "What gradients estimate that each head is worth, against what its ablation costs.",
            ),
        ),
        "the copying circuit",
        order=60,
    ),
)
