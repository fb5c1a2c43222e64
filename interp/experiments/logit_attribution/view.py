"""How does a result of `logit_attribution` look: which components and heads write the right token's logit?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import ELHAGE, Caption, GalleryEntry, ReportSection
from interp.request import Request
from interp.tables import ranked, sampled, strongest_heads, table_of, title

_MOST = 24  # bars in one panel


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List what writes the right token's logit.

    Args:
        result: a result of `logit_attribution`.

    Returns:
        What rich can print, line by line: logits with 95% intervals, the largest components and heads, one row for each
        pool.

    Example:
        >>> result = interp.run("logit_attribution", "wired", "1:65", batch=2)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        1:65 | 707.11 | 1_attn_out +707.1, pos_embed +0.0, 0_attn_out +0.0 | L1H0 +707.11, L0H0 +0.00, L0H1 +0.00
    """
    token = "answer" if "against" in result else "repeated token"
    yield title(f"Direct logit attribution of the {token} (logit {_less(result)})")
    rows = table_of("pool", "in all", "components", "heads", words=("components", "heads"))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        parts = at["by_component"].mean("batch")
        order = np.argsort(-np.abs(parts.values))[:3]
        words = ranked([(str(parts["component"].values[i]), float(parts[i])) for i in order], "+.1f")
        rows.add_row(str(pool), sampled(at["total"]), words, strongest_heads(at["by_head"].mean("batch"), 3))
    yield rows
    if "no_heads" in result.attrs:
        yield Text(f"No heads: {result.attrs['no_heads']}.")


def _less(result: xr.Dataset) -> str:
    """What the logit is compared with, in words."""
    words = {"rivals": "less its rivals'", "vocabulary": "less the vocabulary's mean"}
    kinds = sorted(set(map(str, result["against"].values.ravel()))) if "against" in result else ["vocabulary"]
    return words[kinds[0]] if len(kinds) == 1 else "less its rivals', or the vocabulary's mean where there are none"


def attribution(result: xr.Dataset) -> go.Figure:
    """Draw the logit of the right token that each component and each head writes.

    Args:
        result: a result of `logit_attribution`.

    Returns:
        Bars in logits with 95% intervals over sequences, positive: in favour of the token.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Example:
        >>> result = interp.run("logit_attribution", "wired", "1:65", batch=2)
        >>> list(attribution(result).data[0].x)
        ['embed', 'pos_embed', '0_attn_out', '0_mlp_out', '1_attn_out', '1_mlp_out']
    """
    parts = {
        "components": (result["by_component"], list(map(str, result["component"].values))),
        "heads": (result["by_head"].stack(head_name=("layer", "head")), plots.head_names(result["by_head"])),
    }
    figure = make_subplots(1, 2, subplot_titles=list(parts), horizontal_spacing=0.08)
    for column, (values, names) in enumerate(parts.values(), start=1):
        samples = values.transpose("batch", "pool", ...)
        kept = np.arange(len(names))
        if len(names) > _MOST:  # those that write most, in their own order
            kept = np.sort(np.argsort(-np.abs(samples.mean("batch").values).max(0))[:_MOST])
        bounds = plots.intervals(samples[..., kept])
        for i, pool in enumerate(plots.labels(result["pool"].values)):
            mean, low, high = (bound.isel(pool=i).values for bound in bounds)
            figure.add_bar(
                x=[names[k] for k in kept],
                y=mean,
                name=pool,
                legendgroup=pool,
                showlegend=column == 1,
                marker_color=plots.colour(i),
                row=1,
                col=column,
                error_y=plots.errors(mean, low, high, width=3, color=plots.GREY),
            )
    figure.update_xaxes(type="category")
    words = f"logit of the answer {_less(result)}" if "against" in result else "logit of the right token, centred"
    figure.update_yaxes(title=words, col=1)
    title = plots.titled("Who writes the right token?", result)
    return figure.update_layout(template=plots.TEMPLATE, barmode="group", legend_y=1.1, title=title)


FIGURES = [attribution]


GALLERY = (
    GalleryEntry(
        "logit_attribution",
        Request.of("logit_attribution"),
        (
            Caption(
                "attribution",
                "The logit of the right token that each component and each head writes.",
                f"the direct effects of heads on logits of {ELHAGE}",
            ),
        ),
        "the copying circuit",
        order=70,
    ),
)
PROMPTS_SECTION = ReportSection(
    "writers",
    "Who writes it?",
    "What each component and each head adds to the logit of the answer, less that of its rivals where there are any.",
    Request.of("logit_attribution"),
    order=20,
)
