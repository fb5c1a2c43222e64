"""Which heads make up the copying circuit, by their attention and by their weights?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.circuits import COPYING, MODES, ROWS, TOKENS, composition, copying, matching
from interp.errors import InterpError
from interp.first_token import first_token
from interp.heads import classify_heads, heads_of_kind, reference_pool
from interp.identities import reason_against, require
from interp.measure import log_probs
from interp.models import folded, published_tokenizer
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.statistics import BOUNDS, mean_interval
from interp.texts import text_windows
from interp.tokens import Draw, Pool

EARLY, LATE = 50, 500  # tokens whose losses the in-context-learning score compares
BUDGETS = {
    "quick": {"batch": 16, "windows": 12, "baseline_draws": 50, "most": 3, "tokens_asked": 64},
    "thorough": {"windows": 400, "baseline_draws": 400},
}
SPANS = {"single": 1, "twenty": 20}  # tokens averaged on each side


def induction_heads(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    text: str = "",
    windows: int = 200,
    baseline_draws: int = 200,
    reference: str = "",
    most: int = 8,
    tokens_asked: int = TOKENS,
    seed: int = 0,
) -> xr.Dataset:
    """Classify every head by its attention against a null, and score its weights: copying, matching and composition.

    Args:
        model: any loaded model.
        pools: the tokens; what depends on them is measured on each pool.
        draw: draws sequences of a pool.
        keep: stores finished parts.
        text: a UTF-8 file for the in-context-learning score (default: a part of the Python standard library).
        windows: how many windows of the text, 2 or more.
        baseline_draws: how many Gaussian matrices composition is compared with.
        reference: a pool of ordinary tokens that is added to the others; by default the model's, where all of these
            have too few tokens for a null.
        most: how many previous-token heads, the best of each pool, matching is measured through.
        tokens_asked: how many tokens of a pool, evenly spaced, copying and matching are measured on.
        seed: decides the sequences without a repeat, the Gaussian matrices and the bootstrap.

    Returns:
        From patterns: `score` and `argmax_share` [pool key_kind layer head batch], 0 to 1; `null` [pool kind layer head
        batch], `threshold` [pool kind] and `classified` [pool kind layer head]. From folded weights: `copying` [pool
        measure rows layer head] and `copying_together`; `matching` [pool through rows layer head], 0 to 1;
        `composition` [mode from_layer from_head layer head] and its `baseline` [mode bound]. `in_context_learning`
        [span bound], nats: loss at token 500 minus loss at token 50; negative where context helps. NaN is not available
        (`no_...` says why).

    Raises:
        InterpError: a number is too small, or the text cannot be read.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits; Olsson et al. 2022, arXiv 2209.11895.

    Example:
        >>> result = interp.run("induction_heads", "wired", "1:33", batch=4, length=8, baseline_draws=4)
        >>> result["classified"].sel(kind="induction", pool="1:33").values.tolist()
        [[False, False], [True, False]]
    """
    if windows < 2 or min(baseline_draws, most, tokens_asked) < 1:
        raise InterpError(
            f"windows {windows}, baseline draws {baseline_draws}, most {most}, tokens_asked {tokens_asked}: "
            "use positive integers, and 2 windows or more"
        )
    require(model, "patterns")
    rows = _windows(model, text, windows)  # before the long work, so that an unreadable text is reported at once
    found = [
        keep(f"heads classified on {pool.name}", partial(classify_heads, model, draw(pool), seed=seed))
        for pool in pools
    ]
    added = _reference(model, pools, draw(pools[0]).length, found, reference, seed)
    pools = [*pools, *added]
    found += [
        keep(f"heads classified on {pool.name}", partial(classify_heads, model, draw(pool), seed=seed))
        for pool in added
    ]
    names = xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")
    attention = xr.concat([part.drop_attrs() for part in found], names)
    copiers = sorted({at for part in found for at in heads_of_kind(part, "induction")})
    senders = sorted({at for part in found for at in heads_of_kind(part, "previous")[:most]})
    distance = draw(pools[0]).length - 1
    weights: dict[str, tuple[tuple[str, ...], Callable[[], xr.Dataset]]] = {
        "copying": (("values", "heads", "readout"), lambda: copying(model, pools, copiers, tokens=tokens_asked)),
        "matching": (
            ("matching", "values"),
            lambda: matching(model, pools, senders, distance, tokens=tokens_asked).to_dataset(),
        ),
        "composition": (("folded", "values"), lambda: composition(folded(model), draws=baseline_draws, seed=seed)),
    }
    parts, said = [attention], dict[str, str]()
    for name, (needed, make) in weights.items():
        reason = next(filter(None, (reason_against(model, identity) for identity in needed)), "")
        parts.append(_unreadable(model, pools, name) if reason else keep(name, make))
        said |= {f"no_{name}": reason} if reason else {}
    said["added"] = ", ".join(pool.name for pool in added)
    said["out_of_reach"] = parts[2]["matching"].attrs.get("out_of_reach", "")
    parts.append(keep("in-context learning", lambda: _in_context(model, rows, seed)))
    merged = xr.merge([part.drop_attrs() for part in parts])
    return merged.assign_attrs({"distance": distance} | {name: text for name, text in said.items() if text})


def _reference(
    model: TransformerBridge, pools: list[Pool], length: int, found: list[xr.Dataset], reference: str, seed: int
) -> list[Pool]:
    """The pool of ordinary tokens, where it is asked for, or where no pool gives a null and this one does."""
    if any(np.isfinite(part["threshold"]).all() for part in found) and not reference:
        return []
    try:
        pool = reference_pool(model, reference, seed=seed)
    except InterpError:
        if reference:
            raise
        return []
    if len(pool) < 2 * length or any(pool.ids == other.ids for other in pools):
        return []
    return [Pool("reference", pool.ids) if pool.name in {other.name for other in pools} else pool]


def _unreadable(model: TransformerBridge, pools: list[Pool], name: str) -> xr.Dataset:
    """The variables of what cannot be read off the weights: NaN."""
    coords = {"pool": [pool.name for pool in pools], "rows": list(ROWS), "measure": list(COPYING), "mode": list(MODES)}
    coords |= {"through": ["embedding"], "bound": ["mean", "low", "high"]}
    sizes = {dim: len(values) for dim, values in coords.items()}
    sizes |= dict.fromkeys(("layer", "from_layer"), model.cfg.n_layers)
    sizes |= dict.fromkeys(("head", "from_head"), model.cfg.n_heads)
    variables = {
        "copying": {"copying": "pool measure rows layer head", "copying_together": "pool measure rows"},
        "matching": {"matching": "pool through rows layer head"},
        "composition": {"composition": "mode from_layer from_head layer head", "baseline": "mode bound"},
    }[name]
    empty = {n: np.full([sizes[dim] for dim in dims.split()], np.nan, np.float32) for n, dims in variables.items()}
    return xr.Dataset({n: label(n, values, variables[n], coords) for n, values in empty.items()})


def _windows(model: TransformerBridge, text: str, windows: int) -> torch.Tensor | None:
    """Windows up to the late token, or None where there is no tokenizer or no room for them."""
    if published_tokenizer(model) is not None and model.cfg.n_ctx > LATE:
        try:
            return text_windows(model, text, LATE + (first_token(model).id is None), windows)
        except InterpError:
            if text:
                raise
            return None  # the text of the package does not suit this tokenizer
    if text:
        raise InterpError(f"a text needs a tokenizer and a context of more than {LATE} tokens: leave it out")
    return None


def _in_context(model: TransformerBridge, rows: torch.Tensor | None, seed: int) -> xr.Dataset:
    score = np.full((len(SPANS), len(BOUNDS)), np.nan)
    if rows is not None:
        gained = []
        for part in track(rows.split(2), "in-context learning", total=-(-len(rows) // 2)):
            loss = -log_probs(model(part, return_type="logits", prepend_bos=False), part)
            late = [loss[:, LATE + 1 - n : LATE + 1].mean(1) for n in SPANS.values()]
            early = [loss[:, EARLY - n // 2 : EARLY + n - n // 2].mean(1) for n in SPANS.values()]
            gained.append((torch.stack(late, 1) - torch.stack(early, 1)).cpu())
        score = mean_interval(torch.cat(gained), seed=seed).T
    coords = {"span": list(SPANS), "bound": list(BOUNDS)}
    return label("in_context_learning", score, "span bound", coords).to_dataset()
