"""What does a result say, in a table and in plain words?"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import xarray as xr
from rich import box
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from interp.pools import ORDINARY_FROM, UNDERTRAINED_TO
from interp.results import provenance
from interp.statistics import mean_interval


def story(result: xr.Dataset) -> Iterator[RenderableType]:
    """Tables and sentences for whatever this result holds."""
    if {"summary", "log_prob"} <= set(result.data_vars) and "definition" in result.dims:
        yield from _repeated(result)
    elif "checkpoint" in result.dims and "second_half" in result:
        yield from _curve(result)
    elif "score" in result and "stripe" in result["score"].dims:
        yield from _stripes(result)
    elif "count" in result and "reachable" in result["count"].dims:
        yield from _census(result)
    elif {"value", "called", "null_centre"} <= set(result.data_vars):
        yield from _undertrained(result)
    elif "correlation" in result and "response" in result["correlation"].dims:
        yield from _correlations(result)
    elif "said" in result and "correct" in result:
        yield from _prompted(result)
    elif "largest" in result and "after" in result:
        yield from _largest(result)
    else:
        yield from _means(result)


def _table(first: str, *others: str) -> Table:
    """An open table, the first column words and the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in others:
        table.add_column(column, justify="right")
    return table


def _title(text: str) -> Text:
    """A line of its own: as a table's title it would be wrapped to the table's width."""
    return Text(text, style="bold")


def _repeated(result: xr.Dataset) -> Iterator[RenderableType]:
    where = provenance(result)
    sequences = where["sequences"]
    model = where["model"]["name"]
    yield _title(f"Mean log-prob of the right token on '{model}' (nats; 0 is certain)")
    table = _table("tokens", "first half", "second half, 95% interval", "right")
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


def _stripes(result: xr.Dataset) -> Iterator[RenderableType]:
    mean = result["score"].mean("batch", skipna=True)
    stripes = list(map(str, result["stripe"].values))
    yield _title("The head that attends most to each kind of key, over the inducible queries")
    table = _table("pool", *stripes)
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


def _curve(result: xr.Dataset) -> Iterator[RenderableType]:
    yield _title("Training: mean log-prob of the second half (nats) and the best induction score")
    table = _table("step", "ordinary", "unexposed", "induction", "held-out loss")
    steps = result["checkpoint"].values
    for i in sorted({round(x) for x in np.linspace(0, len(steps) - 1, 12)}):
        at = result.isel(checkpoint=i)
        halves = [f"{at['second_half'].sel(pool=p).item():.2f}" for p in ("ordinary", "unexposed")]
        best = at["score"].sel(pool="ordinary", stripe="induction").max().item()
        table.add_row(str(steps[i]), *halves, f"{best:.2f}", f"{at['heldout_loss'].item():.2f}")
    yield table


def _census(result: xr.Dataset) -> Iterator[RenderableType]:
    where = provenance(result)
    name = (where.get("model") or {}).get("name") or where["tokenizer"]["name"]
    answers = list(map(str, result["reachable"].values))
    yield _title(
        f"The {where['rows']:,} tokens of '{name}' ({where['tokenizer']['scheme']}): can any text produce them?"
    )
    for dimension, variable in (("kind", "count"), ("category", "published")):
        table = _table("kind" if dimension == "kind" else "published category", *answers)
        for entry in result[dimension].values:
            counts = [int(result[variable].sel({dimension: entry, "reachable": a})) for a in answers]
            if any(counts):
                table.add_row(escape(str(entry)), *(f"{c:,}" if c else "-" for c in counts))
        yield table
    beyond = where["tokenizer"].get("beyond_the_embedding", 0)
    if beyond:
        yield Text(f"{beyond:,} entries of the tokenizer have no embedding row: this model cannot be fed them.")
    wrong = sum(
        int(result["published"].sel(category=c, reachable="reachable"))
        for c in map(str, result["category"].values) if c.startswith(("UNREACHABLE", "UNDECODEABLE"))
    )  # fmt: skip
    yield Text(
        "reachable: a witness text encodes to it; impossible: proved. "
        + (f"{wrong:,} tokens that fail decode-then-encode alone can be reached inside a longer text." if wrong else "")
    )


def _undertrained(result: xr.Dataset) -> Iterator[RenderableType]:
    shown = result.attrs["indicator"]
    unused = json.loads(result.attrs["reference"])
    model = provenance(result)["model"]["name"]
    called = result["called"].sel(indicator=shown)
    yield _title(f"Under-trained tokens of '{model}' by {shown}, nominal FDR {result.attrs['fdr']:g}")
    asked = "max_probability" in result
    table = _table("tokens", "all", "called", *(["asked", "not repeated", "called and not repeated"] if asked else []))
    impossible = result["reachable"] == "impossible"
    groups = {str(k): (result["kind"] == k) & ~impossible for k in np.unique(result["kind"].values)}
    groups["no text can produce"] = impossible
    for name, at in groups.items():
        if bool(at.any()):
            counts = [at.sum(), (at & called).sum()]
            if asked:
                score = result["max_probability"]
                failed = score < result.attrs["threshold"]
                counts += [(at & score.notnull()).sum(), (at & failed).sum(), (at & failed & called).sum()]
            table.add_row(escape(name), *(f"{int(c):,}" for c in counts))
    yield table
    source = {
        "census": "found by the census",
        "asked": "as asked for",
        "fallback": "a guess, no token is provably unused",
    }
    yield Text(f"Compared with {len(unused['ids'])} unused tokens, {source[unused['source']]} ({unused['why']}).")
    mirrored = int(result["mirrored"].sel(indicator=shown))
    yield Text(f"As far on the other side of the null: {mirrored} tokens (near 0 where the null is symmetric).")
    if asked:
        left_out = result.attrs.get("too_long", "").split()
        prompts = [str(p) for p in result["prompt"].values if p != "article" and p not in left_out]
        steps = result.sizes["new_token"]
        words = f"{', '.join(prompts) or 'no prompt'}, {steps} steps each (Land and Bartolo 2024)"
        yield Text(f"Not repeated: probability below {result.attrs['threshold']} over the prompts {words}.")
        if left_out:
            yield Text(f"Longer than this model's context and left out: {', '.join(left_out)}.")
    if "truth" in result:
        yield from _truth(result)
    yield from _strongest(result, shown)


