"""What can be changed in a forward pass? Interventions as (hook name, function) pairs; add two lists to combine them.

    hooks = ablate_heads(model, [(1, 2)], kind="mean", record=record(model, others, z_names(model)))
    logits = model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False)

Nothing here changes the model: TransformerLens adds the hooks for one call and takes them away, also after an exception.
A *record* is a dictionary from hook name to activation, as `record` makes it of another run.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from interp.errors import InterpError

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

Hook = tuple[str, Callable[..., Any]]
Record = Mapping[str, "Tensor"]
Kind = Literal["zero", "mean", "resample"]
Via = Literal["q", "k", "v"]
Head = tuple[int, int]


def name_of(model: TransformerBridge, layer: int, what: str) -> str:
    """The hook of one layer: `z`, `q`, `k`, `v`, `pattern`, `attn_out`, `mlp_out`, `resid_pre`, `resid_post`, ...

    Raises `InterpError` for a layer or a hook that this model lacks.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise InterpError(f"no layer {layer}: this model has layers 0 to {model.cfg.n_layers - 1}")
    inner = f"blocks.{layer}.attn.hook_{what}"
    return checked(model, inner if inner in model.hook_dict else f"blocks.{layer}.hook_{what}")


def checked(model: TransformerBridge, name: str) -> str:
    """The name itself. Raises `InterpError` where the model has no such hook: TransformerLens would say nothing."""
    if name in model.hook_dict:
        return name
    near = difflib.get_close_matches(name, list(model.hook_dict), n=3, cutoff=0.5)
    raise InterpError(f"this model has no hook '{name}': did you mean {', '.join(near) or 'one of model.hook_dict'}?")


def z_names(model: TransformerBridge) -> list[str]:
    """The hooks of what all heads of each layer read out, before W_O: [batch position head d_head]."""
    return [name_of(model, layer, "z") for layer in range(model.cfg.n_layers)]


def pattern_names(model: TransformerBridge) -> list[str]:
    """The hooks of each layer's attention, [batch head query key]."""
    return [name_of(model, layer, "pattern") for layer in range(model.cfg.n_layers)]


def mlp_names(model: TransformerBridge) -> list[str]:
    """The hooks of what each layer's MLP writes, [batch position d_model]."""
    return [name_of(model, layer, "mlp_out") for layer in range(model.cfg.n_layers)]


def record(
    model: TransformerBridge, ids: Tensor, names: Iterable[str], *, hooks: Sequence[Hook] = ()
) -> dict[str, Tensor]:
    """Activations of a run on `ids` [batch position], with `hooks` at work, and nothing but these.

    Raises `InterpError` for a hook that this model lacks.
    """
    wanted = [checked(model, name) for name in names]
    found: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> None:
        found[name] = value.detach().clone()

    # after the interventions at the same place, so that it sees what they leave
    keeping = [(name, _bound(keep, name)) for name in wanted]
    # nothing behind the unembedding's input is asked for: its logits would be the larger part of the memory
    ending = [] if any(name.startswith("unembed") for name, _ in [*hooks, *keeping]) else [("unembed.hook_in", stop)]
    run_to_stop(model, ids, [*hooks, *keeping, *ending])
    return found


class Stop(Exception):
    """Raised by a hook when nothing behind it is needed; `run_to_stop` ends there."""


def stop(value: Tensor, hook: Any) -> None:
    """A hook that ends the run."""
    raise Stop


def run_to_stop(model: TransformerBridge, ids: Tensor, hooks: Sequence[Hook]) -> None:
    """A forward pass for its hooks alone, up to the first that raises `Stop`; TransformerLens's stop_at_layer runs on."""
    try:
        # without a cache: keys and values of earlier layers would be kept for tokens to come
        model.run_with_hooks(ids, fwd_hooks=list(hooks), return_type=None, prepend_bos=False, use_cache=False)
    except Stop:
        pass
    finally:
        forget_patterns(model)


def forget_patterns(model: TransformerBridge) -> None:
    """Free the attention that some bridges keep of every layer."""
    for block in model.blocks:
        if getattr(block.attn, "_pattern", None) is not None:
            block.attn._pattern = None


