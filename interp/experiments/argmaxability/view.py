"""How does a result of `argmaxability` look: which tokens can be first, and by how much can they lead?"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import GRIVAS, NO_COUNTERPART, Caption, GalleryEntry, ReportSection, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.tables import Cell, number, table_of, title

_SHOWN = 12  # tokens that are listed
_SHORT = {"any state": "any", "after the norm": "normed"}
_COLOUR = {
    "argmaxable": plots.COLOURS[0],
    "tied": plots.COLOURS[4],
    "unargmaxable": plots.COLOURS[1],
    "undecided": plots.GREY,
}


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """Count the verdicts, for any state and after the last norm, by pool.

    Args:
        result: a result of `argmaxability`.

    Returns:
        What rich can print, line by line: counts of tokens, those that are never first, and how each verdict was
        decided.

    Example:
        >>> result = interp.run("argmaxability", "wired", "1:65")
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns), sep=" | ")
        all | 65 | any | 65 | - | - | - | -
    """
    about = provenance(result)
    name = about["model"]["name"] if "model" in about else about.get("matrix", "this matrix")
    yield title(f"Can a token of '{name}' be the arg-max?")
    yield _counts(result)
    names = list(map(str, result["verdicts"].values))
    codes = result["verdict"].sel(question="any state").values
    never = np.flatnonzero(codes != 0)
    if len(never):
        listed = ", ".join(f"{int(result['token'].values[i])} ({names[codes[i]]})" for i in never[:_SHOWN])
        yield Text(f"Not argmaxable: {listed}{f' and {len(never) - _SHOWN:,} more' if len(never) > _SHOWN else ''}.")
    if _behind(result):
        widest = result["margin"].sel(question="after the norm")
        for dtype in map(str, result["dtype"].values):
            lost = int((widest <= result["spacing"].sel(dtype=dtype)).sum())
            yield Text(f"{lost:,} tokens lead by no more than the spacing of {dtype} logits.")
    yield Text(
        "Every verdict was checked in float64: a state that puts the token first, or a convex combination of "
        "other rows that equals its own."
    )
    if "stages" in result.attrs:
        stages = ", ".join(f"{n}: {c:,}" for n, c in json.loads(result.attrs["stages"]).items())
        yield Text(f"Decided by {stages}.")


def _counts(result: xr.Dataset) -> RenderableType:
    behind = _behind(result)
    asked = result["verdict"].where(np.isfinite(result["margin"]) | (result["question"] == "any state"))
    names = list(map(str, result["verdicts"].values))[: 4 if bool((asked == 3).any()) else 3]
    rows = table_of("tokens", "all", "state", *names, *(["mean lead", "least"] if behind else []), words=("state",))
    every = {"all": np.ones(result.sizes["token"], bool)}
    for group, of in (every | _members(result)).items():
        for question in map(str, result["question"].values):
            if question == "after the norm" and not behind:
                continue
            codes, margin = (result[n].sel(question=question).values[of] for n in ("verdict", "margin"))
            counts = [_count(int((codes == i).sum())) for i in range(len(names))]
            finite = margin[np.isfinite(margin) & (question != "any state")]
            leads = [number(finite.mean()), number(finite.min())] if len(finite) else ["-", "-"]
            rows.add_row(group, number(of.sum(), ",d"), _SHORT[question], *counts, *(leads if behind else []))
    return rows


def _count(tokens: int) -> Cell:
    """How many tokens have a verdict; zero is printed as a dash."""
    return Cell(f"{tokens:,}" if tokens else "-", {"": tokens})


def _behind(result: xr.Dataset) -> bool:
    """Is it known what the states after the last norm are?"""
    asked = "after the norm" in result["question"].values
    return asked and bool(np.isfinite(result["margin"].sel(question="after the norm")).any())


def _members(result: xr.Dataset) -> dict[str, np.ndarray]:
    """Which tokens each pool has, where there are pools."""
    if "member" not in result:
        return {}
    member = result["member"].transpose("pool", "token").values.astype(bool)
    return dict(zip(map(str, result["pool"].values), member, strict=True))


def margin_by_kind(result: xr.Dataset) -> go.Figure:
    """Draw by how much each token can lead, after the last norm or, without one, at its witness.

    Args:
        result: a result of `argmaxability`.

    Returns:
        A dot for each token, y in logits, one column for each pool, coloured by verdict; negative where it is never
        first.

    Source:
        Grivas, Bogoychev and Lopez 2022, Low-Rank Softmax Can Have Unargmaxable Classes, arXiv 2203.06462.

    Example:
        >>> result = interp.run("argmaxability", "wired", "1:65")
        >>> margin_by_kind(result).data[0].name
        'argmaxable'
    """
    behind = _behind(result)
    question = "after the norm" if behind else "any state"
    margin, codes = (result[n].sel(question=question).values for n in ("margin", "verdict"))
    groups = _members(result) or {"all": np.ones(len(margin), bool)}
    names = plots.labels(groups)
    figure = go.Figure()
    for code, verdict in enumerate(map(str, result["verdicts"].values)):
        listed = False
        for i, (group, of) in enumerate(zip(names, groups.values(), strict=True)):
            here = of & (codes == code) & np.isfinite(margin)
            if here.any():
                figure.add_box(
                    y=margin[here],
                    x=[group] * int(here.sum()),
                    **plots.scattered(jitter=0.7),
                    name=verdict,
                    legendgroup=verdict,
                    showlegend=not listed,
                    customdata=result["token"].values[here],
                    hovertemplate="token %{customdata}: %{y:.3g} logits<extra></extra>",
                    marker={"color": _COLOUR[verdict], "size": 4, "opacity": 0.5},
                )
                listed = True
            if code == 0 and "pool_margin" in result:
                bounds = ("pool_margin", "pool_margin_low", "pool_margin_high")
                mean, low, high = (float(result[name].isel(pool=i)) for name in bounds)
                figure.add_scatter(
                    x=[group],
                    y=[mean],
                    mode="markers",
                    showlegend=i == 0,
                    legendgroup="mean",
                    name="mean, 95% interval",
                    marker={"color": "black", "size": 9, "symbol": "diamond"},
                    error_y={"array": [high - mean], "arrayminus": [mean - low], "width": 6, "color": "black"},
                    hovertemplate=f"mean of {group}: %{{y:.3g}}<extra></extra>",
                )
    log = bool(np.nanmin(margin[np.isfinite(margin)], initial=1.0) > 0)
    if behind and "spacing" in result:
        coarse = float(np.nanmedian(result["spacing"].sel(dtype="bfloat16")))
        figure.add_hline(y=coarse, line={"dash": "dot", "color": plots.GREY})
        figure.add_annotation(
            x=1,
            xref="paper",
            xanchor="right",
            y=np.log10(coarse) if log else coarse,
            yanchor="bottom",
            showarrow=False,
            text="spacing of bfloat16 (median)",
        )
    if log:
        ticks = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
        figure.update_yaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    return figure.update_layout(
        template=plots.TEMPLATE,
        yaxis_title="widest lead after the last norm (logits)" if behind else "lead at the witness (logits)",
        legend_y=1.1,
        title=plots.titled("How clearly can a token be first?", result),
    )


def hull(result: xr.Dataset) -> go.Figure | None:
    """Draw the rows of an output layer of two or three dimensions, coloured by verdict.

    Args:
        result: a result of `argmaxability`.

    Returns:
        A scatter of rows: corners of their convex hull can be first, rows inside never; None in more dimensions, or
        where the rows were not stored.

    Source:
        Grivas, Bogoychev and Lopez 2022, Low-Rank Softmax Can Have Unargmaxable Classes, arXiv 2203.06462.

    Example:
        >>> result = interp.run("argmaxability", "wired", "1:65")
        >>> hull(result) is None  # the rows have more than three dimensions
        True
    """
    if "rows" not in result or result.sizes["axis"] not in (2, 3):
        return None
    rows, codes = result["rows"].values, result["verdict"].sel(question="any state").values
    flat = rows.shape[1] == 2
    kind = go.Scatter if flat else go.Scatter3d
    figure = go.Figure()
    for code, verdict in enumerate(map(str, result["verdicts"].values)):
        here = codes == code
        if here.any():
            figure.add_trace(
                kind(
                    **dict(zip("xyz", rows[here].T, strict=False)),
                    mode="markers",
                    name=f"{verdict} ({here.sum()})",
                    customdata=result["token"].values[here],
                    marker={"color": _COLOUR[verdict], "size": 7 if flat else 4},
                    hovertemplate="class %{customdata}<extra></extra>",
                )
            )
    if flat:
        figure.update_yaxes(scaleanchor="x")
    title = plots.titled("Which classes are corners of the hull?", result)
    return figure.update_layout(template=plots.TEMPLATE, title=title, legend_y=1.1)


FIGURES = [margin_by_kind, hull]


def _argmaxability(folder: str, model: str) -> GalleryEntry:
    caption = Caption(
        "margin_by_kind",
        f"By how many logits each token of `{model}` can lead at most, by kind of token.",
        f"{NO_COUNTERPART}; the verdicts are those of {GRIVAS}",
    )
    request = Request.of("argmaxability", model=model, pools=("unexposed", "doses", "ordinary"))
    return GalleryEntry(folder, request, (caption,), "the output layer", order=10)


GALLERY = (
    _argmaxability("argmaxability", "organism"),
    _argmaxability("argmaxability_untied", "organism-untied"),
    _argmaxability("argmaxability_llama", "organism-llama"),
    of_public_model(_argmaxability("", "smollm2")),
)

SECTION = ReportSection(
    "reach",
    "Could they ever be said?",
    "For every token a hidden state that makes it the arg-max, or a proof that there is none; and by how much it "
    "can lead at most after the model's last norm.",
    Request.of("argmaxability"),
    order=40,
)
