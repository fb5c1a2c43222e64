"""Figures of the vocabulary: what its tokens are, which are under-trained, and how they answer when asked."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp import plots
from interp.figures.common import has, shown, titled
from interp.pools import ORDINARY_FROM, UNDERTRAINED_TO
from interp.statistics import mean_interval

_REACHABLE = {"reachable": plots.COLOURS[0], "unknown": plots.COLOURS[4], "impossible": plots.COLOURS[1]}
_GROUPS = {
    "text": plots.COLOURS[0], "byte": plots.COLOURS[2], "fragment": plots.COLOURS[3], "special": plots.GREY,
    "added": plots.COLOURS[5], "no text can produce it": plots.COLOURS[1],
}  # fmt: skip
_TINY = 1e-12


def census(result: xr.Dataset) -> go.Figure:
    """How many tokens of each kind can a text produce? One bar for each answer, counts on a logarithmic axis."""
    counts = result["count"].transpose("kind", "reachable")
    present = [str(k) for k in counts["kind"].values if int(counts.sel(kind=k).sum())]
    figure = go.Figure()
    for name, colour in _REACHABLE.items():
        values = [int(counts.sel(kind=k, reachable=name)) for k in present]
        shown = [v or None for v in values]  # nothing has no bar on a logarithmic axis
        figure.add_bar(
            y=present, x=shown, name=name, marker_color=colour, orientation="h", text=[f"{v:,}" if v else "" for v in values],
            textposition="outside", cliponaxis=False, hovertemplate=f"%{{y}}, {name}: %{{x:,}}<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    most = int(counts.max())
    figure.update_xaxes(type="log", range=[-0.3, np.log10(max(most, 10)) + 0.4], dtick=1)
    return figure.update_layout(
        template=plots.TEMPLATE, title=_census_title(result), xaxis_title="tokens", barmode="group", bargap=0.3,
        height=220 + 60 * len(present), margin={"l": 100},  # room for the names of kinds
    )  # fmt: skip


def _census_title(result: xr.Dataset) -> str:
    from interp.results import provenance

    where = provenance(result)
    name = (where.get("model") or {}).get("name") or where["tokenizer"]["name"]
    return f"Can any text produce this token? · {str(name).rstrip('/').split('/')[-1] or 'tokenizer'}"


def indicator_against_probability(result: xr.Dataset) -> go.Figure:
    """Every token's indicator against the largest probability it was given when asked to be repeated; text on hover."""
    name = result.attrs["indicator"]
    x, y = result["value"].sel(indicator=name).values, result["max_probability"].values
    asked = np.isfinite(y)
    hover, groups = _hover(result), _groups(result)
    figure = go.Figure()
    many = asked.sum() > 10_000
    for group, colour in _GROUPS.items():
        at = asked & (groups == group)
        if at.any():
            draw = go.Scattergl if many else go.Scatter
            figure.add_trace(draw(
                x=x[at], y=y[at].clip(min=_TINY), mode="markers", name=group, text=hover[at], hovertemplate="%{text}<extra></extra>",
                marker={"color": colour, "size": 6 if not many else 4, "opacity": 0.7},
            ))  # fmt: skip
    limit, called = (
        float(result["threshold"].sel(indicator=name)),
        result["called"].sel(indicator=name).values.astype(bool),
    )
    verified = y < result.attrs["threshold"]
    figure.add_hline(y=result.attrs["threshold"], line={"dash": "dot", "color": plots.GREY})
    if np.isfinite(limit):
        figure.add_vline(x=limit, line={"dash": "dot", "color": plots.GREY})
    corners = {
        (0.01, 0.02, "left", "bottom"): f"called and not repeated: {int((called & verified & asked).sum())}",
        (0.01, 0.98, "left", "top"): f"called, yet repeated: {int((called & ~verified & asked).sum())}",
        (0.99, 0.02, "right", "bottom"): f"not called, not repeated: {int((~called & verified & asked).sum())}",
    }
    for (at_x, at_y, across, along), words in corners.items():
        figure.add_annotation(
            x=at_x, y=at_y, xref="paper", yref="paper", xanchor=across, yanchor=along, text=words, showarrow=False,
            bgcolor="rgba(128,128,128,0.15)", font={"size": 12},  # on a light and on a dark page
        )  # fmt: skip
    lowest = np.log10(y[asked].clip(min=_TINY).min())  # room for the words below
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, range=[lowest - 0.08 * (1 - lowest) - 0.1, 0.25])
    return figure.update_layout(
        template=plots.TEMPLATE, title=titled("Do the rows tell which tokens cannot be repeated?", result),
        xaxis_title=f"{name} (left of the line: called, nominal false-discovery rate {result.attrs['fdr']:g})",
        yaxis_title="largest probability when asked to repeat it", height=560,
    )  # fmt: skip


