"""What can be changed in a forward pass? Interventions as (hook name, function) pairs; add two lists to combine them.

    hooks = ablate_heads(model, "L1H2", kind="mean", record=record(model, others, z_names(model)))
    logits = model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False)

Nothing here changes the model: TransformerLens adds the hooks for one call and removes them, also after an exception. A
*record* is a dictionary from hook name to activation, as `record` returns it for another run. Heads are given as text
("L1H2,L0H0") or as a list of names or of (layer, head) pairs.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.arguments import takes_what_it_says
from interp.errors import InterpError, first_line
from interp.progress import track
from interp.tokens import Sequences

Hook = tuple[str, Callable[..., Any]]
Record = Mapping[str, Tensor]
Given = TypeVar("Given", bound=Sequences)
Kind = Literal["zero", "mean", "resample"]
Via = Literal["q", "k", "v"]
Head = tuple[int, int]
Heads = str | Iterable[str | Sequence[int]]
_OF_ATTENTION = ("q", "k", "v", "z", "pattern", "attn_scores", "attn_out", "result")
_LAYER = re.compile(r"blocks\.([0-9]+)\.")
# for each model: by kind of hook and layer, why another run's value cannot be patched in there
_EFFECTS: WeakKeyDictionary[TransformerBridge, dict[Any, str]] = WeakKeyDictionary()
_HEAD = re.compile(r"\s*L([0-9]+)H([0-9]+)\s*", re.IGNORECASE)


def parse_heads(model: TransformerBridge, heads: Heads) -> list[Head]:
    """The heads, named in any supported notation, as (layer, head) pairs in the order given.

    Args:
        model: the model that must have them.
        heads: "L1H2", "L1H2,L0H0", ["L1H2"], [(1, 2)] or [[1, 2]].

    Raises:
        InterpError: a name is not a head, or this model lacks it.
    """
    found: list[Head] = []
    item: Any = heads
    try:
        for item in heads.split(",") if isinstance(heads, str) else heads:
            match = _HEAD.fullmatch(item) if isinstance(item, str) else None
            layer, head = map(int, match.groups()) if match else map(operator.index, item)
            found.append((layer, head))
    except (TypeError, ValueError) as error:
        raise InterpError(f"{item!r} is not a head: write L1H2, or [(1, 2)], for head 2 of layer 1") from error
    for layer, head in found:
        name_of(model, layer, "z")
        if not 0 <= head < model.cfg.n_heads:
            raise InterpError(f"no head {head} in layer {layer}: this model has heads 0 to {model.cfg.n_heads - 1}")
    return found


@takes_what_it_says
def head_name(head: Head) -> str:
    """The name of a (layer, head) pair, such as L1H2."""
    return f"L{head[0]}H{head[1]}"


@takes_what_it_says
def ids_of(model: TransformerBridge, tokens: Tensor | Sequences) -> Tensor:
    """The ids [batch position] of sequences (or ids themselves), on the model's device.

    Raises:
        InterpError: they are not ids of this model.
    """
    ids = (tokens.ids if isinstance(tokens, Sequences) else tokens).to(model.cfg.device)
    if ids.ndim != 2 or ids.is_floating_point() or not ids.numel():
        raise InterpError(
            f"ids are {tuple(ids.shape)} of {str(ids.dtype).removeprefix('torch.')}: give ids [batch position]"
        )
    size = len(model.original_model.get_input_embeddings().weight)
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= size:
        raise InterpError(f"no token {low if low < 0 else high}: this model has ids 0 to {size - 1}")
    return ids


@takes_what_it_says
def passes(tokens: Given, what: str, batch_size: int | None = None) -> Iterator[Given]:
    """The sequences in batches, one per forward pass (`Sequences.rows_per_pass`), with a progress bar named `what`."""
    size = tokens.rows_per_pass(batch_size)
    return track(tokens.split(size), what, total=-(-len(tokens.ids) // size))


@takes_what_it_says
def name_of(model: TransformerBridge, layer: int, what: str) -> str:
    """The hook of one layer: `z`, `q`, `k`, `v`, `pattern`, `attn_out`, `mlp_out`, `resid_pre`, `resid_post`, ...

    Raises:
        InterpError: this model lacks the layer or the hook.
    """
    check_layer(model, layer)
    known = model.hook_dict
    inner, outer = f"blocks.{layer}.attn.hook_{what}", f"blocks.{layer}.hook_{what}"
    if inner in known:
        return inner
    if outer not in known and what in _OF_ATTENTION and layer not in (having := attention_layers(model)):
        raise InterpError(f"layer {layer} of this model has no attention: layers {', '.join(map(str, having))} have")
    return checked(model, outer)


@takes_what_it_says
def check_layer(model: TransformerBridge, layer: int) -> None:
    """Raise `InterpError` if a model lacks the layer."""
    if not 0 <= layer < model.cfg.n_layers:
        raise InterpError(f"no layer {layer}: this model has layers 0 to {model.cfg.n_layers - 1}")


@takes_what_it_says
def attention_layers(model: TransformerBridge) -> list[int]:
    """The layers with attention; other layers of a hybrid mix positions by a recurrence or a convolution.

    Raises:
        InterpError: no layer has attention that can be observed.
    """
    known = model.hook_dict
    wanted = [[f"blocks.{layer}.attn.hook_{what}" for what in ("pattern", "z")] for layer in range(model.cfg.n_layers)]
    found = [layer for layer, names in enumerate(wanted) if all(name in known for name in names)]
    if not found:
        raise InterpError(
            "no layer of this model has attention that can be observed: run an experiment that needs none, such as "
            "repeated_tokens, logit_lens, logit_attribution, unused_logits, undertrained or argmaxability"
        )
    return found


@takes_what_it_says
def heads_of(model: TransformerBridge) -> list[Head]:
    """Every head (layer, head), layer by layer."""
    return [(layer, head) for layer in attention_layers(model) for head in range(model.cfg.n_heads)]


@takes_what_it_says
def by_layer_and_head(model: TransformerBridge, values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Values of `heads_of` along an axis as [... layer head ...]; NaN in the layers without attention."""
    shape, every = values.shape, heads_of(model)
    if not -values.ndim <= axis < values.ndim or shape[axis] != len(every):
        raise InterpError(f"values are {shape}: give one for each of {len(every)} heads along axis {axis}")
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    found = np.full((*shape[:axis], layers * heads, *shape[axis + 1 :]), np.nan, dtype=values.dtype)
    at = [layer * heads + head for layer, head in every]
    found[(slice(None),) * axis + (at,)] = values
    return found.reshape(*shape[:axis], layers, heads, *shape[axis + 1 :])


