"""Which components wrote the score of a query and a key? A head's score before the softmax, as a sum over pairs.

A query and a key are linear in the residual stream, once the scales of the norms on the way are fixed at those of the
run: the norm before the attention, norms of queries and keys, rotary positions. So the score is a sum over pairs of a
component that wrote at the query's position and one that wrote at the key's. What a source head wrote at the key's
position is again a sum, over the positions that it attended to and the components that wrote there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.arguments import takes_what_it_says
from interp.circuits import head_normed, projected, value_weights
from interp.errors import InterpError
from interp.final_norm import norm_parts
from interp.hooks import (
    Head,
    Heads,
    Hook,
    attention_layers,
    head_name,
    ids_of,
    kv_head,
    name_of,
    parse_heads,
    probe_ids,
    record,
    run_to_stop,
    stop,
)
from interp.residual import head_writes, value_biases, write_hooks, writes

BIAS = "biases"
PLACES = ("bos", "previous", "current", "same_token", "elsewhere")


@dataclass(frozen=True)
class Terms:
    """What each component contributes to one side (queries or keys) of a head, before rotary positions.

    Attributes:
        parts: [component batch position d_head], float64; they sum to the query or key.
        matrix: [d_model d_head], maps the residual stream, times its norm's scale, to queries or keys.
        scale: [batch position], one over what the norm before the attention divided by.
        own_scale: [batch position d_head], the factor of a norm of the queries or keys, else ones.
    """

    parts: Tensor
    matrix: Tensor
    scale: Tensor
    own_scale: Tensor


@dataclass(frozen=True)
class ScoreTerms:
    """A head's scores before the softmax, as a sum over pairs of components.

    Attributes:
        head: (layer, head).
        components: those that wrote to the stream before the layer, and the biases.
        query: of the queries, after rotary positions.
        key: of the keys.
        factor: the multiplier of the product of a query and a key.
        scores: [batch query key], the model's own, before any cap. Where the model exposes no scores, those of the sum.
        error: deviation of the sum from the model's own scores, as a share of their spread.
    """

    head: Head
    components: tuple[str, ...]
    query: Terms
    key: Terms
    turns: tuple[Tensor, Tensor] | None
    factor: float
    scores: Tensor
    error: float

    def pairs(self, sequence: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """[query_writer key_writer place]: the terms of the scores at some places.

        Args:
            sequence: [place], the sequence of each.
            query: [place], position of the query.
            key: [place], position of the key.
        """
        of_query = self._turned(self.query.parts[:, sequence, query], query, 0)
        of_key = self._turned(self.key.parts[:, sequence, key], key, 1)
        return self.factor * torch.einsum("ipe,jpe->ijp", of_query, of_key)

    def towards_key(self, sequence: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """[place d_model]: the gradient of the scores with respect to the stream at the keys' positions, with norm
        scales fixed.
        """
        facing = self._turned(self.query.parts.sum(0)[sequence, query], query, 0)
        if self.turns is not None:
            facing = torch.einsum("pe,pfe->pf", facing, self.turns[1][key])
        facing = self.factor * facing * self.key.own_scale[sequence, key]
        return facing @ self.key.matrix.T * self.key.scale[sequence, key][:, None]

    def _turned(self, values: Tensor, position: Tensor, side: int) -> Tensor:
        """Values [... place d_head] after rotary positions."""
        if self.turns is None:
            return values
        return torch.einsum("...pe,pef->...pf", values, self.turns[side][position])


@takes_what_it_says
def written_before(model: TransformerBridge, layer: int, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What each component wrote to the stream that a layer's attention reads; [batch position d_model] each.

    Args:
        model: any loaded model.
        layer: the layer.
        seen: the activations of `residual.write_hooks` with `heads` in a run.

    Returns:
        `embed`, `pos_embed` where positions are added, each head (`L0H1`) and MLP (`MLP0`) of the earlier layers, other
        mixers (`0_mixer_out`), and `biases`: those of the attention, and of values, which every query reads in full.
    """
    found, bias = dict[str, Tensor](), torch.zeros(())
    having = attention_layers(model)
    for name, value in writes(model, seen).items():
        at, _, what = name.partition("_")
        if at.isdigit() and int(at) >= layer:
            break
        if what == "attn_out" and int(at) in having:
            by_head, rest = head_writes(model, int(at), seen)
            found |= {head_name((int(at), h)): by_head[..., h, :] for h in range(by_head.shape[-2])}
            bias = bias.to(rest) + rest
        else:
            found[f"MLP{at}" if what == "mlp_out" else name] = value.float()
    embed = found["embed"]
    return {**found, BIAS: bias.to(embed).expand_as(embed)}


