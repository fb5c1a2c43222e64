"""Tables of the copying circuit: which heads it is made of, and what interventions cost."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from interp.results import provenance
from interp.statistics import mean_interval
from interp.tables.common import table_of, title

_MOST = 8  # heads in one list
READ = {"denoising": "other", "noising": "own"}  # the target that each direction is read by: the ordinary token
_READ = (
    "Denoising runs on the pool and puts the ordinary sequence's values in, noising the other way round; both read the "
    "ordinary sequence's token."
)


def heads(result: xr.Dataset) -> Iterator[RenderableType]:
    """Which heads are called what, on which pool, and how well their weights copy and match."""
    model = provenance(result)["model"]["name"]
    yield title(
        f"Heads of '{model}', called against sequences without a repeat (score, null's mean, most attended key)"
    )
    table = table_of("pool", "kind", "heads", words=("kind", "heads"))
    for pool in result["pool"].values:
        for kind in result["kind"].values:
            at = result.sel(pool=pool, kind=kind)
            if not np.isfinite(float(at["line"])):
                words = "no null: the sequences hold too few distinct tokens for one without a repeat"
            else:
                words = _called(at.sel(stripe=kind)) or "none"
            table.add_row(escape(str(pool)), str(kind), words)
    yield table
    if bool(result["called"].sel(kind="induction").any()):
        yield from _weights(result)
    else:
        yield Text("This model has no induction head by this rule.")
    context = result["in_context_learning"].sel(span="twenty").values
    if np.isfinite(context[0]):
        yield Text(
            f"In-context learning on text: loss at token 500 less loss at token 50 (twenty tokens each) {context[0]:+.2f} nats "
            f"({context[1]:+.2f} .. {context[2]:+.2f})."
        )


def ablation(result: xr.Dataset) -> Iterator[RenderableType]:
    """What heads are worth, alone and together, against as many others."""
    where = provenance(result)
    kind = where["parameters"].get("kind", "mean")
    yield title(f"Nats lost on '{where['model']['name']}' with heads ablated ({kind}), 95% interval over sequences")
    kinds = [k for k in map(str, result["kind"].values) if bool(result["called"].sel(kind=k).any())]
    names = {k: [n for n in map(str, result["ranked"].sel(kind=k).values) if n] for k in kinds}
    table = table_of(
        "pool", "gain of the repeat", *(f"{k} [{len(names[k])}]" for k in kinds), "as many others", "worst alone"
    )
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        cells = [_interval(at["gain"])] + [_interval(at["curve"].sel(kind=k, ablated=len(names[k]))) for k in kinds]
        random = at["random"].mean("draw", skipna=False)
        most = int(np.flatnonzero(np.isfinite(random.mean("batch").values)).max())
        alone = at["lost"].mean("batch")
        worst = alone.argmax(["layer", "head"])
        cells += [
            f"{_interval(random.sel(ablated=most))} [{most}]",
            f"L{worst['layer'].item()}H{worst['head'].item()} {float(alone.max()):.2f}",
        ]
        table.add_row(escape(str(pool)), *cells)
    yield table
    for kind in kinds:
        yield Text(f"Called {kind}, [{len(names[kind])}] ablated together: {', '.join(names[kind])}.")
    if "induction" not in kinds:
        yield Text("No head is called an induction head.")
    yield Text(
        "As many others: the mean over draws of [n] heads called nothing. Gain of the repeat: its log-prob less the first copy's."
    )


def patched(result: xr.Dataset) -> Iterator[RenderableType]:
    """The heads whose exchange moves the log-prob most."""
    yield title(
        f"One head's {result.attrs['head']} exchanged between each pool and '{result.attrs['among']}' tokens (nats moved)"
    )
    table = table_of(
        "pool",
        "direction",
        "without",
        "heads that move it most",
        words=("direction", "heads that move it most"),
    )
    for pool in result["pool"].values:
        for direction, target in READ.items():
            at = {"pool": pool, "direction": direction, "target": target}
            clean = result["clean_head"].sel(at)
            moved = (result["by_head"].sel(at) - clean).mean("batch")
            table.add_row(escape(str(pool)), direction, f"{float(clean.mean()):.2f}", _strongest(moved))
    yield table
    yield Text(_READ)


def paths(result: xr.Dataset) -> Iterator[RenderableType]:
    """What each path from a previous-token head to the induction heads carries, and its controls."""
    yield title(
        "Change of the right token's log-prob (nats) when a path carries the paired sequence's values, to all induction heads"
    )
    table = table_of(
        "pool",
        "direction",
        "sender",
        "through q",
        "through k",
        "through v",
        "to the logits",
        words=("direction", "sender"),
    )
    for pool in result["pool"].values:
        for direction, target in READ.items():
            for sender, role in zip(result["sender"].values, result["role"].values, strict=True):
                at = result.sel(pool=pool, direction=direction, target=target)
                cells = [_interval(at["effect"].sel(sender=sender, receiver="all", via=v)) for v in ("q", "k", "v")]
                cells.append(_interval(at["direct"].sel(writer=sender)))
                table.add_row(escape(str(pool)), direction, f"{sender} ({role})", *cells)
    yield table
    yield Text(_READ)


def attributed(result: xr.Dataset) -> Iterator[RenderableType]:
    """Do gradients find what ablation finds?"""
    yield title("Gradients against measured ablation, over all heads")
    fits = list(map(str, result["fit"].values))
    table = table_of(
        "pool", "estimate", "rank correlation", "correlation", f"share of the {fits[2]} found", "largest error (nats)"
    )
    for pool in result["pool"].values:
        for estimate in ("gradient", "integrated"):
            row = result["agreement"].sel(pool=pool, estimate=estimate).values
            table.add_row(escape(str(pool)), estimate, *(f"{v:.2f}" for v in row))
    yield table
    mean = result["lost"].sel(estimate="exact").mean("batch")
    for pool in result["pool"].values:
        yield Text(f"{pool}: measured, {_strongest(mean.sel(pool=pool), 4)}.")


def lens(result: xr.Dataset) -> Iterator[RenderableType]:
    """Log-prob and rank of the right token after each layer, where context can tell it."""
    yield title("The repeated token, read from the residual stream (mean log-prob in nats, mean rank)")
    depths = list(map(str, result["after"].values))
    shown = (
        depths
        if len(depths) <= _MOST
        else [depths[i] for i in np.linspace(0, len(depths) - 1, _MOST).round().astype(int)]
    )
    table = table_of("pool", *shown)
    inner = (result["half"] >= 2) & (result["offset"] > 0) & result["tested"]
    for pool in result["pool"].values:
        at = result.where(inner).sel(pool=pool)
        means = {n: at[n].mean(["batch", "position"], skipna=True) for n in ("log_prob_after", "rank_after")}
        cells = [
            f"{float(means['log_prob_after'].sel(after=d)):.2f} ({float(means['rank_after'].sel(after=d)):.0f})"
            for d in shown
        ]
        table.add_row(escape(str(pool)), *cells)
    yield table


def attribution(result: xr.Dataset) -> Iterator[RenderableType]:
    """What writes the right token's logit."""
    yield title("Direct logit attribution of the repeated token (logit less the vocabulary's mean)")
    table = table_of("pool", "in all", "components", "heads", words=("components", "heads"))
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        parts = at["by_component"].mean("batch")
        order = np.argsort(-np.abs(parts.values))[:3]
        words = ", ".join(f"{parts['component'].values[i]} {float(parts[i]):+.1f}" for i in order)
        table.add_row(escape(str(pool)), _interval(at["total"]), words, _strongest(at["by_head"].mean("batch"), 3))
    yield table


