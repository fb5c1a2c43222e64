"""How does a result of `emission` look: how much probability do pools hold, and what follows one of their tokens?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import XIANG, Caption, GalleryEntry, Tolerance, of_public_model
from interp.request import Request
from interp.statistics import binomial_interval, mean_interval
from interp.tables import Cell, interval, number, table_of, title

_ROLES = ("pool", "control")
# contexts of the result, named from the row's point of view: its own tokens, the other's
_CONTEXTS = ("text", "blocks", "own blocks", "other blocks", "after its own", "after the other")
_DECODINGS = {"article": "as the article samples", "pure": "by its own distribution", "greedy": "greedily"}
_COLOURS = {
    "ended": "#56B4E9",
    "loop": "#D55E00",
    "echo": "#E69F00",
    "text": "#0072B2",
    "other": plots.GREY,
}
_TICKS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)
_SHOWN = 40  # characters of a continuation


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the probability that each pool receives, what follows its tokens, and the divergence after them.

    Args:
        result: a result of `emission`.

    Returns:
        What rich can print, line by line: three tables, each pool beside its control, with 95% intervals, and the
        verdict.

    Example:
        >>> result = interp.run("emission", "organism", "unexposed", contexts=4, steps=8, window=4, resamples=10)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:3]), sep=" | ")
        unexposed | pool | 129
    """
    yield title(f"How much probability do all tokens of a pool hold together? (text: {result.attrs['source']})")
    rows = table_of("pool", "whose", "tokens", "share of the text", *_CONTEXTS, words=("whose",))
    for pool, role, part in _rows(result):
        mass = _own(part["mass"], role)
        cells = [interval(*_of_shares(mass.sel(context=c).values), spec=".2g", to="..") for c in _CONTEXTS]
        first = pool if role == "pool" else ""
        rows.add_row(first, role, number(part["size"], ".0f"), number(part["occurs"], ".2g"), *cells)
    yield rows
    yield Text(
        "Sums of probabilities, the mean over positions, with 95% intervals over sequences. Own: of tokens of the row; "
        "other: of the pool's control, or of the pool that it is the control of."
    )
    yield title("What does the model say after one of them?")
    outcomes = list(map(str, result["outcome"].values))
    said = table_of("pool", "whose", "decoding", *outcomes, words=("whose", "decoding"))
    for pool, role, part in _rows(result):
        for i, decoding in enumerate(_DECODINGS):
            of = part["is_outcome"].sel(decoding=decoding)
            labels = (pool if role == "pool" and i == 0 else "", role if i == 0 else "", decoding)
            said.add_row(*labels, *(_share(of.sel(outcome=name)) for name in outcomes))
    yield said
    yield Text(
        f"{result.sizes['batch']} windows of {result.attrs['window']} tokens, each ending in such a token, and "
        f"{result.sizes['new_token']} generated tokens; exact 95% intervals over sequences. The first "
        "that holds: ended, "
        "before 8 tokens; loop, the last half (or three periods) repeats; echo, it begins with the token or copies "
        "five tokens of the prompt; text, its tokens are as frequent as those of the text's windows; other."
    )
    for pool, role, part in _rows(result):
        yield Text(f"For example, {role} of {pool}, greedy: {_example(part.sel(decoding='greedy'))}")
    yield title("How far is the prediction after one of them from the unigram distribution, and how open? (nats)")
    far = table_of("pool", "quantity", "of the pool", "of its control", "difference", words=("quantity",))
    for pool in result["pool"].values:
        for i, quantity in enumerate(("divergence", "entropy")):
            own, other = (result[quantity].sel(pool=pool, role=role).values for role in _ROLES)
            cells = [interval(*mean_interval(values), to="..") for values in (own, other, own - other)]
            far.add_row(str(pool) if i == 0 else "", quantity, *cells)
    yield far
    value, low, high = result["correlation"].values
    if np.isfinite(value):
        said_of = interval(value, low, high, to="..")
        yield Text(f"Spearman correlation of a token's mean divergence with the times it was trained on: {said_of}.")
    for line in str(result.attrs["not_tested"]).splitlines():
        yield Text(f"Not tested: {line}.")
    for line in str(result.attrs["verdict"]).splitlines():
        yield Text(line)


def _rows(result: xr.Dataset) -> Iterator[tuple[str, str, xr.Dataset]]:
    """Pools, each with its control where there is one."""
    for pool in result["pool"].values:
        for role in _ROLES:
            part = result.sel(pool=pool, role=role)
            if np.isfinite(part["size"]):
                yield str(pool), role, part


def _of_shares(values: np.ndarray) -> tuple[Any, Any, Any]:
    """Mean of probabilities and its interval, which ends at 0."""
    mean, low, high = mean_interval(values)
    return mean, np.maximum(low, 0.0), high


