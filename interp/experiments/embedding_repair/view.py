"""How does a result of `embedding_repair` look: what does rewriting the rows recover, and what does it damage?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType

from interp import plots
from interp.exhibits import Caption, GalleryEntry, Tolerance, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.statistics import BOUNDS, mean_interval
from interp.tables import interval, number, sampled, table_of, title

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star")


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Copying recovered and damage done, by repair."""
    model = provenance(result)["model"]["name"]
    yield title(
        f"Rows of '{model}' rewritten: copying on held-out sequences, and damage to ordinary text (95% interval)"
    )
    columns = ("log-prob (nats)", "right", "recovered", "damage (nats per token)")
    rows = table_of("pool", "repair", *columns, words=("repair",))
    for pool in result["pool"].values:
        for repair in map(str, result["repair"].values):
            at = result.sel({"pool": pool, "repair": repair})
            recovered = interval(*(at["recovered"].sel(bound=bound) for bound in BOUNDS), spec=".0%")
            damage = interval(*mean_interval(at["damage"].values), spec=".4f")
            right = number(at["correct"].mean(), ".0%")
            rows.add_row(str(pool), repair, sampled(at["log_prob"]), right, recovered, damage)
        paired = number(result["paired"].sel(pool=pool).mean())
        rows.add_row(str(pool), "(paired ordinary tokens)", paired)
    yield rows


def repair_damage(result: xr.Dataset) -> go.Figure:
    """Copying recovered by rewriting rows, against what it does to predictions on ordinary text."""
    figure = go.Figure()
    damages = plots.intervals(result["damage"], "window")
    for i, pool in enumerate(plots.labels(result["pool"].values)):
        for k, repair in enumerate(map(str, result["repair"].values)):
            mean, least, most = (float(result["recovered"].isel(pool=i, repair=k).sel(bound=b)) for b in BOUNDS)
            damage, low, high = (float(bound.isel(pool=i, repair=k)) for bound in damages)
            name = f"{repair}, {pool}" if result.sizes["pool"] > 1 else repair
            colour = plots.GREY if repair == "none" else plots.colour(k - 1)
            figure.add_scatter(
                x=[damage],
                y=[mean],
                mode="markers",
                name=name,
                marker={"size": 11, "symbol": _SYMBOLS[(k + i) % len(_SYMBOLS)], "color": colour},
                error_x={"array": [high - damage], "arrayminus": [damage - low], "width": 3, "thickness": 1},
                error_y={"array": [most - mean], "arrayminus": [mean - least], "width": 3, "thickness": 1},
                hovertemplate=f"{name}: %{{y:.0%}} recovered, %{{x:.4f}} nats<extra></extra>",
            )
    for y, words in ((0, "as it was"), (1, "as ordinary tokens")):
        figure.add_hline(
            y=y,
            line={"color": plots.GREY, "dash": "dot"},
            annotation_text=words,
            annotation_position="bottom right",
            annotation_font={"color": plots.GREY, "size": 11},
        )
    figure.update_yaxes(tickformat=".0%")
    return figure.update_layout(
        template=plots.TEMPLATE,
        xaxis_title="damage: KL divergence on ordinary text (nats per token)",
        yaxis_title="copying recovered",
        title=plots.titled("Rewriting the rows: copying recovered against damage", result),
    )


FIGURES = [repair_damage]


_TRAINED = Tolerance(
    atol=0.3,
    outliers=0.01,
    why="rows are found by gradient descent, and rounding is carried from step to step: with another number of "
    "threads two of 448 log-probs of single sequences moved by up to 0.22, on another processor one by 0.31",
)


def _embedding_repair(folder: str, who: str, **options: Any) -> GalleryEntry:
    shows = f"Copying of {who} recovered by other embedding rows, against what they do to predictions on ordinary text."
    return GalleryEntry(
        folder,
        Request.of("embedding_repair", **options),
        (Caption("repair_damage", shows),),
        "causes and repairs",
        tolerance=_TRAINED,
        order=20,
    )


GALLERY = (
    _embedding_repair("embedding_repair", "blocks of unexposed tokens of `organism`"),
    _embedding_repair("embedding_repair_single", "single unexposed tokens of `organism`", mixed=True),
    _embedding_repair(
        "embedding_repair_untied", "blocks of unexposed tokens of `organism-untied`", model="organism-untied"
    ),
    _embedding_repair(
        "embedding_repair_llama", "blocks of unexposed tokens of `organism-llama`", model="organism-llama"
    ),
    of_public_model(_embedding_repair("", "blocks of glitch tokens of `smollm2`")),
)