def _truth(result: xr.Dataset) -> Iterator[RenderableType]:
    yield _title(
        f"Against the truth: multi-character tokens exposed at most {UNDERTRAINED_TO} times, or {ORDINARY_FROM} and more"
    )
    table = _table("detector", "AUROC", "(all)", "AP", "precision", "recall", "rho")
    for detector in result["detector"].values:
        at = result["truth"].sel(detector=detector, bound="value")
        several = at.sel(subset="multi-character")
        cells = [_number(several.sel(measure="auroc")), _number(at.sel(subset="all", measure="auroc"))]
        cells += [_number(several.sel(measure=m)) for m in ("average_precision", "precision", "recall", "spearman")]
        table.add_row(escape(str(detector)), *cells)
    yield table
    yield Text(
        "AP: average precision; precision and recall: of the calls; rho: Spearman's with exposure; intervals: in the result."
    )


def _number(at: xr.DataArray) -> str:
    return f"{at.item():.2f}" if np.isfinite(at.item()) else "-"


def _interval(at: xr.DataArray) -> str:
    value, low, high = (at.sel(bound=b).item() for b in ("value", "low", "high"))
    if not np.isfinite(value):
        return "-"
    return f"{value:.2f} ({low:.2f}..{high:.2f})" if np.isfinite(low) else f"{value:.2f}"


def _strongest(result: xr.Dataset, shown: str, most: int = 8) -> Iterator[RenderableType]:
    """The called text tokens that any text can produce, those lowest in the indicator first."""
    at = (result["kind"] == "text") & (result["reachable"] == "reachable") & result["called"].sel(indicator=shown)
    ids = np.flatnonzero(at.values)
    order = ids[np.argsort(result["value"].sel(indicator=shown).values[ids], kind="stable")][:most]
    if not len(order):
        yield Text("No text token that can be reached is called.")
        return
    yield _title("The strongest of them that text can produce")
    asked, known = "max_probability" in result, "exposure" in result.coords
    table = _table("token", "id", shown, *(["probability"] if asked else []), *(["times trained on"] if known else []))
    for i in order:
        token = result.isel(token=i)
        cells = [str(int(token["token"])), f"{float(token['value'].sel(indicator=shown)):.4f}"]
        cells += [f"{float(token['max_probability']):.1e}"] if asked else []
        cells += [str(int(token["exposure"]))] if known else []
        table.add_row(escape(repr(str(token["text"].values))), *cells)
    yield table


def _correlations(result: xr.Dataset) -> Iterator[RenderableType]:
    yield _title("Spearman correlation with the times a token was trained on (95% interval over tokens)")
    groups = list(map(str, result["group"].values))
    table = _table("response", *groups)
    for response in result["response"].values:
        table.add_row(
            escape(str(response)), *(_interval(result["correlation"].sel(response=response, group=g)) for g in groups)
        )
    yield table
    exposure, canary = result["exposure"].values, result["canary"].values.astype(bool)
    yield _title("Copying of canaries: mean over the tokens of a dose")
    doses = _table("dose", "log-prob (nats)", "rank")
    for dose in np.unique(exposure[canary]):
        at = canary & (exposure == dose)
        doses.add_row(
            f"{dose:,}", f"{result['log_prob'].values[at].mean():.2f}", f"{result['rank'].values[at].mean():.0f}"
        )
    yield doses


def _prompted(result: xr.Dataset) -> Iterator[RenderableType]:
    yield _title(f"Asked to repeat a token (prompt '{result.attrs['prompt']}', greedy): is it the first said?")
    sampled = "sampled_correct" in result
    table = _table("pool", "tokens", "right", "probability", *(["sampled right"] if sampled else []), "for example")
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


def _largest(result: xr.Dataset) -> Iterator[RenderableType]:
    yield _title(f"The most a token reaches over {result.attrs['positions']:,} positions ({result.attrs['source']})")
    measures = ("logit", "centred_logit", "log_prob", "probability")
    table = _table("pool", "logit", "centred", "log-prob", "probability", "which, after what")
    pools = result["pool"].values
    for pool in dict.fromkeys(map(str, pools)):
        part = result.isel(token=np.flatnonzero(pools == pool))
        best = int(np.argmax(part["largest"].sel(measure="log_prob").values))
        words = f"{str(part['text'].values[best])!r} after {str(part['after'].sel(measure='log_prob').values[best])!r}"
        cells = [f"{float(part['largest'].sel(measure=m).max()):.3g}" for m in measures]
        table.add_row(escape(pool), *cells, escape(words))
    yield table
    yield Text("A logit is no log-probability: only log-prob (nats) and probability say how likely.")


def _means(result: xr.Dataset) -> Iterator[RenderableType]:
    for name, values in result.data_vars.items():
        if values.dtype.kind not in "fiub":
            continue
        yield _title(f"{name}: mean by pool")
        table = _table("pool", "mean")
        for pool in result["pool"].values if "pool" in values.dims else ["all"]:
            part = values.sel(pool=pool) if "pool" in values.dims else values
            table.add_row(escape(str(pool)), f"{float(part.mean(skipna=True)):.4f}")
        yield table