@takes_what_it_says
def checked(model: TransformerBridge, name: str) -> str:
    """The hook name itself, checked: TransformerLens would silently ignore one that the model lacks.

    Raises:
        InterpError: the model has no such hook.
    """
    if name in model.hook_dict:
        return name
    near = difflib.get_close_matches(name, list(model.hook_dict), n=3, cutoff=0.5)
    raise InterpError(f"this model has no hook '{name}': did you mean {', '.join(near) or 'one of model.hook_dict'}?")


@takes_what_it_says
def parse_hooks(model: TransformerBridge, names: str | Iterable[str]) -> list[str]:
    """The hooks named in a comma-separated text or in a list.

    Raises:
        InterpError: the model has no such hook.
    """
    if isinstance(names, str):
        return [checked(model, name.strip()) for name in names.split(",")]
    return [checked(model, name) for name in names]


@takes_what_it_says
def z_names(model: TransformerBridge) -> list[str]:
    """The hooks of the heads' outputs before W_O (z) in each layer with attention: [batch position head d_head]."""
    return [name_of(model, layer, "z") for layer in attention_layers(model)]


@takes_what_it_says
def pattern_names(model: TransformerBridge) -> list[str]:
    """The hooks of the attention patterns of each layer with attention, [batch head query key]."""
    return [name_of(model, layer, "pattern") for layer in attention_layers(model)]


@takes_what_it_says
def mlp_names(model: TransformerBridge) -> list[str]:
    """The hooks of the MLP outputs of each layer with an MLP, [batch position d_model]."""
    known = model.hook_dict
    return [name for layer in range(model.cfg.n_layers) if (name := f"blocks.{layer}.hook_mlp_out") in known]


