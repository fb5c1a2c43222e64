"""Can the rows of tokens that are not copied be rewritten so that they are, and what does it do to ordinary text?"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.heads import reference_pool
from interp.measure import log_probs, ranks
from interp.progress import track
from interp.repairs.rows import ROW_REPAIRS, embedding_matrices, new_rows, repairable_pools, rows_replaced
from interp.results import Keep, at_once, label
from interp.statistics import BOUNDS, mean_interval
from interp.texts import text_windows
from interp.tokens import Draw, Pool, Repeated
from interp.undertrained import asked_already

_LOGITS = 1 << 25  # at a time
_WINDOW = 100  # tokens
BUDGETS = {"quick": {"batch": 16, "steps": 50, "windows": 8}, "thorough": {"steps": 400, "windows": 100}}


def embedding_repair(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    reference: str = "",
    steps: int = 200,
    windows: int = 20,
    text: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Rewrite the embedding rows of a pool's tokens; measure how much copying recovers, and what ordinary text loses.

    Seven ways, two of them controls (`none`, `random`): docs/causes.md describes each. Pools of ordinary tokens only
    are left out. `interp.repairs.save_repaired` writes a repaired model.

    Args:
        model: any loaded model.
        pools: the tokens to repair.
        draw: draws sequences.
        keep: stores finished parts.
        reference: the pool of ordinary tokens that rows are modelled on (default: the model's).
        steps: training steps of the repair `gradient`, a positive integer.
        windows: at most so many windows of 100 tokens of text, on which damage is measured; a positive integer.
        text: a UTF-8 file of ordinary text (default: a part of the Python standard library that no bundled model saw).
        seed: decides random rows.

    Returns:
        `log_prob` (nats) and `correct` (share) [pool repair batch] of the tested inducible tokens, on sequences that no
        repair has seen; `paired` [pool batch], the log-prob of ordinary tokens in their place. `recovered` [pool repair
        bound], the share of the gap between the two that is closed, with its 95% interval (negative: worse than before;
        NaN: no significant gap). `damage` [pool repair window], KL divergence on text, nats per token.

    Raises:
        InterpError: there are only pools of ordinary tokens, no steps, no windows, or a text that cannot be read.

    Example:
        >>> result = interp.run("embedding_repair", "organism", "unexposed", batch=2, steps=2, windows=2)
        >>> result["damage"].sel(repair="none").max().item()  # the control changes nothing
        0.0
    """
    if steps < 1 or windows < 1:
        raise InterpError(f"steps {steps}, windows {windows}: use positive integers")
    healthy = reference_pool(model, reference, seed=seed)
    asked = asked_already(model)
    broken = repairable_pools(pools, healthy, asked.repeated if asked is not None else ())
    width = min(_WINDOW, (getattr(model.cfg, "n_ctx", None) or _WINDOW + 1) - 1)
    texts = text_windows(model, text, width, windows)
    parts = []
    for pool in broken:
        tokens = draw(pool)
        paired = _copied(model, draw(healthy.without(pool.ids), paired_with=tokens))[0]
        found = []
        for name in track(ROW_REPAIRS, f"repairs of {pool.name}"):
            rows = partial(new_rows, model, name, pool, healthy, draw, steps=steps, seed=seed)
            found.append(keep(f"{name}, {pool.name}", partial(_measured, model, pool, tokens, texts, rows)))
        data = xr.concat(found, xr.DataArray(list(ROW_REPAIRS), dims="repair", name="repair"))
        none = data["log_prob"].sel(repair="none").values
        gap, gained = paired - none, data["log_prob"].values - none
        # a share of a significant gap, given by its mean: the interval is that of the gain
        bounds = mean_interval(gained.T) / (gap.mean() if mean_interval(gap)[1] > 0 else np.nan)
        coords = {"repair": list(ROW_REPAIRS), "bound": list(BOUNDS), "batch": np.arange(len(paired))}
        recovered = label("recovered", bounds.T, "repair bound", coords)
        parts.append(data.assign(recovered=recovered, paired=label("paired", paired, "batch", coords)).drop_attrs())
    names = xr.DataArray([pool.name for pool in broken], dims="pool", name="pool")
    return xr.concat(parts, names).assign_attrs(among=healthy.name)


def _measured(
    model: TransformerBridge, pool: Pool, tokens: Repeated, texts: Tensor, rows: Callable[[], dict[str, Tensor]]
) -> xr.Dataset:
    """`log_prob` and `correct` [batch] and `damage` [window] with other rows for a pool's tokens."""
    made = rows()
    with rows_replaced(model, pool.ids, made):
        log_prob, correct = _copied(model, tokens)
    damage = _damage(model, pool, made, texts)
    coords = {"batch": np.arange(len(log_prob)), "window": np.arange(len(damage))}
    return xr.Dataset(
        {
            "log_prob": label("log_prob", log_prob, "batch", coords),
            "correct": label("correct", correct, "batch", coords),
            "damage": label("damage", damage, "window", coords),
        }
    )


def _copied(model: TransformerBridge, tokens: Repeated) -> np.ndarray:
    """[2 batch]: mean log-prob and share of arg-maxima of the tested inducible tokens."""
    found = []
    for part in tokens.split(tokens.rows_per_pass()):
        read = torch.from_numpy(part.inducible_tested).to(part.ids.device)
        if not bool(read.any(1).all()):
            raise InterpError("a sequence tests no inducible token: use longer blocks")
        logits = model(part.ids, prepend_bos=False)
        values = torch.stack([log_probs(logits, part.ids), (ranks(logits, part.ids) == 0).float()])
        found.append((values.nan_to_num() * read).sum(-1) / read.sum(-1))
    return torch.cat(found, -1).cpu().numpy()


def _damage(model: TransformerBridge, pool: Pool, rows: dict[str, Tensor], texts: Tensor) -> np.ndarray:
    """[window]: mean KL divergence of the repaired model's predictions from the model's own, nats per token."""
    found = []
    for part in texts.split(max(1, _LOGITS // (texts.shape[1] * len(embedding_matrices(model)["input"])))):
        own = model(part, prepend_bos=False).float().log_softmax(-1)
        with rows_replaced(model, pool.ids, rows):
            new = model(part, prepend_bos=False).float().log_softmax(-1)
        found.append((own.exp() * (own - new)).sum(-1).mean(-1))
    return torch.cat(found).cpu().numpy()
