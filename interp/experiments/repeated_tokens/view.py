"""How does a result of `repeated_tokens` look: what each pool's halves are predicted with, and how that depends on the
dose?
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import RANKED, XIANG, Caption, GalleryEntry, ReportSection, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.tables import interval, number, table_of, title

_CLEAR = 0.1  # share of ambiguous tokens up to which a copying verdict is given: 0.9 and 0.1 stay distinguishable


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List how well each pool is copied, and say what it means.

    Args:
        result: a result of `repeated_tokens`.

    Returns:
        What rich can print, line by line: mean log-probs (nats) with 95% intervals, and shares right.

    Example:
        >>> result = interp.run("repeated_tokens", "wired", "1:65", batch=4)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        blocks of 1:65 | -4.17 | 0.00 (too few sequences: no interval) | 100%
    """
    where = provenance(result)
    sequences = where["sequences"]
    yield title(f"Mean log-prob of the right token on '{where['model']['name']}' (nats; 0 is certain)")
    rows = table_of("tokens", "first half", "second half, 95% interval", "right")
    shown = {"inducible": "blocks of {pool}", "single": f"one {{pool}} among {sequences.get('among', 'ordinary')}"}
    if sequences["protocol"] == "article":
        shown = {"article": "blocks of {pool} (the article's halves)"} | shown
    for definition, words in shown.items():
        for pool in result["pool"].values:
            if definition in result["definition"].values:
                at = result["summary"].sel(pool=pool, definition=definition)
                rows.add_row(words.format(pool=pool), *_row(at))
    yield rows
    yield Text(_sentence(result, where))
    yield Text(
        f"{sequences['batch']} sequence(s) per pool, block of {sequences['length']} x {sequences['copies']}, "
        f"{'without BOS, ' if sequences['bos'] is None else ''}seed {sequences['seed']}, "
        f"weights {where['model'].get('weights', 'raw')}. "
        "Averaged over the tokens that context determines (offset > 0)."
    )


def _row(at: xr.DataArray) -> tuple[str, str, str]:
    first = float(at.sel(measure="log_prob", part="first", bound="mean"))
    mean, low, high = (float(at.sel(measure="log_prob", part="second", bound=b)) for b in ("mean", "low", "high"))
    right = float(at.sel(measure="correct", part="second", bound="mean"))
    alone = "" if np.isfinite(low) else " (too few sequences: no interval)"
    return number(first), interval(mean, low, high) + alone, number(right, ".0%")


def _sentence(result: xr.Dataset, where: dict[str, Any]) -> str:
    """Which pools are copied, and which are not."""
    shares = result["summary"].sel(part="second", bound="mean", measure="correct")
    summary, definitions = shares.sel(definition="inducible"), result["definition"].values
    fitted = "fitted_to" in where["sequences"] and "single" in definitions
    groups: dict[str, list[str]] = {
        "copied almost perfectly from the first half": [],
        "copied in part": [],
        "not copied, although each occurred in the first copy": [],
    }
    almost, partly, none = groups.values()
    unclear, alone = [], []
    for pool in map(str, result["pool"].values):
        right, ambiguous = float(summary.sel(pool=pool)), _ambiguous(result.sel(pool=pool))
        if ambiguous > _CLEAR:
            unclear.append(pool)
        elif where["pools"].get(pool, {}).get("size") == 1:
            alone.append(pool)
        else:
            single = f", single ones {float(shares.sel(pool=pool, definition='single')):.0%}" if fitted else ""
            group = almost if right >= 0.9 else none if right <= 0.1 else partly
            group.append(f"{pool} tokens ({right:.0%} right{single})")
    said = [
        f"{', '.join(names[:-1])}{' and ' if len(names) > 1 else ''}{names[-1]} are {words}"
        for words, names in groups.items()
        if names
    ]
    if unclear:
        said.append(
            f"whether {', '.join(unclear)} tokens are copied cannot be determined: tokens recur within a block, "
            "followed by different ones, and even a perfect copier has to guess"
        )
    if alone:
        said.append(f"whether {', '.join(alone)} is copied cannot be determined: its blocks hold one token throughout")
    text = "; ".join(said)
    return text[0].upper() + text[1:] + "."


def _ambiguous(at: xr.Dataset) -> float:
    """The share of a pool's inducible tokens before which stands one that something else follows in the same block."""
    half = at["half"].values
    if "token_id" not in at.coords or 1 not in half:  # of earlier releases
        return 0.0
    blocks = at["token_id"].transpose("batch", "position").values[:, half == 1]
    before, after = blocks[:, :-1], blocks[:, 1:]
    returns = before[:, :, None] == before[:, None, :]
    return float((returns & (after[:, :, None] != after[:, None, :])).any(-1).mean())


