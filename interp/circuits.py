"""What could each head do, judging by its weights alone? Copying (OV), matching (QK) and composition.

Formulas: Elhage et al. 2021 (A Mathematical Framework for Transformer Circuits). The circuits include the gains of the
norms before and after the attention and before the unembedding, whether weights are folded or not; they exclude the
unembedding's mean over the vocabulary, on which no probability depends. Where several query heads share a key and value
head, each is paired with the one that it reads.

A token's input row is defined in two ways: `direct`, what it puts into the residual stream (its embedding row W_E,
scaled or normed where the model does so), and `effective`, what the residual stream holds after the first layer's MLP
has seen that row alone (no attention, no position). Heads of the first layer read the embedding in either case. Where
the first MLP rewrites embeddings, heads seem not to copy by the first definition and do copy by the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.matrix import composition_scores

from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.final_norm import norm_parts
from interp.hooks import Head, attention_layers, check_layer, head_name, name_of, run_to_stop, stop
from interp.models import is_folded
from interp.progress import track
from interp.residual import Readout
from interp.results import label
from interp.tokens import Pool

ROWS = ("direct", "effective")
COPYING = ("eigenvalues", "logit", "top1", "top5")
MODES = ("Q", "K", "V")
TOKENS = 512  # tokens of a pool, at most, whose rows are compared with the whole vocabulary


@takes_what_it_says
def token_rows(model: TransformerBridge) -> dict[str, Tensor]:
    """The input row of every token, [token d_model], by each of the two definitions (`ROWS`)."""
    names = {
        "embed": "hook_embed",
        "direct": name_of(model, 0, "resid_pre"),
        "effective": name_of(model, 0, "resid_post"),
    }
    found: dict[str, list[Tensor]] = {way: [] for way in names}

    def zero(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value)

    def keep(value: Tensor, hook: Any, way: str) -> None:
        found[way].append(value[:, 0].detach().float())

    # a first layer without attention sees only the row in any case
    hooks: list[Any] = [(n, zero) for n in ("hook_pos_embed", "blocks.0.hook_attn_out") if n in model.hook_dict]
    hooks += [(name, partial(keep, way=way)) for way, name in names.items() if name in model.hook_dict]
    size = len(model.original_model.get_input_embeddings().weight)
    for ids in torch.arange(size, device=model.cfg.device).split(1024):
        model.run_with_hooks(ids[:, None], fwd_hooks=hooks, return_type=None, prepend_bos=False, stop_at_layer=1)
    rows = {way: torch.cat(parts) for way, parts in found.items() if parts}
    embed = rows.pop("embed", rows["direct"])
    added = rows["direct"] - embed
    if float((added - added[0]).abs().max()) < 1e-4 * float(embed.std()):  # positions that no hook shows
        rows["direct"] = embed
    return rows


@takes_what_it_says
def copying(
    model: TransformerBridge, pools: Sequence[Pool], together: Sequence[Head] = (), *, tokens: int = TOKENS
) -> xr.Dataset:
    """How well each head's OV circuit W_E W_V W_O W_U copies the tokens of each pool.

    Args:
        model: any loaded model.
        pools: the tokens.
        together: heads whose circuits are also summed.
        tokens: at most this many tokens of a pool are examined, evenly spaced, for all measures but the eigenvalues.

    Returns:
        `copying` [pool measure rows layer head] and `copying_together` [pool measure rows], for the sum of the circuits
        of the heads `together`; NaN where there are none. The measures:

        - `eigenvalues`: sum of the real parts over sum of the moduli, -1..1, of the circuit from these tokens to these
          tokens (logits minus their mean over them, on which a softmax among them does not depend), from the small
          d_head x d_head product;
        - `logit`: the logit of the token itself minus the mean over the vocabulary, in standard deviations over it;
        - `top1`, `top5`: share of the tokens whose own logit is the largest, or among the five largest, in the
          vocabulary.

    Raises:
        InterpError: values are not computed by one matrix, or logits are not read by the unembedding alone.
    """
    if not pools:
        raise InterpError("no pool: give at least one, as interp.pools does")
    rows, readout = token_rows(model), Readout.of(model)
    unembed = (readout.gain * readout.rows).T
    every = [torch.tensor(pool.ids, device=unembed.device) for pool in pools]
    values, outputs = value_weights(model), output_weights(model)
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    found = np.full((len(pools), len(COPYING), len(ROWS), layers, heads), np.nan, dtype=np.float32)
    summed = np.full((len(pools), len(COPYING), len(ROWS)), np.nan, dtype=np.float32)

    def measured(read: Tensor, written: Tensor) -> list[list[float]]:
        """[pool measure] of a circuit: what each token reads [vocabulary inner], what is written [inner d_model]."""
        logits = readout.centred(written) @ unembed
        scores = []
        for ids in every:
            among = logits[:, ids] - logits[:, ids].mean(-1, keepdim=True)
            spectrum = FactoredMatrix(read[ids], among).eigenvalues
            share = float(spectrum.real.sum().double() / spectrum.abs().sum().double())  # NaN where all are zero
            asked = _spaced(ids, tokens)
            scores.append([share, *_own(read[asked], logits, asked).mean(1).tolist()])
        return scores

    for layer in track(values, "OV circuits", total=len(values)):
        for r, way in enumerate(ROWS):
            row = taken_in(model, layer, rows[way if layer else "direct"])
            for head in range(heads):
                found[:, :, r, layer, head] = measured(row @ values[layer][head], outputs[layer][head])
    for r, way in enumerate(ROWS if together else ()):
        # the sum of products is one product of stacked matrices
        read = [taken_in(model, la, rows[way if la else "direct"]) @ values[la][h] for la, h in together]
        summed[:, :, r] = measured(torch.cat(read, dim=-1), torch.cat([outputs[la][h] for la, h in together], dim=0))
    coords = {"pool": [pool.name for pool in pools], "measure": list(COPYING), "rows": list(ROWS)}
    return xr.Dataset(
        {
            "copying": label("copying", found, "pool measure rows layer head", coords),
            "copying_together": label("copying_together", summed, "pool measure rows", coords),
        }
    )


@takes_what_it_says
def matching(
    model: TransformerBridge, pools: Sequence[Pool], senders: Sequence[Head], distance: int, *, tokens: int = TOKENS
) -> xr.DataArray:
    """Share of the tokens of each pool whose best key, over the vocabulary, is the token itself.

    A query token t and a key token s are scored by the QK circuit with s read through a previous-token head's OV
    circuit, which is how an induction head must match. Rows are divided by their root mean square, as the norm does;
    the query's bias is included, and norms of queries and keys where a model has them.

    Args:
        model: any loaded model.
        pools: the tokens.
        senders: the previous-token heads.
        distance: how far before the query the key lies, for models with rotary positions.
        tokens: at most this many tokens of a pool are tested, evenly spaced.

    Returns:
        [pool through rows layer head]; NaN for heads that are not in a later layer than the sender, and in layers whose
        attention does not reach that far (the attribute `out_of_reach` names them). `through` names the sender, e.g.
        L0H2; its last entry `embedding` is the control: s itself, which is how a duplicate-token head would match.

    Raises:
        InterpError: queries, keys or values are not computed by one matrix, or the distance exceeds the context.
    """
    rows = token_rows(model)
    few = [_spaced(torch.tensor(pool.ids, device=rows["direct"].device), tokens) for pool in pools]
    values, outputs = (value_weights(model), output_weights(model)) if senders else ({}, {})
    turned = rotations(model, distance)
    out_of_reach = [layer for layer, turn in turned.items() if turn is not None and not bool(turn.isfinite().all())]
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    through = [*map(head_name, senders), "embedding"]
    found = np.full((len(pools), len(through), len(ROWS), layers, heads), np.nan, dtype=np.float32)
    for s, sender in enumerate(track([*senders, None], "QK circuits", total=len(through))):
        for r, way in enumerate(ROWS):
            if sender is not None:
                layer, head = sender
                row = taken_in(model, layer, rows[way if layer else "direct"], scaled=True)
                seen = row @ values[layer][head] @ outputs[layer][head]
            for layer, turn in turned.items():
                if (sender is not None and layer <= sender[0]) or layer in out_of_reach:
                    continue
                own = rows[way if layer else "direct"]
                read = taken_in(model, layer, own, scaled=True) if sender is None else taken_in(model, layer, seen)
                key = _projected(model, layer, "K", read)  # one for each of the shared keys
                for p, asked in enumerate(few):
                    query = queries_of(model, layer, taken_in(model, layer, own[asked], scaled=True))
                    for head in range(heads):
                        facing = query[:, head] if turn is None else query[:, head] @ turn
                        keys = key[:, head * key.shape[1] // heads].T
                        found[p, s, r, layer, head] = float(_own(facing, keys, asked)[1].mean())
    coords = {"pool": [pool.name for pool in pools], "through": through, "rows": list(ROWS)}
    said = {"out_of_reach": " ".join(map(str, out_of_reach))} if out_of_reach else {}
    return label("matching", found, "pool through rows layer head", coords).assign_attrs(said)


@takes_what_it_says
def composition(folded: TransformerBridge, *, draws: int = 200, seed: int = 0) -> xr.Dataset:
    """How strongly each head reads what an earlier head writes, and how strongly random matrices would.

    Args:
        folded: a model with folded weights.
        draws: Gaussian matrices drawn for the baseline.
        seed: determines these draws.

    Norms of queries and keys, and a norm after the attention, are not matrices and are left out.

    Returns:
        `composition` [mode from_layer from_head layer head], |W_OV W|_F / (|W_OV| |W|) with W = W_QK, W_QK^T and W_OV
        of the later head for the modes Q, K and V; NaN where the head is not in a later layer than the other.
        `baseline` [mode bound], the same for Gaussian matrices of these shapes: mean, and the ends of the middle 95%.

    Raises:
        InterpError: weights are not folded, or there are no draws.
    """
    _check_folded(folded)
    check_gains(folded)
    if draws < 1:
        raise InterpError(f"draws {draws}: use a positive integer")
    layers, heads, having = folded.cfg.n_layers, folded.cfg.n_heads, attention_layers(folded)
    scores = np.full((len(MODES), layers, heads, layers, heads), np.nan, dtype=np.float32)
    written: dict[int, Tensor] = {}
    for at, layer in enumerate(track(having, "composition", total=len(having))):
        # like TransformerLens's composition_scores, which decomposes both matrices again for every pair of layers, and
        # whose all_composition_scores holds all pairs of heads at once: 21 GB for 30 layers of 9
        value_output, query_key = _value_output(folded, layer), _query_key(folded, layer)
        for mode, reading in zip(MODES, (query_key, query_key.T, value_output), strict=True):
            read = _unit(reading.collapse_r())
            for before in having[:at]:
                found = torch.einsum("aid,bdj->abij", written[before], read).norm(dim=(-2, -1))
                scores[MODES.index(mode), before, :, layer] = found.cpu().numpy()
        written[layer] = _unit(value_output.collapse_l())
    first = folded.blocks[having[0]].attn
    (width, inner), value_width = first.W_Q.shape[-2:], first.W_V.shape[-1]
    generator = torch.Generator().manual_seed(seed)

    def gaussian(size: int) -> FactoredMatrix:
        left = torch.randn(draws, width, size, generator=generator)
        return FactoredMatrix(left, torch.randn(draws, size, width, generator=generator))

    baseline = []
    for size in (inner, inner, value_width):  # of Q, K and V
        drawn = composition_scores(gaussian(value_width), gaussian(size), False).numpy()
        baseline.append([drawn.mean(), *np.quantile(drawn, [0.025, 0.975])])
    coords = {
        "mode": list(MODES),
        "from_layer": np.arange(layers),
        "from_head": np.arange(heads),
        "bound": ["mean", "low", "high"],
    }
    return xr.Dataset(
        {
            "composition": label("composition", scores, "mode from_layer from_head layer head", coords),
            "baseline": label("baseline", np.array(baseline), "mode bound", coords),
        }
    )


def _unit(matrices: Tensor) -> Tensor:
    """[head ...], each scaled to norm 1."""
    return matrices.detach().float() / matrices.detach().float().norm(dim=(-2, -1), keepdim=True)


def _value_output(model: TransformerBridge, layer: int) -> FactoredMatrix:
    """W_V W_O of each query head of a layer."""
    attention = model.blocks[layer].attn
    return FactoredMatrix(_for_each_query_head(model, attention.W_V.detach(), 0), attention.W_O.detach())


def _query_key(model: TransformerBridge, layer: int) -> FactoredMatrix:
    """W_Q W_K^T of each query head of a layer."""
    attention = model.blocks[layer].attn
    keys = _for_each_query_head(model, attention.W_K.detach(), 0)
    return FactoredMatrix(attention.W_Q.detach(), keys.transpose(-2, -1))


def _check_folded(model: TransformerBridge) -> None:
    if not is_folded(model):
        raise InterpError(
            "circuits are read off folded weights: give models.folded(model), or load with weights='folded'"
        )


@takes_what_it_says
def taken_in(model: TransformerBridge, layer: int, row: Tensor, *, scaled: bool = False) -> Tensor:
    """What the attention of a layer receives from rows [... d_model], after the norm before it where there is one.

    Args:
        model: any loaded model.
        layer: the layer.
        row: a contribution to the residual stream.
        scaled: the row is the whole residual stream: it is divided as the norm would, and gets the norm's bias.
    """
    check_layer(model, layer)
    norm = getattr(model.blocks[layer], "ln1", None)
    width = model.blocks[layer].attn.W_O.shape[-1]
    if not row.is_floating_point() or row.shape[-1:] != (width,):
        raise InterpError(f"a row of the residual stream is [... {width}], and this one is {tuple(row.shape)}")
    if norm is None:
        return row
    gain, offset, centres = norm_parts(norm, model.blocks[layer].attn.W_O[0, 0])
    row = row - row.mean(-1, keepdim=True) if centres else row
    if not scaled:
        return gain * row
    return gain * row / row.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12) + offset


@takes_what_it_says
def check_gains(folded: TransformerBridge) -> None:
    """Raise `InterpError` where folding has left a gain in a norm before attention."""
    for layer in attention_layers(folded):
        norm = getattr(folded.blocks[layer], "ln1", None)
        gain = torch.ones(1) if norm is None else norm_parts(norm, folded.blocks[layer].attn.W_O[0, 0])[0]
        if float((gain - 1).abs().max()) > 1e-2:
            raise InterpError(
                "TransformerLens does not fold the norms of this architecture: composition cannot be read off its "
                "weights; copying, matching and attention_scores can"
            )


@takes_what_it_says
def value_weights(model: TransformerBridge) -> dict[int, Tensor]:
    """W_V by layer, [head d_model d_head], a shared one repeated for each query head that reads it.

    Raises:
        InterpError: values are not computed by one matrix.
    """
    found = {}
    for layer in attention_layers(model):
        weight = _weight(model.blocks[layer].attn, "W_V")
        if weight is None or weight.ndim != 3:
            raise InterpError(
                f"layer {layer} has no single matrix W_V (latent attention): circuits cannot be read off "
                "its weights; scores of patterns can (attention_scores)"
            )
        found[layer] = _for_each_query_head(model, weight.detach().float(), 0)
    return found


@takes_what_it_says
def output_weights(model: TransformerBridge) -> dict[int, Tensor]:
    """W_O by layer, [head d_head d_model], with the gain of a norm after the attention where there is one."""
    found = {}
    for layer in attention_layers(model):
        block = model.blocks[layer]
        weight, norm = block.attn.W_O.detach().float(), getattr(block, "ln1_post", None)
        found[layer] = weight if norm is None else weight * norm_parts(norm, weight[0, 0])[0]
    return found


@takes_what_it_says
def keys_of(model: TransformerBridge, layer: int, seen: Tensor) -> Tensor:
    """[row head d_head]: the keys that a layer computes from its input [row d_model], before rotary positions."""
    return _for_each_query_head(model, _projected(model, layer, "K", seen), 1)


@takes_what_it_says
def queries_of(model: TransformerBridge, layer: int, seen: Tensor) -> Tensor:
    """[row head d_head]: the queries, as `keys_of` does for keys."""
    return _projected(model, layer, "Q", seen)


def _projected(model: TransformerBridge, layer: int, which: str, seen: Tensor) -> Tensor:
    """[row head d_head] of queries or keys, with biases and their own norm; one head for each matrix."""
    return head_normed(model, layer, which, projected(model, layer, which, seen))


@takes_what_it_says
def projected(model: TransformerBridge, layer: int, which: str, seen: Tensor) -> Tensor:
    """[row head d_head] of queries ("Q") or keys ("K"), with biases; one head for each matrix.

    Raises:
        InterpError: they are not computed by one matrix.
    """
    attention = model.blocks[layer].attn
    weight, bias = (_weight(attention, f"{kind}_{which}") for kind in "Wb")
    if weight is None or weight.ndim != 3:
        raise InterpError(
            f"layer {layer} has no single matrix W_{which} (latent attention): matching cannot be read off its "
            "weights; scores of patterns can (attention_scores)"
        )
    if seen.ndim != 2 or seen.shape[1] != weight.shape[1]:
        raise InterpError(f"rows are {tuple(seen.shape)}: give [row {weight.shape[1]}]")
    found = torch.einsum("rd,hde->rhe", seen.to(weight.device).float(), weight.detach().float())
    return found if bias is None else found + bias.detach().float().view(found.shape[1:])


@takes_what_it_says
def head_normed(model: TransformerBridge, layer: int, which: str, found: Tensor) -> Tensor:
    """Queries or keys [row head d_head] after their own norm, where the layer has one."""
    attention = model.blocks[layer].attn
    weight, norm = _weight(attention, f"W_{which}"), getattr(attention, f"{which.lower()}_norm", None)
    if norm is None or getattr(norm, "original_component", None) is None:
        return found
    if getattr(attention, "_qk_norm_phase", None) == "pre_reshape":  # over all heads at once
        return norm(found.flatten(1)[None].to(weight))[0].view(found.shape).float()
    found = found.to(weight)
    if getattr(attention, "_qk_norm_per_head", False):
        return norm(found[None])[0].float()
    return norm(found.transpose(0, 1)[None])[0].transpose(0, 1).float()


def _weight(attention: Any, name: str) -> Tensor | None:
    try:
        return getattr(attention, name, None)
    except NotImplementedError:  # latent attention has none
        return None


def _for_each_query_head(model: TransformerBridge, of_heads: Tensor, axis: int) -> Tensor:
    return of_heads.repeat_interleave(model.cfg.n_heads // of_heads.shape[axis], dim=axis)


def _spaced(ids: Tensor, most: int) -> Tensor:
    """At most `most` of them, evenly spaced."""
    if most < 1:
        raise InterpError(f"tokens {most}: use a positive integer")
    return ids[torch.linspace(0, len(ids) - 1, min(most, len(ids)), device=ids.device).round().long()]


def _own(left: Tensor, right: Tensor, ids: Tensor) -> Tensor:
    """How each row's own entry of left @ right [row, vocabulary] ranks: in standard deviations; largest; in the top
    five.

    Returns [3 row]. A circuit that writes nothing has no deviation: NaN, and no entry is the largest.
    """
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


@takes_what_it_says
def rotations(model: TransformerBridge, distance: int) -> dict[int, Tensor | None]:
    """By layer, the rotation of a query whose product with an unrotated key is the score at that distance.

    Measured on the model itself, with basis vectors as queries and keys.

    Returns:
        [d_head d_head], NaN where the layer's attention does not reach that far; None without rotary positions.

    Raises:
        InterpError: the distance does not fit the context.
    """
    layers, context = attention_layers(model), model.cfg.n_ctx
    if not any(f"blocks.{layer}.attn.hook_rot_q" in model.hook_dict for layer in layers):
        return dict.fromkeys(layers)
    if distance >= context:
        raise InterpError(f"distance {distance} does not fit the context of {context}: use a smaller one")
    weight = _weight(model.blocks[layers[0]].attn, "W_Q")
    if weight is None:
        raise InterpError(
            "there is no single matrix W_Q (latent attention): matching cannot be read off weights; scores of "
            "patterns can (attention_scores)"
        )
    width = weight.shape[-1]
    basis = torch.eye(width, device=weight.device)
    turned: dict[int, list[Tensor]] = {layer: [] for layer in layers}  # [basis, some keys] of each chunk

    def put(value: Tensor, hook: Any, rows: Tensor) -> Tensor:
        """Rows [basis or 1, position or 1, d_head] for every head; positions beyond the last get zero."""
        new = torch.zeros_like(value)
        # [basis position head d_head], whatever the hook's layout
        view = new.unflatten(-1, (-1, width)) if new.ndim == 3 else new
        view = view.transpose(1, 2) if view.ndim == 4 and getattr(hook, "pos_dim", 1) == 2 else view
        view[:, : view.shape[1] if rows.shape[1] == 1 else rows.shape[1]] = rows[:, :, None].to(value)
        return new

    def keep(value: Tensor, hook: Any, layer: int, size: int) -> None:  # [basis, any head, query, key]
        found = value[:, 0].diagonal(-distance, -2, -1)[:, :size]
        found = found.detach().float() * width**0.5
        # masked entries are minus infinity, or the lowest number of the type
        turned[layer].append(torch.where(found < torch.finfo(value.dtype).min / 2, torch.nan, found))

    for keys in basis.split(min(width, context - distance)):  # these are the keys of one pass, one at each position
        hooks: list[Any] = [("unembed.hook_in", stop)]
        for layer in layers:
            for which, rows in (("q", basis[:, None]), ("k", keys[None])):
                normed = f"blocks.{layer}.attn.hook_{which}_normed"
                own = getattr(getattr(model.blocks[layer].attn, f"{which}_norm", None), "original_component", None)
                name = normed if own is not None and normed in model.hook_dict else name_of(model, layer, which)
                hooks.append((name, partial(put, rows=rows)))
            hooks.append((name_of(model, layer, "attn_scores"), partial(keep, layer=layer, size=len(keys))))
        ids = torch.zeros((width, len(keys) + distance), dtype=torch.long, device=basis.device)
        run_to_stop(model, ids, hooks)
    return {layer: torch.cat(pieces, dim=1) for layer, pieces in turned.items()}