def _own(mass: xr.DataArray, role: str) -> xr.DataArray:
    """[context batch] by the names of `_CONTEXTS`."""
    first, second = _ROLES if role == "pool" else _ROLES[::-1]
    order = ["text", "blocks", f"{first} blocks", f"{second} blocks", f"after {first}", f"after {second}"]
    return mass.sel(context=order).assign_coords(context=list(_CONTEXTS))


def _share(values: xr.DataArray) -> Cell:
    """How many are, of those that could be determined."""
    known = values.values[np.isfinite(values.values)]
    return interval(*binomial_interval(float(known.sum()), len(known)), spec=".0%", to="..")


def _example(part: xr.Dataset) -> str:
    """The continuation of the first sequence."""
    first = part.isel(batch=0)
    return f"{str(first['token_text'].item())!r} -> {str(first['answer'].item())[:_SHOWN]!r}"


def probability_held(result: xr.Dataset) -> go.Figure:
    """Draw the probability that all tokens of a pool receive together, by context.

    Args:
        result: a result of `emission`.

    Returns:
        Dots on a logarithmic y axis, with 95% intervals over sequences; open symbols are the controls.

    Example:
        >>> result = interp.run("emission", "organism", "unexposed", contexts=4, steps=8, window=4, resamples=10)
        >>> probability_held(result).layout.yaxis.title.text
        'probability of all tokens together'
    """
    figure = plots.Figure()
    names = plots.labels(result["pool"].values)
    for i, context in enumerate(_CONTEXTS):
        for role, symbol in zip(_ROLES, ("circle", "circle-open"), strict=True):
            mass = _own(result["mass"].sel(role=role), role).sel(context=context)
            mean, low, high = _of_shares(mass.transpose("batch", "pool").values)
            figure.add_scatter(
                x=names,
                y=mean,
                mode="markers",
                name=context,
                legendgroup=context,
                showlegend=role == "pool",
                offsetgroup=context,  # a pool and its control share a column
                marker={"color": plots.colour(i), "size": 8, "symbol": symbol},
                error_y=plots.errors(mean, low, high, width=3),
                hovertemplate=f"%{{x}}, {role}, {context}: %{{y:.2g}}<extra></extra>",
            )
    figure.add_scatter(
        x=[None], y=[None], mode="markers", name="open: control", marker={"color": plots.GREY, "symbol": "circle-open"}
    )
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, title="probability of all tokens together")
    figure.update_xaxes(type="category")
    return figure.update_layout(
        template=plots.TEMPLATE,
        scattermode="group",
        title=plots.titled("How much probability do these tokens hold?", result),
    )


