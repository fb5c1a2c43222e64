"""How does a result of `flip_flop` look: how often are reads wrong, where, and through which fault?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import LIU, Caption, GalleryEntry
from interp.request import Request
from interp.results import provenance
from interp.statistics import binomial_interval
from interp.tables import number, percent, table_of, title

_CAUSES = ("dilution", "tie", "wrong write", "ignored value", "other key", "content", "read-out")
_SPEC = ".3f"  # of a percentage
_NETWORKS = {"transformer": "", "lstm": "LSTM, "}
_ENOUGH = 200  # reads in a bin that is drawn: the intervals of fewer would hide all others


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List wrong reads by language, their causes, and the controls.

    Args:
        result: a result of `flip_flop`.

    Returns:
        What rich can print, line by line: error rates in percent with exact 95% intervals, and counts by cause.

    Example:
        >>> few = dict(sequences=16, tokens_each=32, examined=4, calibration=8)
        >>> result = interp.run("flip_flop", "wired-flipflop", **few)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:4]), sep=" | ")
        FFL(0.8) | 39 | 0 | 0.000 (0.000 .. 9.025)%
    """
    model = provenance(result)["model"]["name"]
    yield title(f"Wrong reads of '{model}', {int(result.attrs['sequences']):,} sequences of each language")
    rows = table_of("language", "reads", "wrong", "error rate, exact 95% interval", "LSTM wrong", "LSTM error rate")
    for language in result["language"].values:
        at = result.sel(language=language)
        reads, (own, lstm) = float(at["reads"]), map(float, at["wrong"])
        cells = [number(lstm, ",.0f"), percent(lstm, reads, _SPEC)]
        rows.add_row(str(language), number(reads, ",.0f"), number(own, ",.0f"), percent(own, reads, _SPEC), *cells)
    yield rows
    called = [_name(at) for at in np.argwhere(result["head_role"].values == "last write")]
    yield Text(
        f"Heads that attend to the last write: {', '.join(called) or 'none'}. "
        + " ".join(
            f"{_name(at)} {_looks(result, at)}." for at in np.argwhere(result["head_role"].values == "last write")
        )
    )
    if "not_tested" in result.attrs:
        yield Text(f"Causes are not tested: {result.attrs['not_tested']}.")
        return
    yield title("What corrects the examined wrong reads, and where the attention goes instead")
    rows = table_of("language", "examined", *_CAUSES, "no cause")
    for language, at in _by_language(result).items():
        wrong = at.isel(read=at["is_wrong"].values)
        counts = [int((wrong["cause"] == cause).sum()) for cause in _CAUSES]
        size = wrong.sizes["read"]
        rows.add_row(language, number(size, "d"), *(number(n, "d") for n in counts), number(size - sum(counts), "d"))
    yield rows
    rows = table_of(
        "language",
        "reads",
        "n",
        "right by hard attention",
        "by control heads",
        "by content",
        "attention on register",
        words=("reads",),
    )
    for language, at in _by_language(result).items():
        for said, chosen in (("wrong", at["is_wrong"].values), ("right", ~at["is_wrong"].values)):
            some = at.isel(read=chosen)
            shares = [number(some[f"{name}_repaired"].mean(), ".0%") for name in ("matching", "control", "content")]
            rows.add_row(language, said, number(some.sizes["read"], "d"), *shares, number(some["on_register"].mean()))
            language = ""
    yield rows
    for reason in sorted({str(text) for text in result["reason"].values if text}):
        yield Text(f"No cause for {int((result['reason'] == reason).sum())}: {reason}.")
    yield Text(
        "Dilution: the register has the largest score, and too little attention; tie: as large as another's; "
        "wrong write, "
        "ignored value, other key: what has the largest score. As many right reads are examined as wrong ones."
    )


def _name(at: np.ndarray) -> str:
    return f"L{at[0]}H{at[1]}"


