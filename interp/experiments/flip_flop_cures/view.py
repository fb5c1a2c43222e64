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
from interp.tables import number, percent, table_of, title

_TRAINED = {
    "flipflop": "none",
    "flipflop-entropy": "entropy penalty in training",
    "flipflop-sparse": "sparse sequences in training",
    "flipflop-lstm": "recurrent network",
}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the error rate of every cure in every language.

    Args:
        result: a result of `flip_flop_cures`.

    Returns:
        What rich can print, line by line: percent with exact 95% intervals, at each attention temperature, then of the
        models trained with a cure.

    Example:
        >>> few = dict(sequences=8, tokens_each=32, calibration=8)
        >>> result = interp.run("flip_flop_cures", "wired-flipflop", **few)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:3]), sep=" | ")
        last-write heads | 0.05 | 0.000 (0.000 .. 26.465)%
    """
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
            cells = [
                percent(float(at.sel(language=x)), float(result["reads"].sel(language=x)), ".3f") for x in languages
            ]
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
                percent(float(one["trained_wrong"].sel(language=x)), float(one["trained_reads"].sel(language=x)), ".3f")
                for x in languages
            ]
            rows.add_row(words, number(int(seed), "d"), *cells)
            words = ""
    yield rows


def errors_by_temperature(result: xr.Dataset) -> go.Figure:
    """Draw error rates by the temperature of attention.

    Args:
        result: a result of `flip_flop_cures`.

    Returns:
        Lines, x temperature (logarithmic; left is sharper), y percent with exact 95% intervals, a panel for each set of
        heads.

    Source:
        Liu et al. 2023, Exposing Attention Glitches with Flip-Flop Language Modeling, arXiv 2306.00946.

    Example:
        >>> few = dict(sequences=8, tokens_each=32, calibration=8)
        >>> result = interp.run("flip_flop_cures", "wired-flipflop", **few)
        >>> errors_by_temperature(result).layout.yaxis.title.text
        'reads wrong (%), exact 95% intervals'
    """
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
    """Draw the error rates of models trained with each cure.

    Args:
        result: a result of `flip_flop_cures`.

    Returns:
        A dot for each seed and language, y percent on a logarithmic axis; no error lies on the lower edge.

    Source:
        Liu et al. 2023, Exposing Attention Glitches with Flip-Flop Language Modeling, arXiv 2306.00946.

    Example:
        >>> few = dict(sequences=8, tokens_each=32, calibration=8)
        >>> result = interp.run("flip_flop_cures", "wired-flipflop", **few)
        >>> [dots.name for dots in errors_by_training(result).data]
        ['FFL(0.8)', 'FFL(0.98)', 'FFL(0.1)']
    """
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
    """Draw the error rates of transformers without a cure over the course of training.

    Args:
        result: a result of `flip_flop_cures`.

    Returns:
        Lines, x optimiser step, y percent, for each language and seed.

    Example:
        >>> few = dict(sequences=8, tokens_each=32, calibration=8)
        >>> result = interp.run("flip_flop_cures", "wired-flipflop", **few)
        >>> errors_in_training(result).layout.yaxis.title.text
        'reads wrong (%)'
    """
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
