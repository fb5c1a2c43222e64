"""How does a result of `unused_logits` look: how likely does any token of a pool ever get?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import RANKED, XIANG, Caption, GalleryEntry
from interp.request import Request
from interp.results import by_pool
from interp.tables import number, table_of, title

_MEASURES = ("logit", "centred_logit", "log_prob", "probability")


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List the largest logit, log-prob and probability that a token of each pool reaches.

    Args:
        result: a result of `unused_logits`.

    Returns:
        What rich can print, line by line: one row for each pool: logits, nats, probability, which token and after what.

    Example:
        >>> result = interp.run("unused_logits", "organism", "unexposed", contexts=2)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:1]), sep=" | ")
        unexposed
    """
    yield title(f"The most a token reaches over {result.attrs['positions']:,} positions ({result.attrs['source']})")
    which = "which, after what"
    rows = table_of("pool", "logit", "centred", "log-prob", "probability", which, words=(which,))
    for pool, part in by_pool(result).items():
        best = part.isel(token=int(np.argmax(part["largest"].sel(measure="log_prob").values)))
        words = f"{best['text'].item()!r} after {best['after'].sel(measure='log_prob').item()!r}"
        rows.add_row(pool, *(number(part["largest"].sel(measure=m).max(), ".3g") for m in _MEASURES), words)
    yield rows
    yield Text("A logit is no log-probability: only log-prob (nats) and probability say how likely.")


def largest_log_prob(result: xr.Dataset) -> go.Figure:
    """Draw the largest log-prob that each token of a pool reaches anywhere.

    Args:
        result: a result of `unused_logits`.

    Returns:
        A dot for each token, y in nats; what stood before it on hover.

    Source:
        S. Xiang 2024, Under-trained and Unused tokens in LLMs.

    Example:
        >>> result = interp.run("unused_logits", "organism", "unexposed", contexts=2)
        >>> largest_log_prob(result).layout.yaxis.title.text
        'largest log-prob over 102 positions (nats)'
    """
    figure = go.Figure()
    parts = by_pool(result)
    for i, (name, part) in enumerate(zip(plots.labels(parts), parts.values(), strict=True)):
        part = part.sel(measure="log_prob")
        best = part["largest"].values
        texts = zip(part["text"].values, part["after"].values, best, strict=True)
        said = [
            f"{plots.token_label(t)} after {plots.token_label(a)}: probability {np.exp(v):.2g}" for t, a, v in texts
        ]
        hover = "%{text}<br>%{y:.2f} nats<extra></extra>"
        plots.add_dots(figure, best, name, i, name=name, showlegend=False, text=said, hovertemplate=hover)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("The most that a token is ever expected", result),
        yaxis_title=f"largest log-prob over {result.attrs['positions']:,} positions (nats)",
    )


FIGURES = [largest_log_prob]


GALLERY = (
    GalleryEntry(
        "unused_logits",
        Request.of("unused_logits", pools=("unexposed", "impossible-bytes", "control(unexposed)")),
        (
            Caption(
                "largest_log_prob",
                "The most that each token is ever expected, over random contexts.",
                f"the largest logit of the unused tokens of {XIANG}",
            ),
        ),
        "the vocabulary",
        tolerance=RANKED,
        order=40,
    ),
)