def ablate_heads(
    model: TransformerBridge, heads: Iterable[Head], *, kind: Kind = "zero", record: Record | None = None
) -> list[Hook]:
    """Take away what heads (layer, head) read out: by zero, or by what other sequences have there.

    `mean` puts the mean over the sequences of `record` (of `z_names`) at each position, `resample` the record's
    own, sequence by sequence. Zero depends on the weights mode: folding moves b_V out of z. Raises `InterpError` for a
    head that does not exist, and for a record that is missing, of other positions, or of too few sequences.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, head in heads:
        _check_head(model, layer, head)
        by_layer.setdefault(layer, []).append(head)
    return [_replaced(model, name_of(model, layer, "z"), kind, record, at) for layer, at in sorted(by_layer.items())]


def ablate_mlps(
    model: TransformerBridge, layers: Iterable[int], *, kind: Kind = "zero", record: Record | None = None
) -> list[Hook]:
    """Take away what MLPs write, as `ablate_heads` does for heads, with a record of `mlp_names`."""
    return [_replaced(model, name_of(model, layer, "mlp_out"), kind, record, None) for layer in sorted(set(layers))]


def freeze_patterns(model: TransformerBridge, record: Record, layers: Iterable[int] | None = None) -> list[Hook]:
    """Attention as it was in another run (a record of `pattern_names`), whatever else is changed.

    With an ablation beside it, this is the pattern-preserving ablation: later heads look where they did.
    """
    chosen = range(model.cfg.n_layers) if layers is None else layers
    return [patch(model, name_of(model, layer, "pattern"), record) for layer in chosen]


def patch(
    model: TransformerBridge,
    name: str,
    record: Record,
    *,
    positions: Sequence[int] | Tensor | None = None,
    heads: Sequence[int] | None = None,
) -> Hook:
    """Put another run's activation in: everywhere, or at some positions, or for some heads.

    `name` is any hook of [batch position ...] or of patterns [batch head query key], whose positions are queries.
    Raises `InterpError` where the record lacks it or, when the hook runs, where shapes differ.
    """
    values = _recorded(record, checked(model, name))
    is_pattern = name.endswith(("hook_pattern", "hook_attn_scores"))

    def hook(value: Tensor, hook: Any) -> Tensor:
        if value.shape != values.shape:
            raise InterpError(
                f"'{name}' is {tuple(value.shape)} here and {tuple(values.shape)} in the record: use sequences of one shape"
            )
        index: list[Any] = [slice(None)] * value.ndim
        if heads is not None:
            index[1 if is_pattern else 2] = list(heads)
        value = value.clone()
        if positions is None:
            value[tuple(index)] = values[tuple(index)].to(value)
            return value
        for position in [int(p) for p in positions]:
            index[2 if is_pattern else 1] = position
            value[tuple(index)] = values[tuple(index)].to(value)
        return value

    return name, hook


def embedding_rows(model: TransformerBridge, ids: Tensor, rows: Mapping[int, Tensor]) -> list[Hook]:
    """Feed other input rows [d_model] for some token ids of `ids` [batch position]; the output side is left alone."""
    _check_ids(model, rows)

    def hook(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for token, row in rows.items():
            value[ids.to(value.device) == token] = row.to(value)
        return value

    return [(checked(model, "hook_embed"), hook)]


def unembedding_rows(
    model: TransformerBridge, rows: Mapping[int, Tensor], biases: Mapping[int, float] | None = None
) -> list[Hook]:
    """Read some tokens' logits with other output rows [d_model] (and biases); the input side is left alone."""
    _check_ids(model, rows)
    head = model.original_model.get_output_embeddings()
    own = getattr(head, "bias", None)
    seen: dict[str, Tensor] = {}

    def before(value: Tensor, hook: Any) -> None:
        seen["residual"] = value

    def after(value: Tensor, hook: Any) -> Tensor:
        value, residual = value.clone(), seen.pop("residual")
        for token, row in rows.items():
            bias = 0.0 if own is None else own[token].detach()
            value[..., token] = residual @ row.to(residual) + (bias if biases is None else biases.get(token, bias))
        return value

    return [(checked(model, "unembed.hook_in"), before), (checked(model, "unembed.hook_out"), after)]


def project_out(model: TransformerBridge, name: str, direction: Tensor) -> Hook:
    """Remove what an activation [... d] has along a direction [d]. Raises `InterpError` for a zero or misfitting one."""
    norm = direction.norm()
    if not bool(norm > 0):
        raise InterpError("the direction to project out is zero: give one of some length")
    unit = direction / norm

    def hook(value: Tensor, hook: Any) -> Tensor:
        if value.shape[-1] != len(unit):
            raise InterpError(f"'{name}' has width {value.shape[-1]} and the direction {len(unit)}: give one that fits")
        along = unit.to(value)
        return value - (value @ along)[..., None] * along

    return checked(model, name), hook


