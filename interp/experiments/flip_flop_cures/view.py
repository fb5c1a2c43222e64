"""How does a result of `flip_flop_cures` look: which cure helps in which language, and what does it cost in others?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import LIU, Caption, GalleryEntry
from interp.request import Request
from interp.results import provenance
from interp.statistics import binomial_interval
from interp.tables import Cell, interval, number, table_of, title

_TRAINED = {
    "flipflop": "none",
    "flipflop-entropy": "entropy penalty in training",
    "flipflop-sparse": "sparse sequences in training",
    "flipflop-lstm": "recurrent network",
}


def _rate(wrong: float, reads: float) -> Cell:
    if not np.isfinite(wrong):
        return number(np.nan)
    return interval(*100 * binomial_interval(wrong, reads), spec=".3f") + "%"


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Error rates of every cure in every language: with other attention, and of models trained otherwise."""
    model = provenance(result)["model"]["name"]
    languages = list(map(str, result["language"].values))
    yield title(
        f"Sharper attention in '{model}': reads wrong, exact 95% interval, {result.attrs['sequences']:,} sequences each"
    )
    rows = table_of("heads", "temperature", *languages)
    for scope in result["scope"].values:
        name = str(scope)
        for temperature in result["temperature"].values:
            at = result["wrong"].sel(scope=scope, temperature=temperature)
            cells = [_rate(float(at.sel(language=x)), float(result["reads"].sel(language=x))) for x in languages]
            rows.add_row(name, number(float(temperature), "g"), *cells)
            name = ""
    yield rows
    heads = result.attrs["last_write_heads"] or "none"
    yield Text(f"Last-write heads: {heads}. Temperature 1 changes nothing; below 1, attention is sharper.")
    yield title("Cures in training, as recorded then: reads wrong in 16,384 sequences each")
    rows = table_of("cure", "seed", *languages)
    for recipe, words in _TRAINED.items():
        for seed in result["train_seed"].values:
            one = result.sel(recipe=recipe, train_seed=seed)
            cells = [
                _rate(float(one["trained_wrong"].sel(language=x)), float(one["trained_reads"].sel(language=x)))
                for x in languages
            ]
            rows.add_row(words, number(int(seed), "d"), *cells)
            words = ""
    yield rows


def errors_by_temperature(result: xr.Dataset) -> go.Figure:
    """Error rates by the temperature of attention, in each language: of the last-write heads, and of all heads."""
    scopes = [str(scope) for scope in result["scope"].values if np.isfinite(result["wrong"].sel(scope=scope)).any()]
    figure = make_subplots(1, len(scopes), column_titles=scopes, horizontal_spacing=0.1)
    temperatures = result["temperature"].values
    for column, scope in enumerate(scopes, start=1):
        for i, language in enumerate(result["language"].values):
            wrong = result["wrong"].sel(language=language, scope=scope).values
            mean, low, high = 100 * binomial_interval(wrong, float(result["reads"].sel(language=language)))
            figure.add_scatter(
                x=temperatures,
                y=mean,
                name=str(language),
                legendgroup=str(language),
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": plots.colour(i)},
                marker={"size": 8, "symbol": i},
                error_y=plots.errors(mean, low, high, width=4),
                row=1,
                col=column,
            )
    ticks = [f"{x:g}" for x in temperatures]
    figure.update_xaxes(type="log", tickvals=temperatures, ticktext=ticks, title="temperature (left is sharper)")
    figure.update_yaxes(rangemode="tozero").update_yaxes(title="reads wrong (%), exact 95% intervals", col=1)
    return figure.update_layout(
        template=plots.TEMPLATE, title=plots.titled("Does sharper attention cure it?", result), legend_y=1.08
    )


def errors_by_training(result: xr.Dataset) -> go.Figure:
    """Error rates of the models trained with each cure, a dot per seed; those without an error on the lower edge."""
    figure = go.Figure()
    reads = result["trained_reads"]
    least = 100 / float(reads.max()) / 3
    for i, language in enumerate(result["language"].values):
        x, y, said = [], [], []
        for k, (recipe, words) in enumerate(_TRAINED.items()):
            for seed in result["train_seed"].values:
                at = result.sel(recipe=recipe, train_seed=seed, language=language)
                wrong, count = float(at["trained_wrong"]), float(at["trained_reads"])
                x.append(k + 0.18 * (i - 1) + 0.04 * (int(seed) - 1))
                y.append(max(100 * wrong / count, least))
                said.append(f"{words}, seed {seed}: {wrong:,.0f} of {count:,.0f} reads")
        figure.add_scatter(
            x=x,
            y=y,
            mode="markers",
            name=str(language),
            marker={"color": plots.colour(i), "size": 9, "symbol": i},
            text=said,
            hovertemplate="%{text}<extra></extra>",
        )
    figure.update_xaxes(
        tickvals=list(range(len(_TRAINED))), ticktext=[x.replace(" in ", "<br>in ") for x in _TRAINED.values()]
    )
    return figure.update_layout(
        template=plots.TEMPLATE,
        title="Does other training cure it? Three seeds each",
        yaxis={"title": "reads wrong (%); lower edge: none", "type": "log", "dtick": 1, "tickformat": "~f"},
        margin={"l": 110},
    )


def errors_in_training(result: xr.Dataset) -> go.Figure:
    """Error rates of the transformers without a cure in the course of training: in distribution, and out of it."""
    figure = go.Figure()
    shares = result["error_in_training"].sel(recipe="flipflop")
    for i, language in enumerate(result["language"].values):
        for seed, dash in zip(result["train_seed"].values, ("solid", "dash", "dot"), strict=False):
            of = shares.sel(language=language, train_seed=seed)
            figure.add_scatter(
                x=of["checkpoint"].values,
                y=100 * of.values,
                name=f"{language}, seed {seed}",
                mode="lines+markers",
                line={"color": plots.colour(i), "dash": dash},
                marker={"size": 5},
            )
    return figure.update_layout(
        template=plots.TEMPLATE,
        title="When do errors go, in training? 64 sequences at each point",
        xaxis_title="optimiser step",
        yaxis_title="reads wrong (%)",
        margin={"t": 150},
    )


FIGURES = [errors_by_temperature, errors_by_training, errors_in_training]

GALLERY = (
    GalleryEntry(
        "flip_flop_cures",
        Request.of("flip_flop_cures", model="flipflop"),
        (
            Caption(
                "errors_by_temperature",
                "Wrong reads when attention is made sharper or flatter: it does not cure the tail.",
                f"attention sharpening of {LIU}",
            ),
            Caption(
                "errors_by_training",
                "Wrong reads of models trained with each cure: sparse sequences cure the sparse tail, not the dense "
                "one.",
                f"the mitigations of {LIU}",
            ),
            Caption("errors_in_training", "Errors in the course of training, in distribution and out of it."),
        ),
        "attention glitches",
        order=20,
    ),
)