def _looks(result: xr.Dataset, at: np.ndarray) -> str:
    own, null = (float(result[name].values[tuple(at)]) for name in ("attention", "null"))
    return f"{own:.2f} of its attention, {null:.2f} at comparable positions"


def _by_language(result: xr.Dataset) -> dict[str, xr.Dataset]:
    return {
        str(language): result.isel(read=result["read_language"].values == language)
        for language in result["language"].values
    }


def _bins(edges: np.ndarray) -> list[str]:
    """Labels of the bins with these lower edges."""
    uppers = [*(int(edge) - 1 for edge in edges[1:]), None]
    return [
        f"{int(low)} or more" if up is None else f"{int(low)}" if up == low else f"{int(low)} .. {up}"
        for low, up in zip(edges, uppers, strict=True)
    ]


def _error_rates(result: xr.Dataset, name: str, words: str, x_title: str) -> go.Figure:
    """Error rates of every language by bin; the LSTM's, where there is one."""
    wrong, reads = result[f"wrong_by_{name}"], result[f"reads_by_{name}"].transpose("language", f"{name}_from")
    bins = _bins(result[f"{name}_from"].values)
    series, found = [], []
    for network, before in _NETWORKS.items():
        of = wrong.sel(network=network).transpose("language", f"{name}_from")
        if not np.isfinite(of.values).any():
            continue
        for i, language in enumerate(result["language"].values):
            series.append(f"{before}{language}")
            found.append(100 * binomial_interval(of.values[i], reads.values[i]))
    coords = {"series": series, "bin": bins}
    mean, low, high = (
        xr.DataArray(np.array(part), dims=("series", "bin"), coords=coords)
        for part in np.moveaxis(np.array(found), 1, 0)
    )
    counts = np.concatenate([reads.values] * (len(series) // len(reads)))
    enough = xr.DataArray(counts >= _ENOUGH, dims=("series", "bin"), coords=coords)
    figure = plots.points(
        mean.where(enough),
        low.where(enough),
        high.where(enough),
        over="series",
        x="bin",
        title=plots.titled(words, result),
        x_title=x_title,
        y_title="reads wrong (%), exact 95% intervals",
    )
    return figure.update_yaxes(rangemode="tozero")


def errors_by_distance(result: xr.Dataset) -> go.Figure:
    """Draw error rates by the distance from the last write.

    Args:
        result: a result of `flip_flop`.

    Returns:
        A line for each language and network, in bins of 200 reads or more, with exact 95% intervals.

    Source:
        Liu et al. 2023, Exposing Attention Glitches with Flip-Flop Language Modeling, arXiv 2306.00946.

    Example:
        >>> few = dict(sequences=16, tokens_each=32, examined=4, calibration=8)
        >>> result = interp.run("flip_flop", "wired-flipflop", **few)
        >>> errors_by_distance(result).layout.yaxis.title.text
        'reads wrong (%), exact 95% intervals'
    """
    return _error_rates(result, "distance", "Where are reads wrong? By distance", "tokens from the last written value")


def errors_by_writes(result: xr.Dataset) -> go.Figure:
    """Draw error rates by the number of writes so far.

    Args:
        result: a result of `flip_flop`.

    Returns:
        A line for each language and network, in bins of 200 reads or more, with exact 95% intervals.

    Source:
        Liu et al. 2023, Exposing Attention Glitches with Flip-Flop Language Modeling, arXiv 2306.00946.

    Example:
        >>> few = dict(sequences=16, tokens_each=32, examined=4, calibration=8)
        >>> result = interp.run("flip_flop", "wired-flipflop", **few)
        >>> errors_by_writes(result).layout.yaxis.title.text
        'reads wrong (%), exact 95% intervals'
    """
    return _error_rates(result, "writes", "Where are reads wrong? By writes", "writes up to the read")


def causes_of_errors(result: xr.Dataset) -> go.Figure | None:
    """Draw the share of wrong reads that each cause accounts for.

    Args:
        result: a result of `flip_flop`.

    Returns:
        Stacked bars in percent, one for each language; None where there are no wrong reads or causes are not tested.

    Example:
        >>> few = dict(sequences=16, tokens_each=32, examined=4, calibration=8)
        >>> result = interp.run("flip_flop", "wired-flipflop", **few)
        >>> causes_of_errors(result) is None  # no read is wrong
        True
    """
    parts = {name: at.isel(read=at["is_wrong"].values) for name, at in _by_language(result).items()}
    parts = {name: at for name, at in parts.items() if at.sizes["read"]}
    if not parts or "not_tested" in result.attrs:
        return None
    figure = go.Figure()
    sizes = [at.sizes["read"] for at in parts.values()]
    names = [f"{name}<br>{size} wrong reads" for name, size in zip(plots.labels(parts), sizes, strict=True)]
    left = np.ones(len(parts))
    shown = 0
    for cause in (*_CAUSES, "no cause"):
        shares = (
            left if cause == "no cause" else np.array([float((at["cause"] == cause).mean()) for at in parts.values()])
        )
        left = left - shares
        if np.any(shares > 1e-9):
            colour = plots.GREY if cause == "no cause" else plots.colour(shown)
            figure.add_bar(y=names, x=100 * shares, name=cause, orientation="h", marker_color=colour)
            shown += 1
    return figure.update_layout(
        template=plots.TEMPLATE,
        barmode="stack",
        title=plots.titled("Why are reads wrong?", result),
        xaxis_title="share of the wrong reads (%)",
        legend_traceorder="normal",
        margin={"l": 140},
    )


def attention_and_margin(result: xr.Dataset) -> go.Figure | None:
    """Draw each examined read by the margin of the register's score and the attention on the register.

    Args:
        result: a result of `flip_flop`.

    Returns:
        Dots, x nats (cut at 15; negative: the heads score another position highest), y attention, 0 to 1; None where no
        read was examined.

    Example:
        >>> few = dict(sequences=16, tokens_each=32, examined=4, calibration=8)
        >>> result = interp.run("flip_flop", "wired-flipflop", **few)
        >>> attention_and_margin(result) is None  # no read is wrong, so that none was examined
        True
    """
    if "not_tested" in result.attrs or not result.sizes["read"]:
        return None
    figure = go.Figure()
    for i, (language, at) in enumerate(_by_language(result).items()):
        for said, chosen, symbol in (
            ("wrong", at["is_wrong"].values, "x"),
            ("right", ~at["is_wrong"].values, "circle-open"),
        ):
            some = at.isel(read=chosen)
            if some.sizes["read"]:
                figure.add_scatter(
                    x=some["margin"].clip(-15, 15),
                    y=some["on_register"],
                    mode="markers",
                    name=f"{language}, {said}",
                    marker={"symbol": symbol, "color": plots.colour(i), "size": 7, "opacity": 0.8},
                    text=some["largest_key"].values,
                    hovertemplate="%{text}: margin %{x:.2f} nats, %{y:.2f} of the attention<extra></extra>",
                )
    figure.add_vline(x=0, line={"dash": "dot", "color": plots.GREY})
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Where do the heads look when a read is wrong?", result),
        xaxis_title="score of the register less the largest other (nats, cut at 15)",
        yaxis_title="attention on the register",
    )


FIGURES = [errors_by_distance, errors_by_writes, causes_of_errors, attention_and_margin]

GALLERY = (
    GalleryEntry(
        "flip_flop",
        Request.of("flip_flop", model="flipflop"),
        (
            Caption(
                "errors_by_distance",
                "Wrong reads of a register by the distance from the last write: none in the language of training, a "
                "tail in the sparse one; the LSTM has none anywhere.",
                f"the error rates of {LIU}",
            ),
            Caption("errors_by_writes", "The same by the number of writes: in the dense language, after many."),
            Caption("causes_of_errors", "Of the wrong reads, what brings them right, and where the attention went."),
            Caption("attention_and_margin", "Where the last-write heads look at wrong reads, and at right ones."),
        ),
        "attention glitches",
        order=10,
    ),
)