def path_patch(
    model: TransformerBridge,
    ids: Tensor,
    other: Record,
    senders: Iterable[Head] = (),
    receivers: Iterable[Head] | None = None,
    *,
    via: Via = "k",
    sender_mlps: Iterable[int] = (),
    base: Record | None = None,
) -> list[Hook]:
    """Hooks for a run on `ids` in which only the paths from senders to receivers carry another run's values.

    As in Wang et al. (2022, arXiv 2211.00593): in a first run, senders (heads, or MLPs of `sender_mlps`) are set to their
    values in `other` (a record of `z_names`, and of `mlp_names` for MLPs), every other head is frozen at its value on
    `ids`, and MLPs are recomputed; in the run that the hooks are for, the receivers' query, key or value (`via`) is what it
    was there. Without receivers, the path is to the logits: the hooks are those of the first run. Query heads that
    share a key or value are served together. `base` is a record of `z_names` on `ids`, made if it is not given.

    Raises `InterpError` for heads that do not exist, no sender, a receiver that is not behind every sender, or records that
    lack what is needed.
    """
    senders, sender_mlps = list(senders), list(sender_mlps)
    if not senders and not sender_mlps:
        raise InterpError("a path needs a sender: name a head, or an MLP in sender_mlps")
    if via not in ("q", "k", "v"):
        raise InterpError(f"unknown path '{via}': use q, k or v")
    base = record(model, ids, z_names(model)) if base is None else base
    sent: dict[int, list[int]] = {}
    for layer, head in senders:
        _check_head(model, layer, head)
        sent.setdefault(layer, []).append(head)
    hooks: list[Hook] = []
    for layer in range(model.cfg.n_layers):
        name = name_of(model, layer, "z")
        hooks.append(patch(model, name, base))
        if layer in sent:
            hooks.append(patch(model, name, other, heads=sent[layer]))
    hooks += [patch(model, name_of(model, layer, "mlp_out"), other) for layer in sender_mlps]
    if receivers is None:
        return hooks
    last = max([layer for layer, _ in senders] + [layer + 1 for layer in sender_mlps])
    reached: dict[int, set[int]] = {}
    for layer, head in receivers:
        _check_head(model, layer, head)
        if layer < last or (layer == last and senders and last in sent):
            raise InterpError(
                f"head L{layer}H{head} is not behind every sender: a path runs from a layer to a later one"
            )
        reached.setdefault(layer, set()).add(kv_head(model, head) if via != "q" else head)
    names = {layer: name_of(model, layer, via) for layer in reached}
    arrived = record(model, ids, names.values(), hooks=hooks)
    return [patch(model, names[layer], arrived, heads=sorted(at)) for layer, at in sorted(reached.items())]


def kv_head(model: TransformerBridge, head: int) -> int:
    """The key and value head that a query head reads, where several share one."""
    shared = getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
    return head // (model.cfg.n_heads // shared)


def _bound(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda value, hook: function(value, hook, name)


def _check_head(model: TransformerBridge, layer: int, head: int) -> None:
    name_of(model, layer, "z")
    if not 0 <= head < model.cfg.n_heads:
        raise InterpError(f"no head {head} in layer {layer}: this model has heads 0 to {model.cfg.n_heads - 1}")


def _check_ids(model: TransformerBridge, rows: Mapping[int, Tensor]) -> None:
    size, width = model.original_model.get_input_embeddings().weight.shape
    for token, row in rows.items():
        if not 0 <= token < size:
            raise InterpError(f"no token {token}: this model has ids 0 to {size - 1}")
        if tuple(row.shape) != (width,):
            raise InterpError(f"the row for token {token} is {tuple(row.shape)}: rows of this model are ({width},)")


def _recorded(record: Record | None, name: str) -> Tensor:
    if record is None or name not in record:
        raise InterpError(f"the record has no '{name}': make it with record(model, ids, [...]) of that name")
    return record[name]


def _replaced(model: TransformerBridge, name: str, kind: str, record: Record | None, heads: list[int] | None) -> Hook:
    """A hook that puts zero, the record's mean or the record's own in the place of an activation."""
    if kind not in ("zero", "mean", "resample"):
        raise InterpError(f"unknown ablation '{kind}': use zero, mean or resample")
    values = None if kind == "zero" else _recorded(record, name)

    def hook(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        at: Any = slice(None) if heads is None else (slice(None), slice(None), heads)
        if values is None:
            value[at] = 0.0
            return value
        if values.shape[1:] != value.shape[1:]:
            raise InterpError(
                f"'{name}' is {tuple(value.shape)} here and {tuple(values.shape)} in the record: use sequences of one length"
            )
        if kind == "resample" and len(values) < len(value):
            raise InterpError(
                f"{len(value)} sequences to resample from a record of {len(values)}: record at least as many others"
            )
        new = values.mean(0, keepdim=True).expand_as(value) if kind == "mean" else values[: len(value)]
        value[at] = new[at].to(value)
        return value

    return name, hook