@takes_what_it_says
def record(
    model: TransformerBridge, tokens: Tensor | Sequences, names: str | Iterable[str], *, hooks: Sequence[Hook] = ()
) -> dict[str, Tensor]:
    """Record some activations of a run.

    Args:
        model: any loaded model.
        tokens: sequences, or their ids [batch position].
        names: the hooks to record (nothing else is kept): a list, or a comma-separated text.
        hooks: interventions active during the run; their effects are recorded.

    Raises:
        InterpError: this model lacks a hook.
    """
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> None:
        if not isinstance(value, Tensor):
            raise InterpError(f"'{name}' holds a {type(value).__name__}, not a tensor: record another hook")
        found[name] = value.detach().clone()

    # after the interventions at the same place, so that it sees their effects
    added: list[Hook] = [*hooks, *((name, partial(keep, name=name)) for name in parse_hooks(model, names))]
    run_to_stop(model, ids_of(model, tokens), [*added, *((name, stop) for name in _ends(model, added))])
    return found


def _ends(model: TransformerBridge, hooks: Sequence[Hook]) -> Iterator[str]:
    """The hooks after all of these: the next block's input, and the unembedding's.

    Stopping there saves the time of the later layers, and logits are the larger part of a run's memory.
    """
    found = [re.match(r"blocks\.(\d+)\.", name) for name, _ in hooks]
    behind = f"blocks.{max((int(m[1]) for m in found if m), default=-1) + 1}.hook_in"
    if found and all(found) and behind in model.hook_dict:
        yield behind
    if not any(name.startswith("unembed") and name != "unembed.hook_in" for name, _ in hooks):
        yield "unembed.hook_in"


@takes_what_it_says
def probe_ids(model: TransformerBridge, rows: int = 2, length: int = 24, seed: int = 0) -> Tensor:
    """Random ids [batch position] of a short run for testing a model."""
    if rows < 1 or length < 1 or seed < 0:
        raise InterpError(f"rows {rows}, length {length}, seed {seed}: use positive integers, and a seed of 0 or more")
    size = len(model.original_model.get_input_embeddings().weight)
    shape = (rows, min(length, int(model.cfg.n_ctx)))
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed)).to(model.cfg.device)


@takes_what_it_says
def relative_error(right: Tensor, other: Tensor) -> float:
    """The largest difference between two tensors, as a share of the spread of the first."""
    right, other = right.float(), other.float()
    return float((right - other).abs().max() / right.std().clamp_min(1e-12))


@takes_what_it_says
def stream_error(model: TransformerBridge, name: str) -> float:
    """How far a run remains from another run whose value is patched in at a hook, at all positions; a share of the
    spread.
    """
    one, two = (probe_ids(model, rows=1, length=12, seed=seed) for seed in (1, 2))
    put = record(model, two, [name])[name]
    hooks: list[Hook] = [(name, lambda value, hook: put)]
    with torch.no_grad():
        changed = model.run_with_hooks(one, fwd_hooks=hooks, prepend_bos=False)
        return relative_error(model(two, return_type="logits", prepend_bos=False), changed)


@takes_what_it_says
def check_effect(model: TransformerBridge, name: str) -> None:
    """Raise `InterpError` where patching another run's value in at a hook does not have the effect that its name says.

    The residual stream carries everything that later layers see, so the run must become the other one. Any other hook
    must change the run. Tested on a short run, once for each kind of layer.
    """
    layer = _LAYER.match(name)
    block = model.blocks[int(layer[1])] if layer else model
    kind = (_LAYER.sub("", name), type(block), type(getattr(block, "attn", None)))
    known = _EFFECTS.setdefault(model, {})
    if kind not in known:
        known[kind] = _against_patching(model, name)
    if known[kind]:
        raise InterpError(known[kind])


def _against_patching(model: TransformerBridge, name: str) -> str:
    """Why a hook cannot be patched; "" where it can."""
    if re.search(r"hook_resid_(pre|mid|post)$", name):
        error = stream_error(model, name)
        if error > (1e-3 if next(model.parameters()).dtype.itemsize >= 4 else 0.3):
            return (
                f"'{name}' is not where the residual stream can be patched: patching another run's leaves this one "
                f"{error:.2g} of the spread of its logits away (one branch alone reads it); use resid_pre or resid_post"
            )
        return ""
    one, two = (probe_ids(model, rows=1, length=12, seed=seed) for seed in (1, 2))
    own, put = (record(model, ids, [name]).get(name) for ids in (one, two))
    if own is None or put is None:
        return f"'{name}' is not reached in a run of this model: it cannot be patched"
    if not own.is_floating_point() or torch.equal(own, put):
        return ""
    hooks: list[Hook] = [(name, lambda value, hook: put)]
    with torch.no_grad():
        before = model(one, return_type="logits", prepend_bos=False)
        changed = model.run_with_hooks(one, fwd_hooks=hooks, prepend_bos=False)
    if torch.equal(before, changed):
        return (
            f"'{name}' is exposed by TransformerLens but read by nothing on this architecture: patching it has "
            "no effect; patch z, or the residual stream"
        )
    return ""


