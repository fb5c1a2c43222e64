"""How many tokens can never win when the output layer has few dimensions, and what does that cost?"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import xarray as xr

from interp import argmax, cache, results
from interp.errors import InterpError
from interp.files import writable
from interp.organisms.batches import Batches
from interp.organisms.corpus import corpus
from interp.organisms.factorised import (
    KINDS,
    RANKS,
    FactorisedRecipe,
    exposures,
    heldout_windows,
    on_heldout,
    shared_batches,
    shared_recipe,
    train_factorised,
)
from interp.results import label
from interp.runner import to_stderr

VERDICTS = argmax.VERDICTS
ROWS = ("trained", "random directions")
_DRAWN = 1 << 28  # stream of the rows in random directions


def unembedding_ranks(
    out: str | Path,
    *,
    ranks: tuple[int, ...] = RANKS,
    text: str | Path | None = None,
    seed: int = 0,
    shorten: int = 1,
    log: cache.Log = to_stderr,
) -> xr.Dataset:
    """Train small models whose output layers have few dimensions, and decide for every token whether it can ever win.

    States are unconstrained: is there any vector for which the rows (and biases) give this token the largest logit?
    Rows of length 1 are normalized in double precision, because rounding them to single precision can be enough to make
    a trained token unargmaxable. As a control, rows of the same lengths, with the same biases, point in random
    directions: they show the effect of the number of dimensions alone.

    Args:
        out: a folder; each finished model's result is kept in it, and the same call resumes after an interruption.
        ranks: dimensions of the output layer, each at most 64.
        text: a folder of text to learn from; the standard library of this Python by default.
        seed: decides initialisation and the order of the text.
        shorten: divides the number of steps, for a trial run.
        log: receives a line that says what was taken from an earlier call.

    Returns:
        `verdict` [kind unembedding_rank rows token], an index into `verdicts` [code]; `margin` likewise, logits, of the
        token over all others at its witness, a state of norm 1 without biases. `loss` [kind unembedding_rank window],
        nats per token of held-out text, and `right` likewise, the share of tokens that are the arg-max. `exposure`
        [token] and `heldout_count` [token]: how often a token is predicted in training and in the held-out windows.
        `unigram_loss`: nats per held-out token under the training frequencies, with one added to each.

    Raises:
        InterpError: an invalid rank, or too little text.

    Source: D. Demeter et al., "Stolen probability" (2020); A. Grivas et al., "Low-rank softmax can have unargmaxable
        classes in theory but rarely in practice" (2022).
    """
    shared = shared_recipe(seed, shorten)
    odd = next((rank for rank in ranks if not 1 <= rank <= shared.d_model), None)
    if odd is not None or not ranks:
        raise InterpError(f"rank {odd}: use numbers from 1 to {shared.d_model}")
    folder, source = writable(out), corpus(text)
    batches = shared_batches(shared, source)
    parts = []
    for rank in ranks:
        for kind in KINDS:
            recipe = FactorisedRecipe(rank, kind, shared)
            key = cache.code_key(_measured, {"recipe": recipe.described(), "corpus_sha256": source.sha256})
            parts.append(
                cache.get_or_make(folder / f"rank-{rank}-{kind}", key, partial(_measured, recipe, batches), log)
            )
    grid = [parts[i : i + len(KINDS)] for i in range(0, len(parts), len(KINDS))]
    kinds = xr.DataArray(list(KINDS), dims="kind", name="kind")
    by_rank = [xr.concat([part.drop_attrs() for part in row], kinds) for row in grid]
    found = xr.concat(by_rank, xr.DataArray(list(ranks), dims="unembedding_rank", name="unembedding_rank"))
    seen = exposures(batches)
    counts = np.bincount(heldout_windows(batches)[:, 1:].ravel(), minlength=shared.vocabulary)
    guess = np.log((seen + 1) / (seen + 1).sum())
    coords = {"token": np.arange(shared.vocabulary)}
    found = found.assign(
        exposure=label("exposure", seen, "token", coords),
        heldout_count=label("heldout_count", counts, "token", coords),
        unigram_loss=-float(counts @ guess / counts.sum()),
    )
    record = {
        "experiment": "unembedding_ranks",
        "recipe": asdict(shared),
        "ranks": list(ranks),
        "seed": seed,
        "corpus": source.name,
        "corpus_sha256": source.sha256,
        "versions": results.versions(),
    }
    result = results.stamp(found, record)
    results.save(result, folder / "result.nc")
    return result


def _measured(recipe: FactorisedRecipe, batches: Batches) -> xr.Dataset:
    """Train one model; its loss on held-out text, and which tokens its output layer can predict at all."""
    model = train_factorised(recipe, batches)
    loss, right = on_heldout(model, batches)
    rows = model.exact_rows.numpy()
    bias = None if model.up.bias is None else model.up.bias.detach().double().numpy()
    tables = [argmax.argmaxability(some, bias) for some in (rows, random_directions(rows, recipe.shared.seed))]
    verdict = np.stack([table["verdict"].map(VERDICTS.index).to_numpy() for table in tables])
    margin = np.stack([table["margin"].to_numpy() for table in tables])
    coords = {"token": np.arange(len(rows)), "rows": list(ROWS), "window": np.arange(len(loss))}
    variables = {
        "verdict": label("verdict", verdict.astype(np.int8), "rows token", coords),
        "margin": label("margin", margin, "rows token", coords),
        "loss": label("loss", loss, "window", coords),
        "right": label("right", right, "window", coords),
    }
    return xr.Dataset(variables).assign_coords(verdicts=("code", list(VERDICTS)))


def random_directions(rows: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the same lengths in uniformly random directions [token rank]."""
    drawn = np.random.default_rng((seed, _DRAWN)).normal(size=rows.shape)
    return drawn * (np.linalg.norm(rows, axis=1) / np.linalg.norm(drawn, axis=1))[:, None]
