"""Figures of the copying circuit: heads, their weights, and what interventions on them do."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from interp import plots
from interp.figures.common import has, shown, titled
from interp.statistics import mean_interval

_KIND = {
    "induction": "induction heads", "previous": "previous-token heads", "duplicate": "duplicate-token heads",
    "current": "current-token heads",
}  # fmt: skip
_TICKS = 64  # token labels along the panels of one row of the attention view
_ABREAST = 4  # its panels in one row
_WIDE = 2  # path diagrams in one row
_VIA = {"q": plots.COLOURS[4], "k": plots.COLOURS[0], "v": plots.COLOURS[2], "to the logits": plots.COLOURS[1]}


def matching_and_copying(result: xr.Dataset) -> go.Figure:
    """Prefix matching (where each head looks) against copying (what its OV circuit does), heads that are called filled."""
    figure = go.Figure()
    score = result["score"].sel(stripe="induction").mean("batch")
    copied = result["copying"].sel(measure="eigenvalues", rows="effective")
    for i, pool in enumerate(result["pool"].values):
        colour = plots.COLOURS[i % len(plots.COLOURS)]
        called = result["called"].sel(pool=pool, kind="induction").values.ravel()
        names = [f"L{la}H{h}" for la in score["layer"].values for h in score["head"].values]
        x, y = score.sel(pool=pool).values.ravel(), copied.sel(pool=pool).transpose("layer", "head").values.ravel()
        figure.add_scatter(
            x=x, y=y, mode="markers+text", name=plots.escaped(pool), textposition="top center", textfont={"size": 11},
            text=[n if c else "" for n, c in zip(names, called, strict=True)],
            marker={
                "size": 10, "color": colour, "line": {"color": colour, "width": 1.5},
                "symbol": [f"{('circle', 'square', 'diamond', 'cross')[i % 4]}{'' if c else '-open'}" for c in called],
            },
            customdata=names, hovertemplate=f"%{{customdata}}, {plots.escaped(pool)}<br>induction %{{x:.3f}}<br>copying %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[-0.04, 1.04])
    figure.update_yaxes(range=[-1.1, 1.15])
    return figure.update_layout(
        template=plots.TEMPLATE, title=titled("Heads that match and copy; filled: called induction heads", result),
        xaxis_title="induction score (attention)", yaxis_title="copying score (OV eigenvalues)",
    )  # fmt: skip


def head_composition(result: xr.Dataset) -> go.Figure:
    """Composition of every pair of heads over the mean of Gaussian matrices; previous-token to induction heads named."""
    figure = go.Figure()
    called = result["called"].any("pool")
    names = [[f"L{la}H{h}" for h in called["head"].values] for la in called["layer"].values]
    pairs = np.array([[[[f"{a} to {b}" for b in late] for late in names] for a in early] for early in names])
    circuit = np.einsum("ab,cd->abcd", called.sel(kind="previous").values, called.sel(kind="induction").values)
    for mode in result["mode"].values:
        base = result["baseline"].sel(mode=mode)
        values = result["composition"].sel(mode=mode).values / float(base.sel(bound="mean"))
        for j, (among, words, colour, size) in enumerate(
            (
                (~circuit, "other pairs", plots.GREY, 6),
                (circuit, "previous-token to induction heads", plots.COLOURS[1], 9),
            )
        ):
            at = among & np.isfinite(values)
            figure.add_box(
                y=values[at], x=[f"{mode}-composition"] * int(at.sum()), text=pairs[at], name=words, legendgroup=words,
                showlegend=bool(mode == result["mode"].values[0]), boxpoints="all", jitter=0.5, pointpos=0, hoveron="points",
                fillcolor="rgba(0,0,0,0)", line={"color": "rgba(0,0,0,0)"}, offsetgroup=str(j),
                marker={"color": colour, "size": size, "opacity": 0.75, "symbol": 2 * j},
                hovertemplate="%{text}: %{y:.2f}<extra></extra>",
            )  # fmt: skip
    low, high = (result["baseline"].sel(bound=b) / result["baseline"].sel(bound="mean") for b in ("low", "high"))
    figure.add_hrect(y0=float(low.min()), y1=float(high.max()), fillcolor=plots.COLOURS[0], opacity=0.3, line_width=0)
    figure.add_hline(
        y=1, line={"color": plots.COLOURS[0], "dash": "dot", "width": 1}, annotation_text="Gaussian matrices, middle 95%",
        annotation_position="top left", annotation_font_color=plots.COLOURS[0],
    )  # fmt: skip
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(
        template=plots.TEMPLATE, boxmode="group", title=titled("Do heads read what earlier heads write?", result),
        yaxis_title="composition / that of Gaussian matrices",
    )  # fmt: skip


def head_losses(result: xr.Dataset) -> go.Figure:
    """A layer x head heatmap of the nats that each head is worth, one panel per pool."""
    mean = result["lost"].mean("batch").expand_dims(row=[""])
    most = max(float(np.abs(mean).max()), 1e-3)
    return plots.heatmaps(
        mean, row="row", column="pool", title=titled("Nats lost when one head is ablated", result), low=-most, high=most,
        unit="nats", colours=plots.DIVERGING,
    ).update_layout(height=360)  # fmt: skip


def ablation_curve(result: xr.Dataset) -> go.Figure:
    """Nats lost with the first heads of each kind ablated together, beside as many called nothing, one panel per pool."""
    pools = result["pool"].values
    figure = make_subplots(
        1, len(pools), shared_yaxes=True, column_titles=[plots.escaped(p) for p in pools], horizontal_spacing=0.03,
        x_title="heads ablated together",
    )  # fmt: skip
    kinds = [k for k in map(str, result["kind"].values) if bool(result["called"].sel(kind=k).any())]
    for column, pool in enumerate(pools, start=1):
        at = result.sel(pool=pool)
        for i, kind in enumerate([*kinds, "random"]):
            random = kind == "random"
            curve = at["random"].mean("draw", skipna=False) if random else at["curve"].sel(kind=kind)
            mean, low, high = mean_interval(curve.transpose("batch", "ablated").values)
            mean, low, high = (np.where(np.arange(len(mean)) == 0, 0.0, v) for v in (mean, low, high))
            names = [""] * len(mean) if random else ["", *result["ranked"].sel(kind=kind).values]
            words = "as many heads called nothing" if random else _KIND[kind]
            figure.add_scatter(
                x=result["ablated"].values, y=mean, name=words, legendgroup=kind, showlegend=column == 1, mode="lines+markers",
                line={"color": plots.GREY if random else plots.COLOURS[i], "dash": "dash" if random else "solid"},
                marker={"size": 8, "symbol": i}, text=names, error_y={"array": high - mean, "arrayminus": mean - low, "width": 3},
                hovertemplate=f"%{{x}} {words}, the last %{{text}}<br>%{{y:.2f}} nats<extra></extra>", row=1, col=column,
            )  # fmt: skip
        gain = float(at["gain"].mean())
        figure.add_hline(
            y=gain, line={"color": "black", "dash": "dot", "width": 1.5}, row=1, col=column,
            annotation_text="gain of the repeat" if column == 1 else " ", annotation_position="bottom right",
            annotation_font={"color": "black", "size": 11},
        )  # fmt: skip
    figure.update_xaxes(dtick=1 if result.sizes["ablated"] <= 12 else 5)
    figure.update_yaxes(title="nats lost", col=1)
    title = titled("Ablating the heads one by one more", result)
    return figure.update_layout(template=plots.TEMPLATE, title=title, legend_y=1.1)


def patched_positions(result: xr.Dataset) -> go.Figure:
    """Nats that the last repeated token's log-prob moves when one layer's activation at one position comes from the pair."""
    moved = _moved(result["by_position"], result["clean_position"], "pair")
    most = max(float(np.abs(moved).max()), 1e-3)
    figure = plots.heatmaps(
        moved, row="pool", column="direction", x="position", low=-most, high=most, unit="nats", colours=plots.DIVERGING,
        title=titled(f"What moves the last repeated token? One position of {result.attrs['stream']} exchanged", result),
    )  # fmt: skip
    start = int(result["position"].values[result["half"].values == 2][0])
    return figure.add_vline(x=start - 0.5, line={"dash": "dot", "color": plots.GREY, "width": 1}, row="all", col="all")


def patched_heads(result: xr.Dataset) -> go.Figure:
    """Nats that the repeated tokens' mean log-prob moves when one head's activation comes from the pair."""
    moved = _moved(result["by_head"], result["clean_head"], "batch")
    most = max(float(np.abs(moved).max()), 1e-3)
    return plots.heatmaps(
        moved, row="pool", column="direction", low=-most, high=most, unit="nats", colours=plots.DIVERGING,
        title=titled(f"What moves the repeated tokens' log-prob? One head's {result.attrs['head']} exchanged", result),
    )  # fmt: skip


def path_strengths(result: xr.Dataset) -> go.Figure:
    """Senders, receivers and the logits, joined by lines as wide as the nats that the path carries (noising), by pool.

    Dotted lines gain nats. Receivers that share a key or value head (grouped queries) share its paths: one is drawn for each.
    """
    at = {"direction": "noising", "target": "own"}
    effect = result["effect"].sel(at).drop_sel(receiver="all").mean("batch")
    direct = result["direct"].sel(at).mean("batch")
    pools = result["pool"].values
    senders = list(map(str, result["sender"].values))
    receivers = list(map(str, effect["receiver"].values))
    strongest = max(float(np.nanmax(np.abs(effect))), float(np.abs(direct).max()), 1e-3)
    columns = {0.0: senders, 1.0: receivers, 2.0: ["logits"]}
    roles = dict(zip(senders, map(str, result["role"].values), strict=True))
    place = {name: (x, _height(i, len(names))) for x, names in columns.items() for i, name in enumerate(names)}
    wide = min(_WIDE, len(pools))
    figure = make_subplots(
        -(-len(pools) // wide), wide, subplot_titles=[f"{plots.escaped(p)} in the ordinary run" for p in pools],
        horizontal_spacing=0.03, vertical_spacing=0.14,
    )  # fmt: skip
    for i, pool in enumerate(pools):
        where = {"row": i // wide + 1, "col": i % wide + 1}
        edges = [
            (s, r, via, float(effect.sel(pool=pool, via=via, sender=s, receiver=r)))
            for s in senders for r in receivers for via in ("q", "k", "v")
        ]  # fmt: skip
        edges += [
            (w, "logits", "to the logits", float(direct.sel(pool=pool, writer=w))) for w in [*senders, *receivers]
        ]
        for source, target, via, nats in edges:
            width = 14 * abs(nats) / strongest
            if np.isfinite(nats) and width >= 0.35:  # thinner than that is no line
                _edge(figure, place[source], place[target], via, nats, width, f"{source} to {target}", where)
        figure.add_scatter(
            x=[p[0] for p in place.values()], y=[p[1] for p in place.values()], mode="markers+text",
            text=[f"{n}<br>{roles[n]}" if roles.get(n, "control") != "control" else n for n in place],
            textposition=["middle left" if n in senders else "bottom center" for n in place], showlegend=False, hoverinfo="text",
            hovertext=[f"{n}: {roles.get(n, 'induction' if n in receivers else 'output')}" for n in place],
            marker={
                "size": 16, "line": {"color": plots.GREY, "width": 1.5},
                "color": ["white" if roles.get(n) == "control" else plots.GREY for n in place],
            },
            **where,
        )  # fmt: skip
    for via, colour in _VIA.items():
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines",
            line={"color": colour, "width": 4},
            name=f"through {via}" if len(via) == 1 else via,
        )
    figure.update_xaxes(
        tickvals=[0, 1, 2], ticktext=["earlier heads<br>(white: controls)", "induction heads", "output"],
        range=[-0.75, 2.4], showgrid=False, zeroline=False, tickangle=0,
    )  # fmt: skip
    figure.update_yaxes(visible=False, range=[-0.25, 1.1])
    return figure.update_layout(
        template=plots.TEMPLATE, height=170 + 350 * (-(-len(pools) // wide)), legend_y=1.08, margin={"t": 130},
        title=titled(f"Which paths carry the copy? Widest line: {strongest:.1f} nats lost", result),
    )  # fmt: skip


def lens_by_layer(result: xr.Dataset) -> go.Figure:
    """Log-prob and rank of the right token, inducible positions only, read after each layer; 95% intervals."""
    figure = make_subplots(1, 2, horizontal_spacing=0.09)
    inner = (result["half"] >= 2) & (result["offset"] > 0)
    panels = (
        ("log_prob_after", "log-prob of the right token (nats)"),
        ("rank_after", "rank of the right token (0: arg-max)"),
    )
    for column, (name, words) in enumerate(panels, start=1):
        mean_of_sequence = result[name].where(inner & result["tested"]).mean("position", skipna=True)
        for i, pool in enumerate(result["pool"].values):
            mean, low, high = mean_interval(mean_of_sequence.sel(pool=pool).transpose("batch", "after").values)
            figure.add_scatter(
                x=result["after"].values, y=mean, name=plots.escaped(pool), legendgroup=str(pool), showlegend=column == 1,
                error_y={"array": high - mean, "arrayminus": mean - low, "width": 4}, mode="lines+markers",
                line={"color": plots.COLOURS[i % len(plots.COLOURS)], "width": 2}, marker={"size": 8, "symbol": i}, row=1, col=column,
            )  # fmt: skip
        figure.update_yaxes(title=words, row=1, col=column)
    figure.update_xaxes(type="category", title="residual stream read after")
    return figure.update_layout(
        template=plots.TEMPLATE, title=titled("When does the model know the repeated token?", result)
    )


def attribution(result: xr.Dataset) -> go.Figure:
    """Logit of the right token that each component and each head writes, by pool, with 95% intervals over sequences."""
    heads = result["by_head"].stack(head_name=("layer", "head")).transpose("pool", "batch", "head_name")
    names = [f"L{la}H{h}" for la, h in heads["head_name"].values]
    parts: tuple[tuple[str, xr.DataArray, list[str]], ...] = (
        (
            "components",
            result["by_component"].transpose("pool", "batch", "component"),
            list(map(str, result["component"].values)),
        ),
        ("heads", heads, names),
    )
    figure = make_subplots(1, 2, subplot_titles=[words for words, _, _ in parts], horizontal_spacing=0.08)
    for column, (_, values, labels) in enumerate(parts, start=1):
        kept = np.arange(len(labels))
        if len(labels) > 24:  # those that write most, in their own order
            kept = np.sort(np.argsort(-np.abs(values.mean("batch").values).max(0))[:24])
        for i, pool in enumerate(result["pool"].values):
            mean, low, high = mean_interval(values.sel(pool=pool).values[:, kept])
            figure.add_bar(
                x=[str(labels[k]) for k in kept], y=mean, name=plots.escaped(pool), legendgroup=str(pool), showlegend=column == 1,
                marker_color=plots.COLOURS[i % len(plots.COLOURS)], row=1, col=column,
                error_y={"array": high - mean, "arrayminus": mean - low, "width": 3, "color": plots.GREY},
            )  # fmt: skip
    figure.update_xaxes(type="category")
    figure.update_yaxes(title="logit of the right token, centred", col=1)
    return figure.update_layout(
        template=plots.TEMPLATE, barmode="group", legend_y=1.1, title=titled("Who writes the right token?", result),
    )  # fmt: skip


def attribution_agreement(result: xr.Dataset) -> go.Figure:
    """Each head's loss by gradients against the measured one; on the diagonal the estimate is right."""
    pools = result["pool"].values
    figure = make_subplots(
        1, len(pools), column_titles=[plots.escaped(p) for p in pools], horizontal_spacing=0.03, shared_yaxes=True
    )  # fmt: skip
    mean = result["lost"].mean("batch")
    names = [f"L{la}H{h}" for la in mean["layer"].values for h in mean["head"].values]
    for column, pool in enumerate(pools, start=1):
        exact = mean.sel(pool=pool, estimate="exact").transpose("layer", "head").values.ravel()
        ends = [float(mean.min()), float(mean.max())]  # of all pools, so that panels can be compared
        figure.add_scatter(
            x=ends, y=ends, mode="lines", line={"color": plots.GREY, "dash": "dot"}, showlegend=False, hoverinfo="skip", row=1, col=column,
        )  # fmt: skip
        for i, estimate in enumerate(("gradient", "integrated")):
            values = mean.sel(pool=pool, estimate=estimate).transpose("layer", "head").values.ravel()
            rho = float(result["agreement"].sel(pool=pool, estimate=estimate, fit="spearman"))
            figure.add_scatter(
                x=exact, y=values, mode="markers", marker={"color": plots.COLOURS[i], "size": 9, "symbol": i, "opacity": 0.8},
                name=estimate, legendgroup=estimate, showlegend=column == 1, text=names,
                hovertemplate=f"%{{text}}, {estimate} (rank correlation {rho:.2f})<br>measured %{{x:.3f}}, estimated %{{y:.3f}}<extra></extra>",
                row=1, col=column,
            )  # fmt: skip
    figure.update_xaxes(title="nats lost, measured")
    figure.update_yaxes(title="nats lost, estimated", col=1)
    return figure.update_layout(
        template=plots.TEMPLATE, legend_y=1.1, title=titled("Can gradients stand in for ablation?", result),
    )  # fmt: skip


