"""What does a study of drawn tables show: each pool's deficit in each table, and how often one is claimed?"""

from __future__ import annotations

from collections.abc import Iterator

import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import HUANG, Caption, GalleryEntry
from interp.results import provenance
from interp.statistics import wilson_interval
from interp.tables import Cell, interval, number, sampled, table_of, title

PROMISED = 0.05  # largest share of pools without a deficit for which one may be claimed


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Deficits over tables, and what is claimed about them."""
    record, tables = provenance(result), result.sizes["table"]
    yield title(f"Deficit of pools of '{record['model']['name']}' over {tables} drawn tables of rows (nats)")
    rows = table_of("pool", "tokens", "log-prob", "deficit", "between tables", "no deficit", "false claims")
    for pool in map(str, result["pool"].values):
        at = result.sel(pool=pool)
        rows.add_row(
            pool,
            number(record["pools"][pool], "d"),
            sampled(at["log_prob"]),
            sampled(at["deficit"]),
            number(at["deficit"].std(ddof=1), ".3f"),
            _rate(_said(at, "no deficit"), tables),
            _rate(_claimed(at), tables),
        )
    yield rows
    asked = tables * result.sizes["pool"]
    claimed = sum(_claimed(result.sel(pool=pool)) for pool in result["pool"].values)
    low, high = wilson_interval(claimed, asked)
    promise = "not shown to be exceeded" if low <= PROMISED else "EXCEEDED"
    yield Text(
        f"A deficit is claimed for {claimed} of {asked} pools that have none ({claimed / asked:.1%}, {low:.1%} .. "
        f"{high:.1%}); the stated error rate is {PROMISED:.0%}: {promise}."
    )
    broken = result["planted_deficit"].dropna("table")
    if broken.size:
        names = list(map(str, result["outcomes"].values))
        said = [names[code] for code in result["planted_outcome"].sel(table=broken["table"]).values]
        seen = sum("claimed" in one for one in said)
        yield Text(
            f"With {record['params']['defect']} planted in every second token of {result['pool'].values[0]}, "
            f"the deficit is {float(broken.mean()):.2f} nats, and it is claimed in {seen} of {broken.size} tables."
        )


def _said(at: xr.Dataset, what: str) -> int:
    """In how many tables a pool had this outcome."""
    return int((at["outcome"] == list(map(str, at["outcomes"].values)).index(what)).sum())


def _claimed(at: xr.Dataset) -> int:
    return _said(at, "deficit claimed") + _said(at, "stage claimed")


def _rate(count: int, of: int) -> Cell:
    low, high = wilson_interval(count, of)
    return interval(count / of, low, high, spec=".0%")


def deficit_by_table(result: xr.Dataset) -> go.Figure:
    """Each pool's deficit, a dot for each table, and the mean with its 95% interval over tables."""
    figure = plots.Figure()
    names = plots.labels(result["pool"].values)
    for i, name in enumerate(names):
        dots = result["deficit"].isel(pool=i).values
        plots.add_dots(figure, dots, name, 0, name="one table", legendgroup="one table", showlegend=i == 0)
    mean, low, high = plots.intervals(result["deficit"], "table")
    figure.add_scatter(
        x=names,
        y=mean.values,
        mode="markers",
        marker={"color": "black", "size": 9, "symbol": "diamond"},
        error_y=plots.errors(mean.values, low.values, high.values, width=8, color="black"),
        name="mean over tables, 95% interval",
    )
    figure.add_hline(y=0, line={"dash": "dot", "color": plots.GREY})
    return figure.update_layout(
        template=plots.TEMPLATE,
        title="Deficits where no token can be under-trained",
        yaxis_title="deficit (nats)",
        legend_y=1.1,
    )


FIGURES = [deficit_by_table]
GALLERY = (
    GalleryEntry(
        "lexinvariance",
        None,
        (
            Caption(
                "deficit_by_table",
                "Where no token can be under-trained, no pool has a deficit: deficits over drawn tables of rows.",
                f"the model is one of {HUANG}; the question has no published counterpart",
            ),
        ),
        "causes and repairs",
        stored="interp/controls/drawn_tables/tables.nc",
        order=900,
    ),
)
