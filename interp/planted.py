"""Which stage of copying is broken? Here it is known: models in which one was broken on purpose, for chosen tokens only.

    with planted(model, ids, ["content"], heads=calls_on_ordinary_tokens):
        interp.run("glitch_attribution", model, Pool("broken", ids))

Damage to rows edits the model's own matrices, damage to heads is a hook that acts at the chosen tokens; both end with the block.
They exist to test the analysis: it must name what was planted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.heads import called
from interp.hooks import Head, kv_head, name_of
from interp.stages import Unembedding
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
_AGAINST = 3.0  # times what the best induction head writes for a token, written against all


@contextmanager
def planted(
    model: TransformerBridge, ids: Sequence[int], defects: Sequence[str], *, heads: xr.Dataset, seed: int = 0
) -> Iterator[None]:
    """Break the copying of some tokens in the ways named (`DEFECTS`); everything is as before afterwards.

    `heads` is what `heads.calls` found on ordinary tokens of the undamaged model. `collapsed` sets the input rows to their mean,
    at the rows' mean norm (`nearly-collapsed`: with 2% noise); `random-rows` replaces the unembedding rows by Gaussian ones of the same
    norm, `shrunk-rows` makes them shorter; `blind-values` and `blind-keys` give the induction heads, at the chosen tokens, the mean
    value or key of all; `blind-previous` does so for the values of the previous-token heads; `suppressed` adds to what the best
    induction head carries from them a write against their mean output row, the same for all, three times as large
    as what it writes for each: choose tokens whose output rows are related (`related`). Raises `InterpError` for an unknown
    defect, for damage to the output rows of a model whose embeddings are tied, and where no head is called what the defect needs.
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
                stack.enter_context(_edited(_rows(model, "input"), chosen, partial(_collapsed, defect, random)))
            elif defect.endswith("rows"):
                if _rows(model, "input") is _rows(model, "output"):
                    raise InterpError(
                        f"'{defect}' needs output rows of their own, and this model ties them: use an untied one"
                    )
                stack.enter_context(_edited(_rows(model, "output"), chosen, partial(_unread, defect, random)))
            else:
                found = _needed(heads, "previous" if defect == "blind-previous" else "induction", defect)
                if defect == "suppressed":
                    change = {found[0][0]: {kv_head(model, found[0][1]): _against(model, chosen, found[0])}}
                else:
                    change = {}
                    for layer, head in found:
                        change.setdefault(layer, {})[kv_head(model, head)] = _blind
                stack.enter_context(_hooked(model, chosen, "k" if defect == "blind-keys" else "v", change))
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
def _edited(weight: Any, chosen: Tensor, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = weight.data[chosen].clone()
    try:
        weight.data[chosen] = edit(before.clone())
        yield
    finally:
        weight.data[chosen] = before


def _collapsed(defect: str, random: Any, rows: Tensor) -> Tensor:
    import torch

    norm = rows.norm(dim=-1).mean()
    one = torch.nn.functional.normalize(rows.mean(0), dim=-1) * norm
    if defect == "collapsed":
        return one.expand_as(rows)
    noise = torch.randn(rows.shape, generator=random).to(rows)
    return one + _NOISE * norm * torch.nn.functional.normalize(noise, dim=-1)


def _unread(defect: str, random: Any, rows: Tensor) -> Tensor:
    import torch

    if defect == "shrunk-rows":
        return _SHRUNK * rows
    noise = torch.randn(rows.shape, generator=random).to(rows)
    return torch.nn.functional.normalize(noise, dim=-1) * rows.norm(dim=-1, keepdim=True)


def related(model: TransformerBridge, among: Sequence[int], count: int, *, seed: int = 0) -> list[int]:
    """A token drawn from `among` and its nearest there by output rows (cosine, the vocabulary's mean subtracted), sorted."""
    import torch

    ids = torch.tensor(sorted(set(among)), device=model.cfg.device)
    rows = _rows(model, "output").detach()
    rows = torch.nn.functional.normalize(rows[ids] - rows.mean(0), dim=-1)
    first = int(torch.randint(len(ids), (), generator=local_generator(seed, 1 << 21)))
    return sorted(ids[(rows @ rows[first]).argsort(descending=True)[:count]].tolist())


def _blind(values: Tensor, mean: Tensor) -> Tensor:
    return mean.expand_as(values)


def _against(model: TransformerBridge, chosen: Tensor, head: Head) -> Callable[[Tensor, Tensor], Tensor]:
    """Values [place d_head] with a write against the mean output row of the chosen tokens added."""
    import torch

    output = _rows(model, "output").detach()
    reading = Unembedding(model).gain * (output[chosen] - output.mean(0))  # [token d_model]
    into = model.W_O[head[0]][head[1]].detach() @ reading.T  # [d_head token]: logits of a unit of value
    unit = torch.nn.functional.normalize(into.mean(1), dim=-1)

    def change(values: Tensor, mean: Tensor) -> Tensor:
        own = ((values - mean) @ into.to(values)).max(-1).values.mean() if len(values) else 0.0
        return values - _AGAINST * own / (unit @ into).mean() * unit

    return change


Change = Callable[["Tensor", "Tensor"], "Tensor"]


@contextmanager
def _hooked(
    model: TransformerBridge, chosen: Tensor, what: str, changes: dict[int, dict[int, Change]]
) -> Iterator[None]:  # fmt: skip
    """At the chosen tokens, heads' values or keys are changed; each change sees them and the mean over all behind the first."""
    import torch

    seen: dict[str, Tensor] = {}

    def look(ids: Tensor, hook: Any) -> None:
        seen["at"] = torch.isin(ids, chosen.to(ids.device))

    def changed(heads: dict[int, Change]) -> Callable[[Tensor, Any], Tensor]:
        def hook(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            for head, change in heads.items():
                mean = value[:, 1:, head].mean((0, 1))
                value[seen["at"], head] = change(value[seen["at"], head], mean)
            return value

        return hook

    added = [("embed.hook_in", look), *((name_of(model, la, what), changed(heads)) for la, heads in changes.items())]
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
