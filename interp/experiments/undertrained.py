"""Which tokens of the vocabulary are under-trained? Indicators, calls, verification and, where known, the truth."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from interp.errors import InterpError
from interp.pools import exposure_of, pools as resolve
from interp.results import Keep, at_once, label
from interp.undertrained import (
    DEFAULT,
    FDR,
    THRESHOLD,
    Calls,
    calls,
    embeddings,
    indicators,
    max_probability,
    populations,
    reference,
    verify,
)  # fmt: skip
from interp.undertrained.truth import MEASURES, measures
from interp.vocabulary import census

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def undertrained(
    model: TransformerBridge,
    keep: Keep = at_once,
    *,
    indicator: str = DEFAULT,
    fdr: float = FDR,
    verify_tokens: str = "all",
    reference_pool: str = "",
    tokens_per_pass: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Every token's indicators, calls and verified probability; on a bundled model also their agreement with the truth.

    `value`, `p_value` and `called` [indicator token]: see `interp.undertrained`; low values are suspicious. `threshold`,
    `null_centre`, `null_width`, `mirrored` [indicator]: the null fitted to reachable text tokens, the largest
    value called at the false-discovery rate `fdr`, and how many tokens lie as far on the other side of the null.
    `probability` and `generated` [token prompt new_token], `max_probability` [token]: the published score over three prompts
    (under-trained below 0.01), NaN where a token was not asked; the prompt `article` is reported beside it. `truth`
    [detector subset measure bound], where exposure is known: each indicator and `max_probability` against it,
    exposed up to 10 times against 200 or more, for `multi-character` text tokens and for `all` but special ones
    (`max_probability` only where every token was asked).

    `indicator` is the one shown and used for the pool `undertrained`. `verify_tokens` is all, called (with as many random
    others as control) or none. `reference_pool` names unused tokens of your own; by default the census finds them.
    `tokens_per_pass` changes speed and memory only.
    """
    if verify_tokens not in ("all", "called", "none"):
        raise InterpError(f"unknown verify_tokens '{verify_tokens}': use all, called or none")
    table = _table(model)
    inputs, outputs, bias, tied = embeddings(model)
    asked = tuple(i for pool in resolve(reference_pool, model) for i in pool.ids) if reference_pool else None
    unused = reference(model, asked)
    values = indicators(inputs, outputs, unused.ids, bias=bias, tied=tied)
    if indicator not in values:
        raise InterpError(f"unknown indicator '{indicator}': this model has {', '.join(values)}")
    healthy, family = populations(table)
    shown = calls(values[indicator], healthy, family, fdr=fdr)
    others = {n: _calls_or_none(v, healthy, family, fdr) for n, v in values.items() if n != indicator}
    found = {name: others.get(name, shown) for name in values}
    token = {"token": table["id"].to_numpy(), "indicator": list(values)}
    for column in ("text", "kind", "category", "reachable"):
        token[column] = ("token", table[column].to_numpy(dtype=object))
    several = np.array([k == "text" and _characters(b) > 1 for k, b in zip(table["kind"], table["bytes"], strict=True)])
    token["multi_character"] = ("token", several)
    data = {
        "value": label("value", np.stack(list(values.values())), "indicator token", token),
        "p_value": label("p_value", np.stack([c.p_value for c in found.values()]), "indicator token", token),
        "called": label("called", np.stack([c.called for c in found.values()]), "indicator token", token),
    }
    for name, attribute in (
        ("threshold", "threshold"),
        ("null_centre", "centre"),
        ("null_width", "width"),
        ("mirrored", "mirrored"),
    ):
        data[name] = label(name, [getattr(c, attribute) for c in found.values()], "indicator", token)
    methods, called = dict(values), {name: c.called for name, c in found.items()}
    too_long = ""
    ids = [] if verify_tokens == "none" else _asked(shown.called, family, verify_tokens, seed)
    if ids:
        verified = verify(model, ids, tokens_per_pass=tokens_per_pass or None, keep=keep)
        too_long = verified.attrs["too_long"]
        verified = verified.reindex(token=table["id"].to_numpy(), fill_value={"probability": np.nan, "generated": -1})
        data |= {str(name): values for name, values in verified.data_vars.items()}
        data["max_probability"] = max_probability(verified["probability"])
        if not data["max_probability"].isnull().any():  # of some tokens only, it would not compare with the indicators
            methods["max_probability"] = data["max_probability"].to_numpy()
            called["max_probability"] = methods["max_probability"] < THRESHOLD
    known = exposure_of(model)
    dataset = xr.Dataset(data)
    if known is not None:
        counts = np.array(known.total)
        dataset = dataset.assign_coords(
            exposure=("token", counts), canary=("token", [i in known.canaries for i in table["id"]])
        )
        dataset["truth"] = _truth(table, several, counts, methods, called, seed)
    return dataset.assign_attrs(
        indicator=indicator, fdr=fdr, threshold=THRESHOLD, too_long=too_long,
        reference=json.dumps({"ids": unused.ids, "source": unused.source, "why": unused.why}),
    )  # fmt: skip


def _table(model: TransformerBridge) -> pd.DataFrame:
    if model.tokenizer is not None:
        return census(model)
    raise InterpError("this model has no tokenizer, so nothing says which tokens are text: load it with its tokenizer")


def _calls_or_none(value: np.ndarray, healthy: np.ndarray, family: np.ndarray, fdr: float) -> Calls:
    """Calls of an indicator that is only reported: none where it says nothing (a bias that is zero for most tokens)."""
    try:
        return calls(value, healthy, family, fdr=fdr)
    except InterpError:
        nothing = np.full(len(value), np.nan)
        return Calls(nothing, np.zeros(len(value), bool), np.nan, np.nan, np.nan, 0)


def _asked(called: np.ndarray, family: np.ndarray, which: str, seed: int) -> list[int]:
    if which == "all":
        return list(range(len(called)))
    suspects, others = np.flatnonzero(called), np.flatnonzero(family & ~called)
    control = np.random.default_rng(seed).choice(others, min(len(suspects), len(others)), replace=False)
    return sorted(map(int, {*suspects, *control}))


def _characters(raw: str) -> int:
    return len(bytes.fromhex(raw).decode("utf-8", "replace"))


def _truth(
    table: pd.DataFrame,
    several: np.ndarray,
    counts: np.ndarray,
    methods: dict[str, np.ndarray],
    called: dict[str, np.ndarray],
    seed: int,
) -> xr.DataArray:
    subsets = {"multi-character": several, "all": (table["kind"] != "special").to_numpy()}
    rows = [
        [measures(value, called[name], counts, among, seed=seed) for among in subsets.values()]
        for name, value in methods.items()
    ]
    coords = {
        "detector": list(methods),
        "subset": list(subsets),
        "measure": list(MEASURES),
        "bound": ["value", "low", "high"],
    }
    return label("truth", np.array(rows), "detector subset measure bound", coords)