@takes_what_it_says
def score_terms(model: TransformerBridge, heads: Heads, ids: Tensor) -> dict[Head, ScoreTerms]:
    """The scores of some heads on some sequences, split by the components that wrote queries and keys.

    Args:
        model: any loaded model.
        heads: names or (layer, head) pairs, see `hooks.parse_heads`.
        ids: [batch position].

    Raises:
        InterpError: queries or keys are not a linear function of the stream, apart from norm scales.
    """
    ids, chosen = ids_of(model, ids), parse_heads(model, heads)
    layers = sorted({layer for layer, _ in chosen})
    names = write_hooks(model, heads=True) + [
        name_of(model, la, w) for la in layers for w in ("attn_scores", "pattern")
    ]
    seen = record(model, ids, dict.fromkeys(names))
    turns = turning(model, layers, ids.shape[1])
    found = {}
    for layer, head in chosen:
        components = written_before(model, layer, seen)
        stack = torch.stack(list(components.values()))
        stream = seen[name_of(model, layer, "resid_pre")]
        query, key = (_terms(model, (layer, head), which, stack, stream) for which in "QK")
        found[layer, head] = _scored(model, (layer, head), tuple(components), query, key, turns[layer], seen)
    return found


@takes_what_it_says
def source_parts(
    model: TransformerBridge,
    terms: ScoreTerms,
    source: Head,
    seen: Mapping[str, Tensor],
    ids: Tensor,
    places: tuple[Tensor, Tensor, Tensor],
    *,
    bos: bool,
) -> dict[str, Tensor]:
    """What a source head contributed to the scores through the keys, by the positions it attended to and what it moved.

    Args:
        model: any loaded model.
        terms: the scores of the head under study.
        source: a head of an earlier layer.
        seen: the activations of `source_hooks` in a run on the same sequences.
        ids: [batch position].
        places: sequence, position of the query and position of the key, [place] each.
        bos: whether position 0 holds a BOS token.

    Returns:
        For each component that wrote what was moved, [kind of position, place]. Each position counts as the first of
        the `PLACES`, relative to the key, that fits: BOS; the position before the key; the key's own; others that hold
        the query's token; all others. All of them sum to the source's terms on the key side.

    Raises:
        InterpError: the source's output is not its values times its weights.
    """
    (layer, head), (sequence, query, key) = source, places
    if f"blocks.{layer}.ln1_post.hook_out" in model.hook_dict:
        raise InterpError(f"a norm follows the attention of layer {layer}: what its heads moved cannot be split")
    scaling = _scaling(model, layer, seen)
    components = written_before(model, layer, seen)
    stack = torch.stack(list(components.values()))
    stream = seen[name_of(model, layer, "resid_pre")].float()
    _, centres, gain, scale = _norm(model, layer, stream)
    stack = stack.double()
    centred = stack - stack.mean(-1, keepdim=True) if centres else stack
    weight = value_weights(model)[layer][head].double()
    values = torch.einsum("cbpd,de->cbpe", centred * scale[..., None], gain[:, None] * weight)
    biases = value_biases(model, layer)
    if biases is None:  # a sink takes a part of it, or there is none
        values[-1] += _value_offset(model, layer, head)
    output = model.blocks[layer].attn.W_O.detach()[head].double()
    facing = scaling * terms.towards_key(sequence, query, key) @ output.T  # [place d_head]
    pattern = seen[name_of(model, layer, "pattern")][:, head].double()[sequence, key]  # [place position]
    given = torch.einsum("cpse,pe->cps", values[:, sequence], facing) * pattern
    kinds = _kinds(ids, sequence, query, key, bos).to(given)  # [kind place position]
    return dict(zip(components, torch.einsum("cps,kps->ckp", given, kinds), strict=True))


