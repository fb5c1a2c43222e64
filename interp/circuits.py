"""What could each head do, by its weights alone? Copying (OV), matching (QK) and composition.

Everything here takes a model with folded weights (`models.folded`), so that the gain of LayerNorm is in the matrices and the
unembedding's mean over the vocabulary, which no probability depends on, is out of them. Formulas: Elhage et al. 2021 (A
Mathematical Framework for Transformer Circuits). Where several query heads share a key and value head, each is paired with
the one that it reads.

A token's row is taken in two ways: `direct`, its embedding row W_E, and `effective`, what the residual stream holds after the
first layer's MLP has seen that row alone (no attention, no position). Heads of the first layer read the embedding in either
case. Where the first MLP rewrites embeddings, heads look as if they did not copy by the first and copy by the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.hooks import Head, name_of, run_to_stop, stop
from interp.models import is_folded
from interp.progress import track
from interp.results import label

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

ROWS = ("direct", "effective")
COPYING = ("eigenvalues", "logit", "top1", "top5")
MODES = ("Q", "K", "V")
_MOST = 512  # tokens of a pool whose rows are compared with the whole vocabulary


def token_rows(folded: TransformerBridge) -> dict[str, Tensor]:
    """The input row of every token, [token d_model], in each of the two ways (`ROWS`)."""
    import torch

    _check_folded(folded)
    direct = folded.W_E.detach().float()
    found = []
    hooks: list[Any] = [
        (name_of(folded, 0, "attn_out"), lambda value, hook: torch.zeros_like(value)),
        (name_of(folded, 0, "resid_post"), lambda value, hook: found.append(value[:, 0].detach().float())),
    ]
    if "hook_pos_embed" in folded.hook_dict:
        hooks.append(("hook_pos_embed", lambda value, hook: torch.zeros_like(value)))
    for ids in torch.arange(len(direct), device=direct.device).split(1024):
        folded.run_with_hooks(ids[:, None], fwd_hooks=hooks, return_type=None, prepend_bos=False, stop_at_layer=1)
    return {"direct": direct, "effective": torch.cat(found)}


def copying(folded: TransformerBridge, ids: Sequence[int], together: Sequence[Head] = ()) -> xr.Dataset:
    """How well each head's OV circuit W_E W_V W_O W_U copies these tokens.

    `copying` [measure rows layer head] and, of the sum of the circuits of the heads `together`, `copying_together` [measure
    rows]; NaN where there are none. The measures:

    - `eigenvalues`: sum of the real parts over sum of the moduli, -1..1, of the circuit from these tokens to these tokens (logits
      less their mean over them, since a softmax among them does not depend on it), from the small d_head x d_head product;
    - `logit`: the logit of the own token less the mean over the vocabulary, in standard deviations over it;
    - `top1`, `top5`: share of the tokens whose own logit is the largest, or among the five largest, of the vocabulary.

    The last two look at no more than 512 of the tokens, evenly spaced. Raises `InterpError` for weights that are not folded.
    """
    return copying_of_each(folded, [ids], together)[0]


def copying_of_each(
    folded: TransformerBridge, groups: Sequence[Sequence[int]], together: Sequence[Head] = ()
) -> list[xr.Dataset]:
    """`copying` for each of several groups of tokens; what does not depend on the group is computed once."""
    import torch
    from transformer_lens.FactoredMatrix import FactoredMatrix

    rows = token_rows(folded)
    unembed = folded.W_U.detach().float()
    every = [torch.tensor(list(ids), device=unembed.device) for ids in groups]
    few = [_spaced(ids) for ids in every]
    values, outputs = _value_output(folded)
    layers, heads = outputs.shape[:2]
    found = np.full((len(groups), len(COPYING), len(ROWS), layers, heads), np.nan, dtype=np.float32)
    summed = np.full((len(groups), len(COPYING), len(ROWS)), np.nan, dtype=np.float32)

    def measured(read: Tensor, written: Tensor) -> list[list[float]]:
        """Of one circuit, what each token reads [vocabulary inner] and what is written [inner d_model]: [group][measure]."""
        logits = written @ unembed
        scores = []
        for ids, asked in zip(every, few, strict=True):
            among = logits[:, ids] - logits[:, ids].mean(-1, keepdim=True)
            spectrum = FactoredMatrix(read[ids], among).eigenvalues
            scores.append([_share(spectrum), *_own(read[asked], logits, asked).mean(1).tolist()])
        return scores

    for layer in track(range(layers), "OV circuits", total=layers):
        for r, way in enumerate(ROWS):
            row = rows[way if layer else "direct"]
            for head in range(heads):
                found[:, :, r, layer, head] = measured(row @ values[layer, head], outputs[layer, head])
    for r, way in enumerate(ROWS if together else ()):
        # the sum of products is one product, side by side
        read = torch.cat([rows[way if at[0] else "direct"] @ values[at] for at in together], dim=-1)
        summed[:, :, r] = measured(read, torch.cat([outputs[at] for at in together], dim=0))
    coords = {"measure": list(COPYING), "rows": list(ROWS)}
    return [
        xr.Dataset(
            {
                "copying": label("copying", one, "measure rows layer head", coords),
                "copying_together": label("copying_together", both, "measure rows", coords),
            }
        )
        for one, both in zip(found, summed, strict=True)
    ]


def matching(folded: TransformerBridge, ids: Sequence[int], senders: Sequence[Head], distance: int) -> xr.DataArray:
    """`matching` [through rows layer head]: share of these tokens whose best key, over the vocabulary, is the token itself.

    The score of a query token t and a key token s is that of the QK circuit with s read through a previous-token head's OV
    circuit (`through` names it, e.g. L0H2), which is how an induction head must match; `embedding` is the control, s
    itself, which is how a duplicate-token head would. Rows are divided by their root mean square, as the norm does it,
    and the query's bias is in. NaN for heads that are not behind the sender. With rotary positions the key lies `distance`
    before the query. Norms of queries and keys, which some models have, are left out.

    At most 512 of the tokens are asked, evenly spaced. Raises `InterpError` for weights that are not folded.
    """
    return matching_of_each(folded, [ids], senders, distance)[0]


def matching_of_each(
    folded: TransformerBridge, groups: Sequence[Sequence[int]], senders: Sequence[Head], distance: int
) -> list[xr.DataArray]:
    """`matching` for each of several groups of tokens; what does not depend on the group is computed once."""
    import torch

    rows = token_rows(folded)
    few = [_spaced(torch.tensor(list(ids), device=folded.W_U.device)) for ids in groups]
    values, outputs = _value_output(folded)
    queries, keys = folded.W_Q.detach().float(), _spread(folded, folded.W_K.detach().float())
    bias = getattr(folded, "b_Q", None)
    turned = _rotation(folded, distance)
    layers, heads = outputs.shape[:2]
    through = [f"L{layer}H{head}" for layer, head in senders] + ["embedding"]
    found = np.full((len(groups), len(through), len(ROWS), layers, heads), np.nan, dtype=np.float32)
    unit = {way: row / row.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12) for way, row in rows.items()}
    for s, sender in enumerate(track([*senders, None], "QK circuits", total=len(through))):
        for r, way in enumerate(ROWS):
            if sender is not None:
                seen = unit[way if sender[0] else "direct"] @ values[sender] @ outputs[sender]
            for layer in range(0 if sender is None else sender[0] + 1, layers):
                row = unit[way if layer else "direct"]
                seen = row if sender is None else seen
                for head in range(heads):
                    key = (seen @ keys[layer, head]).T
                    for g, asked in enumerate(few):
                        query = row[asked] @ queries[layer, head]
                        query = query if bias is None else query + bias[layer, head].detach().float()
                        query = query if turned is None else query @ turned[layer]
                        found[g, s, r, layer, head] = float(_own(query, key, asked)[1].mean())
    coords = {"through": through, "rows": list(ROWS)}
    return [label("matching", one, "through rows layer head", coords) for one in found]


def composition(folded: TransformerBridge, *, draws: int = 200, seed: int = 0) -> xr.Dataset:
    """`composition` [mode from_layer from_head layer head] and its `baseline` [mode bound].

    |W_OV W|_F / (|W_OV| |W|) with W = W_QK, W_QK^T and W_OV of the later head for the modes Q, K and V; NaN where the head is not
    behind the other. The baseline is the same of Gaussian matrices of these shapes: mean, and the ends of the middle 95% of
    `draws`. Raises `InterpError` for weights that are not folded.
    """
    import torch
    from transformer_lens.FactoredMatrix import FactoredMatrix
    from transformer_lens.utilities.matrix import composition_scores

    _check_folded(folded)
    layers, heads = folded.cfg.n_layers, folded.cfg.n_heads
    behind = np.arange(layers)[:, None, None, None] < np.arange(layers)[None, None, :, None]
    scores = [
        np.where(behind, folded.all_composition_scores(mode).scores.detach().float().cpu().numpy(), np.nan)
        for mode in MODES
    ]
    width, inner = folded.W_Q.shape[-2:]
    value_width = folded.W_V.shape[-1]
    if draws < 1:
        raise InterpError(f"draws {draws}: use a whole number from 1 up")
    generator = torch.Generator().manual_seed(seed)

    def gaussian(size: int) -> FactoredMatrix:
        left = torch.randn(draws, width, size, generator=generator)
        return FactoredMatrix(left, torch.randn(draws, size, width, generator=generator))

    baseline = []
    for mode in MODES:
        drawn = composition_scores(
            gaussian(value_width), gaussian(value_width if mode == "V" else inner), False
        ).numpy()
        baseline.append([drawn.mean(), *np.quantile(drawn, [0.025, 0.975])])
    coords = {
        "mode": list(MODES), "from_layer": np.arange(layers), "from_head": np.arange(heads), "bound": ["mean", "low", "high"],
    }  # fmt: skip
    return xr.Dataset(
        {
            "composition": label("composition", np.stack(scores), "mode from_layer from_head layer head", coords),
            "baseline": label("baseline", np.array(baseline), "mode bound", coords),
        }
    )


def _check_folded(model: TransformerBridge) -> None:
    if not is_folded(model):
        raise InterpError(
            "circuits are read off folded weights: give models.folded(model), or load with weights='folded'"
        )


def _spread(model: TransformerBridge, weight: Tensor) -> Tensor:
    """[layer head ...] of key or value weights, a shared one repeated for every query head that reads it."""
    return weight.repeat_interleave(model.cfg.n_heads // weight.shape[1], dim=1)


def _value_output(model: TransformerBridge) -> tuple[Tensor, Tensor]:
    """W_V [layer head d_model d_head] and W_O [layer head d_head d_model] of every query head."""
    return _spread(model, model.W_V.detach().float()), model.W_O.detach().float()


def _share(eigenvalues: Tensor) -> float:
    """Sum of the real parts over the sum of the moduli; NaN where all are zero."""
    total = float(eigenvalues.abs().sum())
    return float(eigenvalues.real.sum()) / total if total > 0 else float("nan")


def _spaced(ids: Tensor) -> Tensor:
    """No more than `_MOST` of them, evenly spaced."""
    import torch

    return ids[torch.linspace(0, len(ids) - 1, min(_MOST, len(ids)), device=ids.device).round().long()]


def _own(left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    """How each row's own entry of left @ right [row, vocabulary] stands out, [3 row]: in deviations; the largest; among five.

    A circuit that writes nothing has no deviation: NaN, and nothing is the largest.
    """
    import torch

    scores: list[Tensor] = []
    for part, own in zip(left.split(64), ids.split(64), strict=True):  # [64, vocabulary] at a time
        logits = part @ right
        target = logits.gather(1, own[:, None])
        above = (logits > target).sum(1)
        tied = (logits == target).sum(1) - 1
        spread = logits.std(1, correction=0)
        deviations = (target[:, 0] - logits.mean(1)) / spread.where(spread > 0, torch.nan)
        scores.append(torch.stack([deviations, (above + tied == 0).float(), (above + tied < 5).float()]))
    return torch.cat(scores, 1)


def _rotation(model: TransformerBridge, distance: int) -> Tensor | None:
    """[layer d_head d_head]: what turns a query so that its product with an unturned key is the score at that distance.

    Read off the model itself, which is fed basis vectors as queries and keys; None without rotary positions.
    """
    import torch

    layers = model.cfg.n_layers
    if "blocks.0.attn.hook_rot_q" not in model.hook_dict:
        return None
    width, context = model.W_Q.shape[-1], model.cfg.n_ctx
    if distance >= context:
        raise InterpError(f"distance {distance} does not fit the context of {context}: use a smaller one")
    basis = torch.eye(width, device=model.W_Q.device)
    turned = torch.empty(layers, width, width, device=basis.device)
    together = min(width, context - distance)  # basis vectors as keys in one pass, one at each position
    for low in range(0, width, together):
        keys = basis[low : low + together]
        size = len(keys)
        ids = torch.zeros((width, size + distance), dtype=torch.long, device=basis.device)

        def query(value: Tensor, hook: Any) -> Tensor:
            return basis[:, None, None].expand_as(value).to(value)

        def key(value: Tensor, hook: Any, keys: Tensor = keys, size: int = size) -> Tensor:
            value = torch.zeros_like(value)
            value[:, :size] = keys[:, None].to(value)
            return value

        def keep(layer: int, low: int = low, size: int = size) -> Any:
            def hook(value: Tensor, hook: Any) -> None:  # [basis, any head, query, key]
                found = value[:, 0].diagonal(-distance, -2, -1)[:, :size]
                turned[layer, :, low : low + size] = found.detach().float() * width**0.5

            return hook

        hooks: list[Any] = []
        for layer in range(layers):
            hooks += [(name_of(model, layer, "q"), query), (name_of(model, layer, "k"), key)]
            hooks += [(name_of(model, layer, "attn_scores"), keep(layer))]
        run_to_stop(model, ids, [*hooks, ("unembed.hook_in", stop)])
    return turned