def attention_view(result: xr.Dataset) -> go.Figure:
    """The attention of some heads in one sequence of each pool, with the tokens on the axes."""
    pools, heads = result["pool"].values, result["component"].values
    wide = min(_ABREAST, len(heads))
    bands = -(-len(heads) // wide)  # rows of panels for each pool
    titles = [
        f"{h}, {plots.escaped(p)}" for p in pools for h in [*map(str, heads), *[""] * (bands * wide - len(heads))]
    ]
    figure = make_subplots(
        bands * len(pools), wide, subplot_titles=[t if not t.startswith(",") else "" for t in titles],
        horizontal_spacing=0.16 / max(2, wide), vertical_spacing=0.22 / (bands * len(pools)),
    )  # fmt: skip
    places = result["query"].values
    start = int(places[result["half"].values == 2][0])
    step = -(-len(places) * wide // _TICKS)
    for i, pool in enumerate(pools):
        texts = [shown(t, 10) for t in result["token_text"].sel(pool=pool).values]
        hover = [[f"{q} attends to {k} (positions {a}, {b})" for b, k in enumerate(texts)] for a, q in enumerate(texts)]
        for j, head in enumerate(heads):
            at = {"row": i * bands + j // wide + 1, "col": j % wide + 1}
            figure.add_heatmap(
                z=result["pattern"].sel(pool=pool, component=head).values, x=places, y=places, text=hover, coloraxis="coloraxis",
                hovertemplate="%{text}<br>%{z:.3f}<extra></extra>", **at,
            )  # fmt: skip
            ticks = {"tickvals": places[::step], "ticktext": texts[::step], "tickfont": {"size": 9}, "showgrid": False}
            figure.update_xaxes(tickangle=-90, **ticks, **at)
            first = {} if j % wide == 0 else {"showticklabels": False}
            figure.update_yaxes(autorange="reversed", **(ticks | first), **at)
            for line in (figure.add_vline, figure.add_hline):
                line(start - 0.5, line={"dash": "dot", "color": plots.GREY, "width": 1}, **at)
    return figure.update_layout(
        template=plots.TEMPLATE, title=titled("What each head looks at (rows: queries, columns: keys, dotted: the repeat begins)", result),
        coloraxis={"colorscale": "Viridis", "cmin": 0, "cmax": 1, "colorbar": {"title": "attention", "thickness": 14}},
        height=170 + 380 * len(pools) * bands, margin={"l": 130, "b": 120},
    )  # fmt: skip


def is_heads(result: xr.Dataset) -> bool:
    """Does it hold the scores and the circuits of heads?"""
    return has(result, "score", "pool", "stripe", "batch") and has(result, "copying", "pool", "measure", "rows")


def is_ablated(result: xr.Dataset) -> bool:
    """Does it hold the losses of ablated heads, alone and together?"""
    return has(result, "lost", "pool", "layer", "head", "batch") and has(result, "curve", "pool", "kind", "ablated")


def is_patched(result: xr.Dataset) -> bool:
    """Does it hold patched activations by position and by head?"""
    return has(result, "by_position", "pool", "direction", "target", "layer") and "stream" in result.attrs


def _moved(patched: xr.DataArray, clean: xr.DataArray, over: str) -> xr.DataArray:
    """What denoising does for the token of the ordinary pair, and noising against the ordinary run's own."""
    change = (patched - clean).mean(over)
    parts = [change.sel(direction="denoising", target="other"), change.sel(direction="noising", target="own")]
    names = ["denoising: towards the ordinary token", "noising: away from the ordinary token"]
    return xr.concat(
        [p.drop_vars(["direction", "target"]) for p in parts], xr.DataArray(names, dims="direction", name="direction")
    )


def _height(i: int, count: int) -> float:
    return 0.5 if count == 1 else 1 - i / (count - 1)


def _edge(
    figure: go.Figure, start: tuple[float, float], end: tuple[float, float], via: str, nats: float, width: float, words: str, where: dict[str, int]
) -> None:  # fmt: skip
    """A line, bowed a little so that those of different ways between the same ends do not hide each other."""
    bow = {"q": 0.06, "k": 0.0, "v": -0.06, "to the logits": -0.1}[via] * (end[0] - start[0])
    t = np.linspace(0, 1, 15)
    figure.add_scatter(
        x=start[0] + t * (end[0] - start[0]), y=start[1] + t * (end[1] - start[1]) + 4 * bow * t * (1 - t), mode="lines",
        line={"color": _VIA[via], "width": max(width, 0.6), "dash": "solid" if nats < 0 else "dot"}, opacity=0.8, showlegend=False,
        text=[f"{words}, {via}: {nats:+.2f} nats"] * 15, hoverinfo="text", **where,
    )  # fmt: skip
