"""Tables of copying: repeated tokens, where heads look, training, prompts."""

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


def repeated(result: xr.Dataset) -> Iterator[RenderableType]:
    """How well each pool is copied, and what that means."""
    where = provenance(result)
    sequences = where["sequences"]
    model = where["model"]["name"]
    yield title(f"Mean log-prob of the right token on '{model}' (nats; 0 is certain)")
    table = table_of("tokens", "first half", "second half, 95% interval", "right")
    definitions = list(map(str, result["definition"].values))
    among = sequences.get("among", "ordinary")
    shown = {"inducible": "blocks of {pool}", "single": f"one {{pool}} among {among}"}
    redrawn = {pool for pool, facts in where["pools"].items() if facts.get("replacement")}
    if sequences["protocol"] == "article":
        shown = {"article": "blocks of {pool} (the article's halves)"} | shown
    for definition, words in shown.items():
        for pool in result["pool"].values:
            if definition in definitions:
                at = result["summary"].sel(pool=pool, definition=definition)
                star = "*" if pool in redrawn and definition != "single" else ""
                table.add_row(escape(words.format(pool=pool) + star), *_row(at))
    yield table
    if redrawn:
        yield Text(
            "* drawn with replacement, as asked or because the pool is smaller than the block: a token may return within the "
            "block, and what follows it is then ambiguous even to a perfect copier."
        )
    yield Text(_sentence(result))
    yield Text(
        f"{sequences['batch']} sequence(s) per pool, block of {sequences['length']} x {sequences['copies']}, "
        f"{'without BOS, ' if sequences['bos'] is None else ''}seed {sequences['seed']}, "
        f"weights {where['model'].get('weights', 'raw')}. "
        "Averaged over the tokens that context can tell (offset > 0)."
    )


def _row(at: xr.DataArray) -> tuple[str, str, str]:
    first = at.sel(measure="log_prob", part="first", bound="mean").item()
    mean, low, high = (at.sel(measure="log_prob", part="second", bound=b).item() for b in ("mean", "low", "high"))
    right = at.sel(measure="correct", part="second", bound="mean").item()
    interval = f" ({low:.2f} .. {high:.2f})" if np.isfinite(low) else " (one sequence: no interval)"
    return f"{first:.2f}", f"{mean:.2f}{interval}", f"{right:.0%}"


def _sentence(result: xr.Dataset) -> str:
    """Which pools are copied, and which are not."""
    summary = result["summary"].sel(definition="inducible", part="second", bound="mean")
    right = {str(pool): summary.sel(pool=pool, measure="correct").item() for pool in result["pool"].values}
    copied = {pool: share for pool, share in right.items() if share >= 0.9}
    failed = {pool: share for pool, share in right.items() if share <= 0.1}
    between = {pool: share for pool, share in right.items() if 0.1 < share < 0.9}
    said = []
    if copied:
        said.append(f"{_names(copied)} copied almost perfectly from the first half")
    if between:
        said.append(f"{_names(between)} copied in part")
    if failed:
        said.append(f"{_names(failed)} not copied, although each stood there before")
    text = "; ".join(said)
    return text[0].upper() + text[1:] + "."


def _names(pools: dict[str, float]) -> str:
    names = [f"{name} tokens ({right:.0%} right)" for name, right in pools.items()]
    return (", ".join(names[:-1]) + " and " if len(names) > 1 else "") + names[-1] + " are"


def stripes(result: xr.Dataset) -> Iterator[RenderableType]:
    """The head that attends most to each kind of key."""
    mean = result["score"].mean("batch", skipna=True)
    stripes = list(map(str, result["stripe"].values))
    yield title("The head that attends most to each kind of key, over the inducible queries")
    table = table_of("pool", *stripes)
    for pool in result["pool"].values:
        cells = []
        for stripe in result["stripe"].values:
            scores = mean.sel(pool=pool, stripe=stripe)
            if not np.isfinite(scores).any():
                cells.append("no BOS")
                continue
            best = scores.argmax(["layer", "head"])
            cells.append(f"L{best['layer'].item()}H{best['head'].item()} {scores.max().item():.2f}")
        table.add_row(escape(str(pool)), *cells)
    yield table


def curve(result: xr.Dataset) -> Iterator[RenderableType]:
    """How copying appeared in training."""
    yield title("Training: mean log-prob of the second half (nats) and the best induction score")
    table = table_of("step", "ordinary", "unexposed", "induction", "held-out loss")
    steps = result["checkpoint"].values
    for i in sorted({round(x) for x in np.linspace(0, len(steps) - 1, 12)}):
        at = result.isel(checkpoint=i)
        halves = [f"{at['second_half'].sel(pool=p).item():.2f}" for p in ("ordinary", "unexposed")]
        best = at["score"].sel(pool="ordinary", stripe="induction").max().item()
        table.add_row(str(steps[i]), *halves, f"{best:.2f}", f"{at['heldout_loss'].item():.2f}")
    yield table


def prompted(result: xr.Dataset) -> Iterator[RenderableType]:
    """How often a token was repeated when it was asked for."""
    yield title(f"Asked to repeat a token (prompt '{result.attrs['prompt']}', greedy): is it the first said?")
    sampled = "sampled_correct" in result
    table = table_of("pool", "tokens", "right", "probability", *(["sampled right"] if sampled else []), "for example")
    pools = result["pool"].values
    for pool in dict.fromkeys(map(str, pools)):
        part = result.isel(token=np.flatnonzero(pools == pool))
        mean, low, high = mean_interval(part["probability"].isel(new_token=0).values)
        example = f"{str(part['text'].values[0])!r} -> {str(part['said'].values[0])[:12]!r}"
        cells = [
            f"{part.sizes['token']}",
            f"{float(part['correct'].mean()):.0%}",
            f"{mean:.2f} ({low:.2f}..{high:.2f})",
        ]
        cells += [f"{float(part['sampled_correct'].mean()):.0%}"] if sampled else []
        table.add_row(escape(pool), *cells, escape(example))
    yield table
    yield Text("probability: of the asked token, right after the prompt, with a 95% interval over tokens.")
    if sampled:
        yield Text(
            "Sampling forbids repeated pairs of tokens, right answers among them: compare with healthy tokens, not with 100%."
        )