def patterns(result: xr.Dataset) -> Iterator[RenderableType]:
    """Where each head looks most, at the last token."""
    yield title("The key that the last token but one attends to most")
    table = table_of("pool", *map(str, result["component"].values))
    for pool in result["pool"].values:
        texts = result["token_text"].sel(pool=pool).values
        row = result["pattern"].sel(pool=pool).isel(query=-2)
        cells = [
            f"{str(texts[int(np.argmax(r.values))])!r} {float(r.max()):.2f}"
            for r in (row.sel(component=c) for c in result["component"].values)
        ]
        table.add_row(escape(str(pool)), *map(escape, cells))
    yield table


def _weights(result: xr.Dataset) -> Iterator[RenderableType]:
    """How well the weights of the heads called induction copy and match."""
    yield title("What the weights say (folded; rows after the first MLP): the heads called induction, and summed")
    table = table_of(
        "pool", "head", "copying (eigenvalues)", "top-1", "top-5", "matching", "through", words=("head", "through")
    )
    matching = result["matching"].sel(rows="effective").drop_sel(through="embedding")
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        for layer, head in np.argwhere(result["called"].sel(kind="induction").any("pool").values):
            copied = at["copying"].sel(rows="effective", layer=layer, head=head)
            best, through = "-", "-"
            if matching.sizes["through"]:
                asked = matching.sel(pool=pool, layer=layer, head=head)
                if bool(asked.notnull().any()):
                    k = int(np.nanargmax(asked.values))
                    best, through = f"{float(asked[k]):.0%}", str(asked["through"].values[k])
            table.add_row(escape(str(pool)), f"L{layer}H{head}", *_copied(copied), best, through)
        if bool(at["copying_together"].notnull().any()):
            table.add_row(escape(str(pool)), "together", *_copied(at["copying_together"].sel(rows="effective")), "", "")
    yield table
    yield Text(
        f"Matching: share of tokens whose best key, {result.attrs['distance']} back, is the token after their own."
    )


def _called(at: xr.Dataset) -> str:
    """The heads that are called, the largest score first."""
    score, null, looked = (at[n].mean("batch", skipna=True) for n in ("score", "null", "looked"))
    found = sorted(np.argwhere(at["called"].values).tolist(), key=lambda lh: -float(score[lh[0], lh[1]]))
    words = [
        f"L{la}H{h} {float(score[la, h]):.2f} ({float(null[la, h]):.2f}, {float(looked[la, h]):.0%})"
        for la, h in found[:_MOST]
    ]
    return ", ".join(words) + (f" and {len(found) - _MOST} more" if len(found) > _MOST else "")


def _copied(values: xr.DataArray) -> tuple[str, str, str]:
    eigenvalues, top1, top5 = (float(values.sel(measure=m)) for m in ("eigenvalues", "top1", "top5"))
    return f"{eigenvalues:.2f}", f"{top1:.0%}", f"{top5:.0%}"


def _strongest(values: xr.DataArray, most: int = 3) -> str:
    """The heads with the largest values in modulus, with sign."""
    flat = values.transpose("layer", "head")
    order = np.argsort(-np.abs(flat.values), axis=None)[:most]
    places = [np.unravel_index(i, flat.shape) for i in order]
    return ", ".join(f"L{la}H{h} {float(flat[la, h]):+.2f}" for la, h in places)


def _interval(values: xr.DataArray) -> str:
    mean, low, high = (float(v) for v in mean_interval(values.values))
    if not np.isfinite(mean):
        return "-"
    return f"{mean:.2f} ({low:.2f} .. {high:.2f})" if np.isfinite(low) else f"{mean:.2f}"