@takes_what_it_says
def source_hooks(model: TransformerBridge, layers: Sequence[int]) -> list[str]:
    """The hooks that `source_parts` reads for source heads in these layers."""
    return [*write_hooks(model, heads=True), *(name_of(model, layer, "pattern") for layer in layers)]


@takes_what_it_says
def turning(model: TransformerBridge, layers: Sequence[int], size: int) -> dict[int, tuple[Tensor, Tensor] | None]:
    """By layer, the effect of positions on queries and keys, each [position d_head d_head]; None where there is none.

    Measured on the model itself, with basis vectors as queries and keys.

    Args:
        model: any loaded model.
        layers: the layers to measure.
        size: number of positions.
    """
    known, found = model.hook_dict, dict[int, tuple[Tensor, Tensor] | None].fromkeys(layers)
    rotary = [layer for layer in layers if f"blocks.{layer}.attn.hook_rot_q" in known]
    if not rotary:
        return found
    weight = model.blocks[rotary[0]].attn.W_Q
    basis = torch.eye(weight.shape[-1], device=weight.device)
    seen: dict[tuple[int, str], Tensor] = {}

    def put(value: Tensor, hook: Any) -> Tensor:
        if value.ndim == 3:  # all heads at once
            return basis.repeat(1, value.shape[-1] // len(basis))[:, None].expand_as(value).to(value).clone()
        return basis[:, None, None].expand_as(value).to(value).clone()

    def keep(value: Tensor, hook: Any, layer: int, which: str) -> None:
        seen[layer, which] = value[:, :, 0].detach().double().transpose(0, 1)

    hooks: list[Hook] = [("unembed.hook_in", stop)]
    for layer in rotary:
        for which in "qk":
            normed, norm = f"blocks.{layer}.attn.hook_{which}_normed", f"{which}_norm"
            own = getattr(getattr(model.blocks[layer].attn, norm, None), "original_component", None)
            name = normed if own is not None and normed in known else name_of(model, layer, which)
            hooks.append((name, put))
            hooks.append((f"blocks.{layer}.attn.hook_rot_{which}", partial(keep, layer=layer, which=which)))
    run_to_stop(model, torch.zeros((len(basis), size), dtype=torch.long, device=basis.device), hooks)
    for layer in rotary:
        if (layer, "q") in seen and (layer, "k") in seen:
            found[layer] = seen[layer, "q"], seen[layer, "k"]
        else:  # the bridge has the hooks, but rotates where they do not see it
            turn = _turning_by_scores(model, layer, size)
            found[layer] = turn, turn
    return found


def _turning_by_scores(model: TransformerBridge, layer: int, size: int) -> Tensor:
    """[position d_head d_head]: the rotation of queries by position, from their scores with keys at the first position.

    Up to a rotation shared by all positions, so that products of queries and keys are right; each head has another key.
    """
    width, heads = model.blocks[layer].attn.W_Q.shape[-1], model.cfg.n_heads
    shared = kv_head(model, heads - 1) + 1
    basis = torch.eye(width, device=model.blocks[layer].attn.W_Q.device)
    found = torch.zeros(size, width, width, dtype=torch.float64, device=basis.device)
    ids = torch.zeros((width, size), dtype=torch.long, device=basis.device)
    names = [name_of(model, layer, what) for what in ("attn_scores", "pattern")]

    def query(value: Tensor, hook: Any) -> Tensor:
        return basis[:, None, None].expand_as(value).to(value).clone()

    for start in range(0, width, shared):
        columns = range(start, min(start + shared, width))

        def key(value: Tensor, hook: Any, columns: range = columns) -> Tensor:
            new = torch.zeros_like(value)
            for head, column in enumerate(columns):
                new[:, 0, head, column] = 1.0
            return new

        put: list[Hook] = [(name_of(model, layer, "q"), query), (name_of(model, layer, "k"), key)]
        seen = record(model, ids, names, hooks=put)
        shown, pattern = (seen[name].double() for name in names)
        shown = pattern.clamp_min(1e-300).log() if torch.equal(shown, pattern) else shown
        against = shown[..., 0] - shown.diagonal(dim1=-2, dim2=-1)  # the other keys are zero; [basis head position]
        for head, column in enumerate(columns):
            found[:, :, column] = against[:, head * heads // shared].T
    scale = (found[1].square().sum() / width).sqrt().clamp_min(1e-30)
    found[0] = scale * basis  # where a query sees only its own key
    return found / scale


@takes_what_it_says
def scores_error(model: TransformerBridge) -> float:
    """Deviation of the sums over components from the scores of every layer's first head, as a share of their spread."""
    layers = attention_layers(model)
    found = score_terms(model, [(layer, 0) for layer in layers], probe_ids(model))
    return max(terms.error for terms in found.values())


def _scored(
    model: TransformerBridge,
    head: Head,
    components: tuple[str, ...],
    query: Terms,
    key: Terms,
    turns: tuple[Tensor, Tensor] | None,
    seen: Mapping[str, Tensor],
) -> ScoreTerms:
    """The terms with the model's own scores, which determine the factor."""
    of_query, of_key = query.parts.sum(0), key.parts.sum(0)
    if turns is not None:
        of_query = torch.einsum("bpe,pef->bpf", of_query, turns[0])
        of_key = torch.einsum("bpe,pef->bpf", of_key, turns[1])
    own = of_query @ of_key.transpose(-1, -2)
    layer, h = head
    raw, pattern = (seen[name_of(model, layer, what)][:, h] for what in ("attn_scores", "pattern"))
    told = torch.ones_like(raw, dtype=torch.bool).tril() & (raw > torch.finfo(raw.dtype).min / 2)
    shown = raw.double()
    cap = getattr(model.blocks[layer].attn.original_component, "attn_logit_softcapping", None)
    if torch.equal(raw, pattern):  # some bridges expose the pattern twice: use its log, up to a constant per query
        told &= pattern > 1e-30
        shown = shown.clamp_min(1e-30).log()
        shown, against = (_less_mean(x, told) for x in (shown, own))
    else:
        shown, against = (cap * torch.atanh((shown / cap).clamp(-1 + 1e-12, 1 - 1e-12)) if cap else shown), own
    asked, made = shown[told], against[told]
    square = float(made.square().sum())
    factor = float((asked * made).sum()) / square if square > 0 else 1.0
    spread = float((asked - asked.mean()).square().mean().sqrt())
    error = float((asked - factor * made).abs().max()) / max(spread, 1e-12) if spread or square else 0.0
    scores = factor * own if torch.equal(raw, pattern) else shown.masked_fill(~told, torch.nan)
    return ScoreTerms(head, components, query, key, turns, factor, scores, error)


def _less_mean(values: Tensor, told: Tensor) -> Tensor:
    count = told.sum(-1, keepdim=True).clamp_min(1)
    return values - (values * told).sum(-1, keepdim=True) / count


def _terms(model: TransformerBridge, head: Head, which: str, stack: Tensor, stream: Tensor) -> Terms:
    """The queries ("Q") or keys ("K") of a head by component; `stack` is [component batch position d_model]."""
    layer, at = head[0], head[1] if which == "Q" else kv_head(model, head[1])
    attention = model.blocks[layer].attn
    offset, centres, gain, scale = _norm(model, layer, stream)
    try:
        weight = getattr(attention, f"W_{which}", None)
    except NotImplementedError:  # latent attention
        weight = None
    if weight is None or weight.ndim != 3:
        raise InterpError(f"layer {layer} has no single matrix W_{which} (latent attention): its scores are not a sum")
    bias = getattr(attention, f"b_{which}", None)
    matrix = weight.detach()[at].double()
    turned = gain[:, None] * matrix
    if centres:  # centring the input equals centring the matrix
        turned = turned - turned.mean(0, keepdim=True)
    parts = torch.einsum("cbpd,de->cbpe", stack.double() * scale[..., None], turned)
    parts[-1] += offset @ matrix
    if bias is not None:
        parts[-1] += bias.detach().double().view(len(weight), -1)[at]
    own = torch.ones_like(parts[0])
    if getattr(getattr(attention, f"{which.lower()}_norm", None), "original_component", None) is not None:
        own = _own_scale(model, layer, which, at, stream, parts.sum(0))
        parts = parts * own
    return Terms(parts, turned, scale, own)


def _norm(model: TransformerBridge, layer: int, stream: Tensor) -> tuple[Tensor, bool, Tensor, Tensor]:
    """The norm before the attention: offset [d_model], whether it centres, gain [d_model], scale at each position."""
    norm, stream = getattr(model.blocks[layer], "ln1", None), stream.detach()
    if norm is None:
        ones = torch.ones(stream.shape[-1]).to(stream.device).double()
        return torch.zeros_like(ones), False, ones, torch.ones(stream.shape[:-1]).to(ones)
    gain, offset, centres = norm_parts(norm, model.blocks[layer].attn.W_O[0, 0])
    inside = stream.double()
    inside = gain.double() * (inside - inside.mean(-1, keepdim=True) if centres else inside)
    with torch.no_grad():
        out = norm(stream.to(model.blocks[layer].attn.W_O)).double() - offset.double()
    scale = (inside * out).sum(-1) / inside.square().sum(-1).clamp_min(1e-30)
    return offset.double(), centres, gain.double(), scale


def _own_scale(model: TransformerBridge, layer: int, which: str, at: int, stream: Tensor, made: Tensor) -> Tensor:
    """[batch position d_head]: the factor of a norm of queries or keys; it must not subtract a mean."""
    norm, attention = getattr(model.blocks[layer], "ln1", None), model.blocks[layer].attn
    with torch.no_grad():
        read = stream.to(attention.W_O)
        read = (read if norm is None else norm(read)).flatten(0, 1)
        plain = projected(model, layer, which, read)
        normed, moved = (head_normed(model, layer, which, x) for x in (plain, plain + plain.std()))
    if float((normed - moved).abs().max()) < 1e-3 * float(normed.std()):
        raise InterpError(
            f"queries and keys of layer {layer} are normalised by a LayerNorm, which mixes their entries: its scores "
            "cannot be split; use attention_scores"
        )
    plain, normed = (x[:, at].view_as(made).double() for x in (plain, normed))
    return torch.where(plain.abs() > 1e-30, normed / plain.where(plain != 0, 1.0), 0.0)


def _value_offset(model: TransformerBridge, layer: int, head: int) -> Tensor:
    """[d_head]: the constant part of a head's values."""
    block, shared = model.blocks[layer], kv_head(model, head)
    offset, *_ = _norm(model, layer, torch.zeros(1, block.attn.W_O.shape[-1]).to(block.attn.W_O))
    found = offset @ value_weights(model)[layer][head].double()
    bias = getattr(block.attn, "b_V", None)
    return found if bias is None else found + bias.detach().double().view(-1, found.shape[-1])[shared]


def _scaling(model: TransformerBridge, layer: int, seen: Mapping[str, Tensor]) -> float:
    """The multiplier of a layer's attention before it is added to the stream (Granite)."""
    written = seen[name_of(model, layer, "attn_out")].double()
    behind = seen.get(f"blocks.{layer}.attn.hook_out")
    if behind is None or torch.equal(behind.double(), written):
        return 1.0
    return float((written * behind.double()).sum() / behind.double().square().sum().clamp_min(1e-30))


def _kinds(ids: Tensor, sequence: Tensor, query: Tensor, key: Tensor, bos: bool) -> Tensor:
    """[kind place position], bool: which of `PLACES` each position is, the first that fits."""
    position = torch.arange(ids.shape[1], device=ids.device)
    token = ids[sequence, query][:, None]
    fits = [
        (position == 0).expand(len(key), -1) & bos,
        position == key[:, None] - 1,
        position == key[:, None],
        ids[sequence] == token,
        torch.ones(len(key), len(position), dtype=torch.bool, device=ids.device),
    ]
    found, taken = [], torch.zeros_like(fits[-1])
    for fit in fits:
        found.append(fit & ~taken)
        taken = taken | fit
    return torch.stack(found)