def log_prob_by_position(result: xr.Dataset) -> go.Figure:
    """Draw the mean log-prob at every position, with the copies marked.

    Args:
        result: a result of `repeated_tokens`.

    Returns:
        Lines in nats with 95% intervals over sequences, one for each pool.

    Source:
        S. Xiang 2024, Under-trained and Unused tokens in LLMs.

    Example:
        >>> result = interp.run("repeated_tokens", "wired", "1:65", batch=4)
        >>> log_prob_by_position(result).layout.yaxis.title.text
        'log-prob of the right token (nats)'
    """
    values = result["log_prob"].isel(position=slice(1, None))
    figure = plots.lines(
        *plots.intervals(values),
        over="pool",
        x="position",
        title=plots.titled("Log-prob of each token of a random block and its repeat", result),
        x_title="position in the sequence",
        y_title="log-prob of the right token (nats)",
    )
    half, position = values["half"].values, values["position"].values
    for copy in np.unique(half):
        start, end = position[half == copy][[0, -1]]
        name = {1: "first half: cannot be known", 2: "second half: a repeat"}.get(int(copy), f"copy {copy}")
        figure.add_annotation(x=(start + end) / 2, y=1, yref="paper", text=name, showarrow=False, yanchor="bottom")
        if copy > 1:
            figure.add_vline(x=start - 0.5, line={"dash": "dot", "color": plots.GREY, "width": 1})
    return figure.update_layout(legend_y=1.09)


def halves(result: xr.Dataset) -> go.Figure:
    """Draw the mean log-prob of each sequence's first and second half.

    Args:
        result: a result of `repeated_tokens`.

    Returns:
        A dot for each sequence, y in nats, by pool: the article's comparison.

    Source:
        S. Xiang 2024, Under-trained and Unused tokens in LLMs.

    Example:
        >>> result = interp.run("repeated_tokens", "wired", "1:65", batch=4)
        >>> halves(result).layout.yaxis.title.text
        'mean log-prob of the half (nats)'
    """
    values = result["log_prob"].where(result["offset"] >= 0)
    parts = [values.where(result["half"] == 1).mean("position"), values.where(result["half"] >= 2).mean("position")]
    return plots.strip(
        xr.concat(parts, dim=xr.DataArray(["first half", "second half"], dims="part", name="part")),
        over="pool",
        group="part",
        title=plots.titled("The two halves, one dot per sequence", result),
        y_title="mean log-prob of the half (nats)",
    )


def dose_response(result: xr.Dataset) -> go.Figure | None:
    """Draw the log-prob of canaries at their second occurrence against their dose.

    Args:
        result: a result of `repeated_tokens`.

    Returns:
        Dots in nats with 95% intervals; pools that are not doses follow as controls; None with fewer than two pools
        `dose=N`.

    Example:
        >>> result = interp.run("repeated_tokens", "wired", "1:65", batch=4)
        >>> dose_response(result) is None  # the pool is not a dose
        True
    """
    pools = list(map(str, result["pool"].values))
    doses = sorted((p for p in pools if p.startswith("dose=") and p[5:].isdigit()), key=lambda p: int(p[5:]))
    if len(doses) < 2:
        return None
    order = doses + [p for p in pools if not p.startswith("dose=")]
    names = {"single": "one among ordinary tokens", "inducible": "a block of them"}
    kept = [d for d in names if d in result["definition"].values]
    second = result["summary"].sel(measure="log_prob", part="second", definition=kept, pool=order)
    second = second.assign_coords(pool=[p.removeprefix("dose=") for p in order], definition=[names[d] for d in kept])
    return plots.points(
        *(second.sel(bound=b) for b in ("mean", "low", "high")),
        over="definition",
        x="pool",
        title=plots.titled("How often must a token be seen to be copied?", result),
        x_title="times trained on (dose), and controls",
        y_title="log-prob, second occurrence (nats)",
    )


FIGURES = [dose_response, log_prob_by_position, halves]


_ENTRY = GalleryEntry(
    "repeated_tokens",
    Request.of("repeated_tokens"),
    (
        Caption(
            "log_prob_by_position",
            "Log-prob of each position of a random block and its repeat, by pool of tokens: ordinary tokens "
            "are copied, "
            "unexposed ones are not.",
            f"the log-probs by position of {XIANG}",
        ),
        Caption(
            "halves",
            "The mean of the first half and of the second, a dot for each sequence.",
            f"the comparison of halves of {XIANG}",
        ),
    ),
    "copying",
    tolerance=RANKED,
    order=10,
)
GALLERY = (
    _ENTRY,
    GalleryEntry(
        "repeated_doses",
        Request.of("repeated_tokens", pools=("doses", "ordinary"), length=10, batch=160),
        (Caption("dose_response", "How often a token must have been trained on to be copied."),),
        "copying",
        left_out=("log_prob_by_position", "halves"),  # ten pools are too many for one picture
        tolerance=RANKED,
        order=10,
    ),
    of_public_model(_ENTRY),
)

SECTION = ReportSection(
    "gap",
    "The gap",
    "A random block of tokens, fed twice. What was seen in the first copy can be known in the second: ordinary "
    "tokens are copied almost perfectly, tokens that training never or hardly ever showed are not.",
    Request.of("repeated_tokens", batch=32),
    figures=("log_prob_by_position", "halves"),
    order=10,
)