class Stop(Exception):
    """Raised by a hook when nothing after it is needed; `run_to_stop` ends there."""


def stop(value: Tensor, hook: Any) -> None:
    """A hook that ends the run."""
    raise Stop


@takes_what_it_says
def run_to_stop(model: TransformerBridge, ids: Tensor, hooks: Sequence[Hook]) -> None:
    """A forward pass for its hooks only, up to the first that raises `Stop` (unlike stop_at_layer, which runs on)."""
    try:
        # without a cache: keys and values of earlier layers would be kept for tokens to come
        ids = ids_of(model, ids)
        model.run_with_hooks(ids, fwd_hooks=list(hooks), return_type=None, prepend_bos=False, use_cache=False)
    except Stop:
        pass
    except ValueError as error:
        if "Cannot add hook" in str(error):  # TransformerLens computes some activations only when told to
            raise InterpError(first_line(error)) from error
        raise
    finally:
        forget_patterns(model)


def forget_patterns(model: TransformerBridge) -> None:
    """Free the attention patterns that some bridges keep for every layer."""
    for block in model.blocks:
        attention = getattr(block, "attn", None)
        if attention is not None and getattr(attention, "_pattern", None) is not None:
            attention._pattern = None


@takes_what_it_says
def ablate_heads(
    model: TransformerBridge, heads: Heads, *, kind: Kind = "zero", record: Record | None = None
) -> list[Hook]:
    """Hooks that replace the heads' outputs (z).

    Args:
        model: any loaded model. Zero-ablation depends on its weights mode: folding moves b_V out of z.
        heads: names or (layer, head) pairs, see `parse_heads`.
        kind: "zero"; "mean", over the sequences of the record at each position; or "resample", the record's values,
            sequence by sequence.
        record: a record of `z_names` on other sequences; not needed for zero.

    Raises:
        InterpError: a head does not exist, the kind is unknown, or the record is missing, has other positions, or has
            too few sequences.
    """
    return [
        _ablation(model, name_of(model, layer, "z"), kind, record, (slice(None), slice(None), at))
        for layer, at in _by_layer(model, heads).items()
    ]


@takes_what_it_says
def ablate_mlps(
    model: TransformerBridge, layers: Iterable[int], *, kind: Kind = "zero", record: Record | None = None
) -> list[Hook]:
    """Hooks that replace MLP outputs, as `ablate_heads` does for heads, with a record of `mlp_names`."""
    return [_ablation(model, name_of(model, layer, "mlp_out"), kind, record, ()) for layer in sorted(set(layers))]


@takes_what_it_says
def freeze_patterns(model: TransformerBridge, record: Record, layers: Iterable[int] | None = None) -> list[Hook]:
    """Freeze attention at its patterns in another run (a record of `pattern_names`), whatever else is changed.

    Combined with an ablation, this is the pattern-preserving ablation: later heads attend where they did.
    """
    names = pattern_names(model) if layers is None else [name_of(model, layer, "pattern") for layer in layers]
    return [patch(model, name, record) for name in names]


@takes_what_it_says
def patch(
    model: TransformerBridge,
    name: str,
    record: Record,
    *,
    positions: Sequence[int] | Tensor | None = None,
    heads: Sequence[int] | None = None,
) -> Hook:
    """Patch in another run's activation: everywhere, at some positions, or for some heads.

    Args:
        model: any loaded model.
        name: any hook of [batch position ...], or of patterns [batch head query key], whose positions are queries.
        record: holds this activation of the other run.
        positions: where to patch; None is everywhere.
        heads: for which heads of the layer; None is all.

    Raises:
        InterpError: the record lacks the activation, patching would not have the effect that the hook's name says
            (tested on a short run) or, when the hook runs, shapes differ.
    """
    values = _recorded(record, checked(model, name))
    check_effect(model, name)
    axes = [heads, positions] if name.endswith(("hook_pattern", "hook_attn_scores")) else [positions, heads]
    at: list[Any] = [
        slice(None) if axis is None else torch.tensor([int(i) for i in axis], dtype=torch.long) for axis in axes
    ]
    if positions is not None and heads is not None:
        at[0] = at[0][:, None]  # all combinations
    where = (slice(None), *at)[: values.ndim]
    shape, kept = values.shape, values[where]  # a copy, so that the rest of the record can be freed

    def hook(value: Tensor, hook: Any) -> Tensor:
        if value.shape != shape:
            raise InterpError(
                f"'{name}' is {tuple(value.shape)} here and {tuple(shape)} in the record: use sequences of one shape"
            )
        value = value.clone()
        value[where] = kept.to(value)
        return value

    return name, hook