def indicator_histogram(result: xr.Dataset) -> go.Figure:
    """The shown indicator by kind of token, with the null fitted to reachable text and the calling threshold."""
    name = result.attrs["indicator"]
    values, groups = result["value"].sel(indicator=name).values, _groups(result)
    usable = np.isfinite(values)
    edges = np.linspace(values[usable].min(), values[usable].max(), 81)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    figure = go.Figure()
    for group, colour in _GROUPS.items():
        counts, _ = np.histogram(values[usable & (groups == group)], edges)
        if counts.any():
            figure.add_bar(x=middle, y=counts, name=group, marker={"color": colour, "line": {"width": 0}}, width=width)
    centre, spread = (float(result[f"null_{part}"].sel(indicator=name)) for part in ("centre", "width"))
    fitted = usable & (groups == "text")
    density = np.exp(-0.5 * ((middle - centre) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
    figure.add_scatter(
        x=middle, y=(density * fitted.sum() * width).clip(min=1e-3), name="null fitted to text", mode="lines",
        line={"color": plots.GREY, "dash": "dash"},
    )  # fmt: skip
    limit = float(result["threshold"].sel(indicator=name))
    if np.isfinite(limit):
        figure.add_vline(
            x=limit, line={"dash": "dot", "color": plots.GREY}, annotation_text="called", annotation_position="top left"
        )
    figure.update_yaxes(type="log", range=[-0.3, None], dtick=1)
    return figure.update_layout(
        template=plots.TEMPLATE, title=titled("One indicator over the whole vocabulary", result), xaxis_title=name,
        yaxis_title="tokens", barmode="stack", bargap=0,
    )  # fmt: skip


def detection(result: xr.Dataset) -> go.Figure:
    """ROC and precision-recall of every indicator against exposure counts, multi-character text tokens only."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    exposure = result["exposure"].values
    several = result["multi_character"].values.astype(bool)
    decided = several & ((exposure <= UNDERTRAINED_TO) | (exposure >= ORDINARY_FROM))
    positive = exposure <= UNDERTRAINED_TO
    figure = make_subplots(1, 2, subplot_titles=("ROC", "precision and recall"), horizontal_spacing=0.1)
    for i, method in enumerate(result["detector"].values):
        score = (
            result["max_probability"].values
            if method == "max_probability"
            else result["value"].sel(indicator=method).values
        )
        at = decided & np.isfinite(score)
        area = float(result["truth"].sel(detector=method, subset="multi-character", measure="auroc", bound="value"))
        style = {
            "name": f"{method} ({area:.3f})", "legendgroup": str(method), "mode": "lines",
            "line": {"color": plots.COLOURS[i % len(plots.COLOURS)], "dash": ("solid", "dash")[i // len(plots.COLOURS)]},
        }  # fmt: skip
        false, true, _ = roc_curve(positive[at], -score[at])
        figure.add_scatter(x=false, y=true, row=1, col=1, **style)
        precision, recall, _ = precision_recall_curve(positive[at], -score[at])
        figure.add_scatter(x=recall, y=precision, row=1, col=2, showlegend=False, **style)
    for column, (x, y) in enumerate((("false positive rate", "true positive rate"), ("recall", "precision")), start=1):
        figure.update_xaxes(title=x, range=[-0.02, 1.02], row=1, col=column)
        figure.update_yaxes(title=y, range=[-0.02, 1.02], row=1, col=column)
    return figure.update_layout(
        template=plots.TEMPLATE, height=620, margin={"t": 90, "b": 200},
        title=titled(f"Exposed at most {UNDERTRAINED_TO} times, or {ORDINARY_FROM} and more? (AUROC)", result),
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
    )  # fmt: skip


def exposure_response(result: xr.Dataset) -> go.Figure:
    """Copying and one indicator of every token against the times it was trained on; canaries apart."""
    name = "e_out_cosine_centred"
    exposure, canary = result["exposure"].values, result["canary"].values.astype(bool)
    rows = (
        ("log-prob when copied (nats)", result["log_prob"].values),
        (name, result["value"].sel(indicator=name).values),
    )
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (y_title, values) in enumerate(rows, start=1):
        for at, words, colour, symbol in (
            (~canary, "natural tokens", plots.COLOURS[0], 0),
            (canary, "canaries", plots.COLOURS[1], 2),
        ):
            figure.add_scatter(
                x=exposure[at] + 1, y=values[at], mode="markers", name=words, legendgroup=words, showlegend=row == 1,
                marker={"color": colour, "size": 6, "opacity": 0.5, "symbol": symbol},
                text=[f"{shown(t)} · {n} times" for t, n in zip(result["text"].values[at], exposure[at], strict=True)],
                hovertemplate="%{text}<br>%{y:.3f}<extra></extra>", row=row, col=1,
            )  # fmt: skip
        doses = np.unique(exposure[canary])
        means = [values[canary & (exposure == d)].mean() for d in doses]
        figure.add_scatter(
            x=doses + 1, y=means, mode="lines", line={"color": plots.COLOURS[1], "width": 2}, name="mean of the canaries",
            legendgroup="mean", showlegend=row == 1, row=row, col=1,
        )  # fmt: skip
        figure.update_yaxes(title=y_title, row=row, col=1)
    ticks = [0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000]
    figure.update_xaxes(type="log", tickvals=[t + 1 for t in ticks], ticktext=[f"{t:,}" for t in ticks])
    figure.update_xaxes(title="times trained on", row=2, col=1)
    return figure.update_layout(
        template=plots.TEMPLATE,
        height=700,
        title=titled("How often must a token be seen to be copied, and to look it?", result),
    )


def repeat_probability(result: xr.Dataset) -> go.Figure:
    """Mean probability of the asked token at each greedy step, by pool, with 95% intervals over tokens."""
    pools = list(dict.fromkeys(map(str, result["pool"].values)))
    intervals = [mean_interval(result["probability"].values[result["pool"].values == p]) for p in pools]
    index = xr.Dataset(coords={"pool": pools, "new_token": result["new_token"].values})
    stacked = np.stack(intervals)
    mean, low, high = (
        xr.DataArray(stacked[:, i], dims=("pool", "new_token"), coords=index.coords) for i in range(3)
    )  # fmt: skip
    figure = plots.lines(
        mean, low, high, over="pool", x="new_token", title=titled(f"Asked to repeat a token: the prompt '{result.attrs['prompt']}'", result),
        x_title="token after the prompt", y_title="probability of the asked token",
    )  # fmt: skip
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure.update_xaxes(dtick=1)


def largest_log_prob(result: xr.Dataset) -> go.Figure:
    """The largest log-prob that each token of a pool reaches anywhere, one dot per token; what stood before it on hover."""
    figure = go.Figure()
    pools = result["pool"].values
    for i, pool in enumerate(dict.fromkeys(map(str, pools))):
        at = np.flatnonzero(pools == pool)
        part = result.isel(token=at)
        best = part["largest"].sel(measure="log_prob").values
        figure.add_box(
            y=best, x=[pool] * len(at), name=pool, boxpoints="all", jitter=0.6, pointpos=0, hoveron="points",
            fillcolor="rgba(0,0,0,0)", line={"color": "rgba(0,0,0,0)"}, showlegend=False,
            marker={"color": plots.COLOURS[i % len(plots.COLOURS)], "size": 5, "opacity": 0.6},
            text=[
                f"{shown(t)} after {shown(a)}: probability {np.exp(v):.2g}"
                for t, a, v in zip(part["text"].values, part["after"].sel(measure="log_prob").values, best, strict=True)
            ],
            hovertemplate="%{text}<br>%{y:.2f} nats<extra></extra>",
        )  # fmt: skip
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=titled("The most that a token is ever expected", result),
        yaxis_title=f"largest log-prob over {result.attrs['positions']:,} positions (nats)",
    )


def is_census(result: xr.Dataset) -> bool:
    """Is it the summary of a census?"""
    return has(result, "count", "kind", "reachable")


def is_detection(result: xr.Dataset) -> bool:
    """Does it hold indicators and calls of a vocabulary?"""
    return has(result, "value", "indicator", "token") and "called" in result and "kind" in result.coords


def is_verified(result: xr.Dataset) -> bool:
    """Was any token asked to be repeated?"""
    return is_detection(result) and "max_probability" in result and bool(result["max_probability"].notnull().any())


def is_known(result: xr.Dataset) -> bool:
    """Is the truth beside the indicators?"""
    return is_detection(result) and has(result, "truth", "detector", "subset") and bool(result["truth"].notnull().any())


def _groups(result: xr.Dataset) -> np.ndarray:
    """What each token is drawn as: its kind, or that no text can produce it."""
    impossible = result["reachable"].values == "impossible"
    return np.where(impossible, "no text can produce it", result["kind"].values.astype(str))


def _hover(result: xr.Dataset) -> np.ndarray:
    name = result.attrs["indicator"]
    lines = [f"<b>{shown(t)}</b> · {i}" for t, i in zip(result["text"].values, result["token"].values, strict=True)]
    kinds = [f"{k}, {r}" for k, r in zip(result["kind"].values, result["reachable"].values, strict=True)]
    numbers = [
        f"{name} {v:.4f}, p {p:.1e}<br>largest probability {m:.1e}"
        for v, p, m in zip(
            result["value"].sel(indicator=name).values, result["p_value"].sel(indicator=name).values,
            result["max_probability"].values, strict=True,
        )
    ]  # fmt: skip
    seen = (
        [f"<br>trained on {n} times" for n in result["exposure"].values]
        if "exposure" in result.coords
        else [""] * len(lines)
    )
    return np.array(
        [f"{a}<br>{b}<br>{c}{d}" for a, b, c, d in zip(lines, kinds, numbers, seen, strict=True)], dtype=object
    )
