"""Tables of the vocabulary: the census, under-trained tokens, doses, how likely a token gets."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import xarray as xr
from rich.console import RenderableType
from rich.markup import escape
from rich.text import Text

from interp.pools import ORDINARY_FROM, UNDERTRAINED_TO
from interp.results import provenance
from interp.tables.common import interval, number, table_of, title


def census(result: xr.Dataset) -> Iterator[RenderableType]:
    """How many tokens of each kind a text can produce."""
    where = provenance(result)
    name = (where.get("model") or {}).get("name") or where["tokenizer"]["name"]
    answers = list(map(str, result["reachable"].values))
    yield title(
        f"The {where['rows']:,} tokens of '{name}' ({where['tokenizer']['scheme']}): can any text produce them?"
    )
    for dimension, variable in (("kind", "count"), ("category", "published")):
        table = table_of("kind" if dimension == "kind" else "published category", *answers)
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


def undertrained(result: xr.Dataset) -> Iterator[RenderableType]:
    """How many tokens are called, which, and how that compares with the truth."""
    shown = result.attrs["indicator"]
    unused = json.loads(result.attrs["reference"])
    model = provenance(result)["model"]["name"]
    called = result["called"].sel(indicator=shown)
    yield title(f"Under-trained tokens of '{model}' by {shown}, nominal FDR {result.attrs['fdr']:g}")
    asked = "max_probability" in result
    table = table_of(
        "tokens", "all", "called", *(["asked", "not repeated", "called and not repeated"] if asked else [])
    )
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
    yield title(
        f"Against the truth: multi-character tokens exposed at most {UNDERTRAINED_TO} times, or {ORDINARY_FROM} and more"
    )
    table = table_of("detector", "AUROC", "(all)", "AP", "precision", "recall", "rho")
    for detector in result["detector"].values:
        at = result["truth"].sel(detector=detector, bound="value")
        several = at.sel(subset="multi-character")
        cells = [number(several.sel(measure="auroc")), number(at.sel(subset="all", measure="auroc"))]
        cells += [number(several.sel(measure=m)) for m in ("average_precision", "precision", "recall", "spearman")]
        table.add_row(escape(str(detector)), *cells)
    yield table
    yield Text(
        "AP: average precision; precision and recall: of the calls; rho: Spearman's with exposure; intervals: in the result."
    )


def _strongest(result: xr.Dataset, shown: str, most: int = 8) -> Iterator[RenderableType]:
    """The called text tokens that any text can produce, those lowest in the indicator first."""
    at = (result["kind"] == "text") & (result["reachable"] == "reachable") & result["called"].sel(indicator=shown)
    ids = np.flatnonzero(at.values)
    order = ids[np.argsort(result["value"].sel(indicator=shown).values[ids], kind="stable")][:most]
    if not len(order):
        yield Text("No text token that can be reached is called.")
        return
    yield title("The strongest of them that text can produce")
    asked, known = "max_probability" in result, "exposure" in result.coords
    table = table_of(
        "token", "id", shown, *(["probability"] if asked else []), *(["times trained on"] if known else [])
    )
    for i in order:
        token = result.isel(token=i)
        cells = [str(int(token["token"])), f"{float(token['value'].sel(indicator=shown)):.4f}"]
        cells += [f"{float(token['max_probability']):.1e}"] if asked else []
        cells += [str(int(token["exposure"]))] if known else []
        table.add_row(escape(repr(str(token["text"].values))), *cells)
    yield table


def correlations(result: xr.Dataset) -> Iterator[RenderableType]:
    """How copying and the indicators follow the times a token was trained on."""
    yield title("Spearman correlation with the times a token was trained on (95% interval over tokens)")
    groups = list(map(str, result["group"].values))
    table = table_of("response", *groups)
    for response in result["response"].values:
        table.add_row(
            escape(str(response)), *(interval(result["correlation"].sel(response=response, group=g)) for g in groups)
        )
    yield table
    exposure, canary = result["exposure"].values, result["canary"].values.astype(bool)
    yield title("Copying of canaries: mean over the tokens of a dose")
    doses = table_of("dose", "log-prob (nats)", "rank")
    for dose in np.unique(exposure[canary]):
        at = canary & (exposure == dose)
        doses.add_row(
            f"{dose:,}", f"{result['log_prob'].values[at].mean():.2f}", f"{result['rank'].values[at].mean():.0f}"
        )
    yield doses


def largest(result: xr.Dataset) -> Iterator[RenderableType]:
    """The most that any token of a pool is ever expected."""
    yield title(f"The most a token reaches over {result.attrs['positions']:,} positions ({result.attrs['source']})")
    measures = ("logit", "centred_logit", "log_prob", "probability")
    table = table_of("pool", "logit", "centred", "log-prob", "probability", "which, after what")
    pools = result["pool"].values
    for pool in dict.fromkeys(map(str, pools)):
        part = result.isel(token=np.flatnonzero(pools == pool))
        best = int(np.argmax(part["largest"].sel(measure="log_prob").values))
        words = f"{str(part['text'].values[best])!r} after {str(part['after'].sel(measure='log_prob').values[best])!r}"
        cells = [f"{float(part['largest'].sel(measure=m).max()):.3g}" for m in measures]
        table.add_row(escape(pool), *cells, escape(words))
    yield table
    yield Text("A logit is no log-probability: only log-prob (nats) and probability say how likely.")