@takes_what_it_says
def patch_where(model: TransformerBridge, name: str, record: Record, where: Tensor) -> Hook:
    """Patch in another run's activation at positions that differ between sequences, such as a named part of each.

    Args:
        model: any loaded model.
        name: any hook of [batch position ...].
        record: holds this activation of the other run.
        where: [batch position], bool.

    Raises:
        InterpError: as `patch` does.
    """
    values = _recorded(record, checked(model, name))
    check_effect(model, name)
    if values.shape[:2] != where.shape:
        raise InterpError(
            f"'{name}' is {tuple(values.shape)} in the record: give places [batch position] of that shape"
        )
    kept = values[where.to(values.device)]

    def hook(value: Tensor, hook: Any) -> Tensor:
        if value.shape[:2] != where.shape:
            raise InterpError(
                f"'{name}' is {tuple(value.shape)} here, and places are {tuple(where.shape)}: use one shape"
            )
        value = value.clone()
        value[where.to(value.device)] = kept.to(value)
        return value

    return name, hook


@takes_what_it_says
def embedding_rows(model: TransformerBridge, tokens: Tensor | Sequences, rows: Mapping[int, Tensor]) -> list[Hook]:
    """Replace the input rows [d_model] of some token ids in these sequences; the output side is unchanged."""
    _check_rows(model, rows)
    ids = ids_of(model, tokens)

    def hook(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for token, row in rows.items():
            value[ids.to(value.device) == token] = row.to(value)
        return value

    return [(checked(model, "hook_embed"), hook)]


@takes_what_it_says
def unembedding_rows(
    model: TransformerBridge, rows: Mapping[int, Tensor], biases: Mapping[int, float] | None = None
) -> list[Hook]:
    """Replace the output rows [d_model] (and biases) of some tokens; the input side is unchanged."""
    _check_rows(model, rows)
    own = getattr(model.original_model.get_output_embeddings(), "bias", None)
    seen: list[Tensor] = []

    def before(value: Tensor, hook: Any) -> None:
        seen.append(value)

    def after(value: Tensor, hook: Any) -> Tensor:
        value, residual = value.clone(), seen.pop()
        for token, row in rows.items():
            bias = 0.0 if own is None else own[token].detach()
            value[..., token] = residual @ row.to(residual) + (bias if biases is None else biases.get(token, bias))
        return value

    return [(checked(model, "unembed.hook_in"), before), (checked(model, "unembed.hook_out"), after)]


@takes_what_it_says
def project_out(model: TransformerBridge, name: str, direction: Tensor) -> Hook:
    """Remove the component of an activation [... d] along a direction [d].

    Raises:
        InterpError: the direction is zero or, when the hook runs, has another width.
    """
    direction = direction.float()
    if direction.ndim != 1:
        raise InterpError(f"the direction to project out is {tuple(direction.shape)}: give one of [d]")
    if not bool(direction.norm() > 0):
        raise InterpError("the direction to project out is zero: give a nonzero one")
    unit = direction / direction.norm()

    def hook(value: Tensor, hook: Any) -> Tensor:
        if value.shape[-1] != len(unit):
            raise InterpError(f"'{name}' has width {value.shape[-1]} and the direction {len(unit)}: give one that fits")
        along = unit.to(value)
        return value - (value @ along)[..., None] * along

    return checked(model, name), hook


@takes_what_it_says
def path_patch(
    model: TransformerBridge,
    tokens: Tensor | Sequences,
    other: Record,
    senders: Heads = (),
    receivers: Heads | None = None,
    *,
    via: Via = "k",
    sender_mlps: Iterable[int] = (),
    base: Record | None = None,
) -> list[Hook]:
    """Hooks for a run in which only the paths from senders to receivers carry another run's values.

    In a first run, senders are set to their values in `other`, every other head is frozen at its value on `tokens`, and
    MLPs are recomputed; in the run with these hooks, the receivers' query, key or value is set to its value from that
    first run. Without receivers, the path is to the logits, and the hooks are those of the first run. Query heads that
    share a key or value are set together.

    Args:
        model: any loaded model.
        tokens: sequences, or their ids [batch position], that the hooks are for.
        other: a record of `z_names` (and of `mlp_names` for MLPs) of the other run.
        senders: heads, see `parse_heads`.
        receivers: heads in later layers than every sender, or None for the logits.
        via: which of the receivers' query, key or value the path enters.
        sender_mlps: layers whose MLPs are also senders.
        base: a record of `z_names` on `tokens`; recorded here if not given.

    Raises:
        InterpError: a head does not exist, there is no sender, a receiver is not in a later layer than every sender, or
            a record lacks what is needed.

    Source:
        Wang et al. 2022, arXiv 2211.00593.
    """
    sent, sender_mlps = _by_layer(model, senders), list(sender_mlps)
    if not sent and not sender_mlps:
        raise InterpError("a path needs a sender: name a head, or an MLP in sender_mlps")
    if via not in get_args(Via):
        raise InterpError(f"unknown path '{via}': use q, k or v")
    base = record(model, tokens, z_names(model)) if base is None else base
    hooks: list[Hook] = []
    for layer in attention_layers(model):
        hooks.append(patch(model, name_of(model, layer, "z"), base))
        if layer in sent:
            hooks.append(patch(model, name_of(model, layer, "z"), other, heads=sent[layer]))
    hooks += [patch(model, name_of(model, layer, "mlp_out"), other) for layer in sender_mlps]
    if receivers is None:
        return hooks
    reached = _by_layer(model, receivers)
    first = 1 + max([*sent, *sender_mlps])
    if min(reached, default=first) < first:
        nearest = head_name((min(reached), reached[min(reached)][0]))
        raise InterpError(f"head {nearest} is not after every sender: a path runs from one layer to a later one")
    names = {layer: name_of(model, layer, via) for layer in reached}
    arrived = record(model, tokens, names.values(), hooks=hooks)
    if via != "q":
        reached = {layer: sorted({kv_head(model, head) for head in at}) for layer, at in reached.items()}
    return [patch(model, names[layer], arrived, heads=at) for layer, at in reached.items()]


@takes_what_it_says
def kv_head(model: TransformerBridge, head: int) -> int:
    """The key-value head that a query head reads, where several share one."""
    shared = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    return head // (model.cfg.n_heads // shared)


def _by_layer(model: TransformerBridge, heads: Heads) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for layer, head in sorted(set(parse_heads(model, heads))):
        found.setdefault(layer, []).append(head)
    return found


def _check_rows(model: TransformerBridge, rows: Mapping[int, Tensor]) -> None:
    size, width = model.original_model.get_input_embeddings().weight.shape
    for token, row in rows.items():
        if not 0 <= token < size:
            raise InterpError(f"no token {token}: this model has ids 0 to {size - 1}")
        if tuple(row.shape) != (width,):
            raise InterpError(f"the row for token {token} is {tuple(row.shape)}: rows of this model are ({width},)")


def _recorded(record: Record | None, name: str) -> Tensor:
    if record is None or name not in record:
        raise InterpError(f"the record has no '{name}': record it with record(model, ids, [...])")
    return record[name]


def _ablation(model: TransformerBridge, name: str, kind: str, record: Record | None, at: tuple[Any, ...]) -> Hook:
    """A hook that replaces an activation by zero, the record's mean or the record's own value."""
    if kind not in get_args(Kind):
        raise InterpError(f"unknown ablation '{kind}': use zero, mean or resample")
    values = None if kind == "zero" else _recorded(record, name)
    check_effect(model, name)

    def hook(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        if values is None:
            value[at] = 0.0
            return value
        if values.shape[1:] != value.shape[1:]:
            raise InterpError(
                f"'{name}' is {tuple(value.shape)} here and {tuple(values.shape)} in the record: "
                "use sequences of one length"
            )
        if kind == "resample" and len(values) < len(value):
            raise InterpError(
                f"{len(value)} sequences to resample from a record of {len(values)}: record at least that many"
            )
        new = values.mean(0, keepdim=True).expand_as(value) if kind == "mean" else values[: len(value)]
        value[at] = new[at].to(value)
        return value

    return name, hook