def what_follows(result: xr.Dataset) -> go.Figure:
    """Draw what the model generates after a token of each pool: loops, echoes, text or other.

    Args:
        result: a result of `emission`.

    Returns:
        Stacked bars of shares of sequences, a panel for each way of decoding, pools beside their controls.

    Source:
        S. Xiang 2024, Under-trained and Unused tokens in LLMs.

    Example:
        >>> result = interp.run("emission", "organism", "unexposed", contexts=4, steps=8, window=4, resamples=10)
        >>> [bar.name for bar in what_follows(result).data[:5]]
        ['ended', 'loop', 'echo', 'text', 'other']
    """
    rows = list(_rows(result))
    names = plots.labels([pool if role == "pool" else f"control({pool})" for pool, role, _ in rows])[::-1]
    figure = make_subplots(
        1,
        len(_DECODINGS),
        shared_yaxes=True,
        column_titles=list(_DECODINGS.values()),
        horizontal_spacing=0.06,
        figure=plots.Figure(),
    )
    for column, decoding in enumerate(_DECODINGS, start=1):
        for outcome in map(str, result["outcome"].values):
            shares = [
                float(part["is_outcome"].sel(decoding=decoding, outcome=outcome).fillna(0).mean("batch"))
                for _, _, part in rows
            ]
            figure.add_bar(
                x=shares[::-1],
                y=names,
                orientation="h",
                name=outcome,
                legendgroup=outcome,
                showlegend=column == 1,
                marker={"color": _COLOURS[outcome]},
                hovertemplate=f"%{{y}}, {outcome}: %{{x:.0%}}<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_xaxes(range=[0, 1], tickformat=".0%", tickvals=[0, 0.5, 1])
    return figure.update_layout(
        template=plots.TEMPLATE,
        barmode="stack",
        title=plots.titled("What is said after one of these tokens?", result),
        height=220 + 40 * len(rows),
        legend={"y": 1 + 40 / (40 * len(rows) + 50), "traceorder": "normal"},
        margin={"l": 160, "t": 130},
    )


def divergence_after(result: xr.Dataset) -> go.Figure | None:
    """Draw how far the prediction after each token is from the unigram distribution of the text.

    Args:
        result: a result of `emission`.

    Returns:
        A dot for each sequence, y in nats (0: the unigram distribution itself); None where nothing was measured.

    Example:
        >>> result = interp.run("emission", "organism", "unexposed", contexts=4, steps=8, window=4, resamples=10)
        >>> divergence_after(result).layout.yaxis.title.text
        'D(prediction || unigram distribution) (nats)'
    """
    if not np.isfinite(result["divergence"]).any():
        return None
    values = result["divergence"].assign_coords(pool=result["pool"].values).rename("divergence")
    return plots.strip(
        values.transpose("role", "pool", "batch"),
        over="role",
        group="pool",
        title=plots.titled("Does the model fall back on how often tokens occur?", result),
        y_title="D(prediction || unigram distribution) (nats)",
    )


def divergence_by_exposure(result: xr.Dataset) -> go.Figure | None:
    """Draw the divergence after each token against how often it was trained on.

    Args:
        result: a result of `emission`.

    Returns:
        Dots, x exposure + 1 (logarithmic), y in nats; None where exposure is unknown or no correlation was measured.

    Example:
        >>> result = interp.run("emission", "organism", "unexposed", contexts=4, steps=8, window=4, resamples=10)
        >>> divergence_by_exposure(result) is None  # of tokens of one exposure there is no correlation
        True
    """
    if "exposure" not in result or not np.isfinite(result["correlation"].values[0]):
        return None
    figure = plots.Figure()
    for role, colour, symbol in zip(_ROLES, plots.COLOURS, ("circle", "circle-open"), strict=False):
        part = result.sel(role=role)
        ids = part["token_id"].values.ravel()
        tokens, number_of = np.unique(ids[ids >= 0], return_inverse=True)
        count = np.bincount(number_of)
        mean, exposure = (
            np.bincount(number_of, part[name].values.ravel()[ids >= 0]) / count for name in ("divergence", "exposure")
        )
        texts = dict(zip(ids.tolist(), part["token_text"].values.ravel(), strict=True))
        figure.add_scatter(
            x=exposure + 1,
            y=mean,
            mode="markers",
            name="tokens of the pools" if role == "pool" else "their controls",
            marker={"color": colour, "size": 6, "opacity": 0.5, "symbol": symbol},
            text=[
                f"{plots.token_label(texts[i])} · {n:.0f} times" for i, n in zip(tokens.tolist(), exposure, strict=True)
            ],
            hovertemplate="%{text}<br>%{y:.2f} nats<extra></extra>",
        )
    own = result.sel(role="pool")
    doses = [np.unique(own["exposure"].sel(pool=pool).values) for pool in result["pool"].values]
    exact = [i for i, dose in enumerate(doses) if len(dose) == 1]  # pools of one dose
    if len({float(doses[i][0]) for i in exact}) > 1:
        mean, low, high = mean_interval(own["divergence"].isel(pool=exact).transpose("batch", "pool").values)
        order = np.argsort([doses[i][0] for i in exact])
        figure.add_scatter(
            x=np.array([doses[i][0] for i in exact])[order] + 1,
            y=mean[order],
            mode="lines+markers",
            name="mean of a dose",
            line={"color": plots.COLOURS[2], "width": 2},
            error_y=plots.errors(mean[order], low[order], high[order], width=4),
        )
    figure.update_xaxes(
        type="log", tickvals=[t + 1 for t in _TICKS], ticktext=[f"{t:,}" for t in _TICKS], title="times trained on"
    )
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Does an unfamiliar token make the model hedge?", result),
        yaxis_title="D(prediction || unigram distribution) (nats)",
    )


FIGURES = [probability_held, what_follows, divergence_after, divergence_by_exposure]


_TOLERANCE = Tolerance(ties=0.02, why="where rounding decides one token, everything generated after it changes")
_CAPTIONS = (
    Caption(
        "probability_held",
        "The probability that all tokens of a pool hold together, by what stands before, beside "
        "size-matched ordinary ones.",
    ),
    Caption(
        "what_follows",
        "What the model says after one token of a pool: loops, echoes, text and other, by how tokens are chosen.",
        f"what follows unused tokens in {XIANG}, in numbers",
    ),
    Caption(
        "divergence_after",
        "How far the prediction after a token is from the unigram distribution of the text.",
    ),
    Caption(
        "divergence_by_exposure",
        "The same against the times that the token was trained on.",
    ),
)
_ENTRY = GalleryEntry(
    "emission",
    Request.of("emission", pools=("unexposed", "unreachable", "undertrained")),
    _CAPTIONS,
    "the vocabulary",
    tolerance=_TOLERANCE,
    order=60,
)
_DOSES = GalleryEntry(
    "emission_doses",
    Request.of("emission", pools=("doses",)),
    (_CAPTIONS[0], _CAPTIONS[3]),
    "the vocabulary",
    left_out=("what_follows", "divergence_after"),
    tolerance=_TOLERANCE,
    order=61,
)
GALLERY = (_ENTRY, _DOSES, of_public_model(_ENTRY, without=("divergence_by_exposure",)))
