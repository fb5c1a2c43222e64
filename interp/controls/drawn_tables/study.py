"""Is a deficit found where no token can be under-trained? A lexinvariant model, over many drawn tables of rows.

With each table it becomes a different model, with tied embeddings, in which tokens' rows differ only by chance. So over
tables, no pool can be copied better or worse than another, and a method that names causes of a deficit must name none,
up to its stated error rate. Defects planted in half of a pool test that the method is not blind on this model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp import cache, results
from interp.defects import planted
from interp.errors import InterpError
from interp.heads import classify_heads
from interp.models import bos_id, load, location, origin
from interp.organisms import LEXINVARIANT, is_lexinvariant
from interp.organisms.drawn_rows import drawn_table
from interp.pool_names import ordinary_pool, pools as resolve
from interp.progress import track
from interp.results import label
from interp.runner import run, to_stderr
from interp.tokens import Pool, check_seed, repeated

OUTCOMES = ("no deficit", "cannot tell", "deficit claimed", "stage claimed")
POOLS = ("unexposed", "canaries", "control(unexposed)")
SLIGHT = 0.1  # nats below which `glitch_attribution` has nothing to explain
DEFECT = "blind-values"


def lexinvariance(
    out: str | Path,
    *,
    model: str | Path = LEXINVARIANT,
    tables: int = 20,
    planted_tables: int = 3,
    pools: Sequence[str] = POOLS,
    batch: int = 24,
    seed: int = 0,
    fresh: bool = False,
    log: cache.Log = to_stderr,
) -> xr.Dataset:
    """Run `glitch_attribution`, over many drawn tables of rows, on pools that cannot have a deficit.

    Args:
        out: a folder; finished parts are kept in it, and the same call resumes after an interruption.
        model: a lexinvariant model.
        tables: how many tables are drawn, at least 2; seed 0, the bundled model's own table, is not among them.
        planted_tables: in how many of them defects are also planted in every second token of the first pool.
        pools: the pools to test.
        batch: sequences of each pool.
        seed: decides the sequences; each table has its own.
        fresh: repeat finished parts.
        log: receives a line for each part that was taken from earlier runs.

    Returns:
        Over drawn tables, `deficit` [table pool], nats by which the pool's tokens fall short of paired ordinary ones,
        with the ends of its 95% interval over sequences, `deficit_low` and `deficit_high`; `log_prob` and
        `ordinary_log_prob` [table pool], nats, of the pool's tokens and of those they are paired with, where the
        context determines them; `outcome` [table pool], an index into `outcomes` [code], the result of
        `glitch_attribution`. `planted_deficit` and `planted_outcome` [table], the same for the first pool with the
        defect, NaN and -1 if none was planted.

    Raises:
        InterpError: the model is not lexinvariant, or too few tables are asked for.
    """
    check_seed(seed)
    if tables < 2 or not 0 <= planted_tables <= tables:
        raise InterpError(
            f"{tables} tables, defects planted in {planted_tables}: use at least 2 tables, and at most as many planted"
        )
    loaded, parts, broken = load(model), [], []
    chosen = resolve(list(pools), loaded)
    options: dict[str, Any] = {"batch": batch, "fits": 1, "pairings": 1}
    with cache.runs_below(out):
        for table in track(range(1, tables + 1), "drawn tables", total=tables):
            redraw(loaded, table)
            where = Path(out) / f"table-{table}"
            asked = options | {"seed": seed + table}
            found = run("glitch_attribution", loaded, list(chosen), out=where, log=log, fresh=fresh, **asked)
            parts.append(_kept(found))
            if table <= planted_tables:
                found = _with_defect(loaded, chosen[0], Path(out) / f"table-{table}-planted", asked, fresh=fresh)
                broken.append(_kept(found).isel(pool=0))
    numbers = xr.DataArray(np.arange(1, tables + 1), dims="table", name="table")
    result = xr.concat(parts, numbers)
    missing = tables - len(broken)
    deficits = [float(part["deficit"]) for part in broken] + [np.nan] * missing
    said = [int(part["outcome"]) for part in broken] + [-1] * missing
    result = result.assign(
        planted_deficit=label("planted_deficit", np.array(deficits), "table", {"table": numbers.values}),
        planted_outcome=label("planted_outcome", np.array(said, np.int8), "table", {"table": numbers.values}),
    )
    record = {
        "experiment": "lexinvariance",
        "model": origin(load(model)),
        "params": {"tables": tables, "planted_tables": planted_tables, "defect": DEFECT, "batch": batch},
        "pools": {pool.name: len(pool) for pool in chosen},
        "seed": seed,
        "versions": results.versions(),
    }
    result = results.stamp(result.assign_coords(outcomes=("code", list(OUTCOMES))), record)
    results.save(result, Path(out) / "result.nc")
    return result


def _with_defect(
    model: TransformerBridge, pool: Pool, out: Path, options: Mapping[str, Any], *, fresh: bool
) -> xr.Dataset:
    """The same for one pool, with a defect planted in every second token."""
    # a run cannot detect that a defect was planted: the edited model has no key, so the key is taken before
    key = cache.cache_key(_with_defect, model, {"pool": pool.ids, "defect": DEFECT, **options})
    found = None if fresh else cache.get(out, key)
    if found is None:
        with torch.no_grad():
            heads = classify_heads(model, repeated(ordinary_pool(model), batch=16, bos=bos_id(model)))
        with planted(model, pool.ids[::2], [DEFECT], heads=heads):
            found = run("glitch_attribution", model, [pool], log=lambda _: None, **options)
        cache.put(out, key, found)
    return found


def _kept(found: xr.Dataset) -> xr.Dataset:
    """The part of one run that the study keeps [pool]."""
    mean = found["value"].sel(quantity="log_prob")  # [pool combination]
    sentences = [line.partition(": ")[2] for line in found.attrs["verdict"].splitlines()]
    outcomes = [
        OUTCOMES.index(outcome(sentence, float(low)))
        for sentence, low in zip(sentences, found["deficit_low"].values, strict=True)
    ]
    coords = {"pool": found["pool"].values}
    parts = {
        "log_prob": mean.sel(combination="none").values,
        "ordinary_log_prob": mean.sel(combination="paired").values,
        "outcome": np.array(outcomes, np.int8),
        **{name: found[name].values for name in ("deficit", "deficit_low", "deficit_high")},
    }
    return xr.Dataset({name: label(name, values, "pool", coords) for name, values in parts.items()})


def outcome(verdict: str, low: float) -> str:
    """Classify a verdict of `glitch_attribution`: one of `OUTCOMES`.

    Args:
        verdict: the sentence.
        low: the lower end of the deficit's interval, nats.
    """
    if verdict.startswith("no deficit"):
        return "no deficit"
    if not verdict.startswith("cannot tell"):
        return "stage claimed"
    return "deficit claimed" if low > SLIGHT else "cannot tell"


def redraw(model: TransformerBridge, seed: int, *, control: bool = False) -> None:
    """Give a lexinvariant model another table of rows, in place; table 0 is `organism-lexinvariant`'s own.

    Args:
        model: a loaded lexinvariant model.
        seed: decides the rows.
        control: do this to any model with tied embeddings, with rows of its own mean length: a model that is not
            lexinvariant then recognizes none of its tokens.

    Raises:
        InterpError: the model is not lexinvariant, or its embeddings are not tied.

    Example:
        >>> model = interp.load("organism-lexinvariant")
        >>> redraw(model, 1)
    """
    inputs, outputs = (
        model.original_model.get_input_embeddings().weight,
        model.original_model.get_output_embeddings().weight,
    )
    if inputs.data_ptr() != outputs.data_ptr():
        raise InterpError("this model's input and output embeddings are not tied: draw rows for organism-lexinvariant")
    if not control and not is_lexinvariant(location(model) or ""):
        raise InterpError("this model is not lexinvariant, and needs its own rows: use organism-lexinvariant")
    rows = drawn_table(seed, *inputs.shape)
    if control:
        rows *= inputs.float().pow(2).mean().sqrt() / rows.pow(2).mean().sqrt()
    with torch.no_grad():
        inputs.copy_(rows)
