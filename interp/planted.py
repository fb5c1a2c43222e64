"""Which stage of copying is broken? Here it is known: models in which one was broken on purpose, for chosen tokens only.

    with planted(model, ids, ["content"], heads=calls_on_ordinary_tokens):
        interp.run("glitch_attribution", model, Pool("broken", ids))

Damage to rows edits the model's own matrices, damage to heads is a hook that acts at the chosen tokens; both end with the block.
They exist to test the analysis: it must name what was planted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.heads import called
from interp.hooks import Head, kv_head, name_of
from interp.tokens import local_generator

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

# defect -> the stage that it breaks
DEFECTS = {
    "collapsed": "identity", "nearly-collapsed": "identity", "random-rows": "readout", "shrunk-rows": "readout",
    "blind-values": "content", "blind-keys": "matching", "blind-previous": "matching", "suppressed": "suppression",
}  # fmt: skip
_NOISE = 0.02  # of a row's norm, for rows that nearly coincide
_SHRUNK = 0.4  # what is left of a row's length
_AGAINST = 2.0  # times what the best induction head writes for a token, written against it


@contextmanager
def planted(
    model: TransformerBridge, ids: Sequence[int], defects: Sequence[str], *, heads: xr.Dataset, seed: int = 0
) -> Iterator[None]:
    """Break the copying of some tokens in the ways named (`DEFECTS`); everything is as before afterwards.

    `heads` is what `heads.calls` found on ordinary tokens of the undamaged model. `collapsed` sets the input rows to their mean,
    at the rows' mean norm (`nearly-collapsed`: with 2% noise); `random-rows` replaces the unembedding rows by Gaussian ones of the same
    norm, `shrunk-rows` makes them shorter; `blind-values` and `blind-keys` give the induction heads, at the chosen tokens, the mean
    value or key of all; `blind-previous` does so for the values of the previous-token heads; `suppressed` lets the best
    induction head write against the chosen tokens where it would copy them, twice as strongly. Raises `InterpError` for an unknown defect, for damage to the
    output rows of a model whose embeddings are tied, and where no head is called what the defect needs.
    """
    import torch

    for defect in defects:
        if defect not in DEFECTS:
            raise InterpError(f"unknown defect '{defect}': use one of {', '.join(DEFECTS)}")
    chosen = torch.tensor(sorted(set(ids)), device=model.cfg.device)
    random = local_generator(seed, 1 << 20)
    with ExitStack() as stack:
        for defect in defects:
            if defect.endswith("collapsed"):
                stack.enter_context(
                    _edited(_rows(model, "input"), chosen, lambda r, d=defect: _collapsed(r, d, random))
                )
            elif defect.endswith("rows"):
                if _rows(model, "input") is _rows(model, "output"):
                    raise InterpError(
                        f"'{defect}' needs output rows of their own, and this model ties them: use an untied one"
                    )
                stack.enter_context(_edited(_rows(model, "output"), chosen, lambda r, d=defect: _unread(r, d, random)))
            else:
                found = _needed(heads, "previous" if defect == "blind-previous" else "induction", defect)
                best, what = found[:1], "k" if defect == "blind-keys" else "v"
                against = -_AGAINST if defect == "suppressed" else 0.0
                stack.enter_context(_hooked(model, chosen, best if against else found, what, against))
        yield


def _rows(model: TransformerBridge, side: str) -> Any:
    network = model.original_model
    return (network.get_input_embeddings() if side == "input" else network.get_output_embeddings()).weight


def _needed(heads: xr.Dataset, kind: str, defect: str) -> list[Head]:
    found = called(heads, kind)
    if not found:
        raise InterpError(f"'{defect}' needs a head that is called {kind}: this model has none")
    return found


@contextmanager
def _edited(weight: Any, chosen: Tensor, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = weight.data[chosen].clone()
    try:
        weight.data[chosen] = change(before.clone())
        yield
    finally:
        weight.data[chosen] = before


def _collapsed(rows: Tensor, defect: str, random: Any) -> Tensor:
    import torch

    norm = rows.norm(dim=-1).mean()
    one = torch.nn.functional.normalize(rows.mean(0), dim=-1) * norm
    if defect == "collapsed":
        return one.expand_as(rows)
    noise = torch.randn(rows.shape, generator=random).to(rows)
    return one + _NOISE * norm * torch.nn.functional.normalize(noise, dim=-1)


def _unread(rows: Tensor, defect: str, random: Any) -> Tensor:
    import torch

    if defect == "shrunk-rows":
        return _SHRUNK * rows
    noise = torch.randn(rows.shape, generator=random).to(rows)
    return torch.nn.functional.normalize(noise, dim=-1) * rows.norm(dim=-1, keepdim=True)


@contextmanager
def _hooked(model: TransformerBridge, chosen: Tensor, heads: Sequence[Head], what: str, kept: float) -> Iterator[None]:
    """At the chosen tokens, these heads' values or keys: the mean over all behind the first, and `kept` times what differs from it."""
    import torch

    seen: dict[str, Tensor] = {}

    def look(ids: Tensor, hook: Any) -> None:
        seen["at"] = torch.isin(ids, chosen.to(ids.device))

    def blind(of: set[int]) -> Callable[[Tensor, Any], Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            value, at = value.clone(), seen["at"]
            for head in of:
                mean = value[:, 1:, head].mean((0, 1))
                value[:, :, head] = value[:, :, head].where(~at[..., None], mean + kept * (value[:, :, head] - mean))
            return value

        return hook

    by_layer: dict[int, set[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, set()).add(kv_head(model, head))
    added = [("embed.hook_in", look), *((name_of(model, layer, what), blind(of)) for layer, of in by_layer.items())]
    with _permanently(model, added):
        yield


@contextmanager
def _permanently(model: TransformerBridge, hooks: Sequence[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    """Hooks that every pass has, until the end."""
    points = [(model.hook_dict[name], hook) for name, hook in hooks]
    before = [list(point.fwd_hooks) for point, _ in points]
    for point, hook in points:
        point.add_hook(hook, is_permanent=True)
    try:
        yield
    finally:
        for (point, _), old in zip(points, before, strict=True):
            for added in [h for h in point.fwd_hooks if h not in old]:
                added.hook.remove()
                point.fwd_hooks.remove(added)
