"""Does the analysis name the stage of copying that is broken? Models with one stage broken on purpose.

    with planted(model, ids, ["content"], heads=calls_on_ordinary_tokens):
        interp.run("glitch_attribution", model, Pool("broken", ids))

Damage to rows edits the model's own matrices; damage to heads is a hook that acts at the chosen tokens. Both are undone
at the end of the block.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import xarray as xr
from torch import Generator, Tensor
from torch.nn.functional import normalize
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.heads import heads_of_kind
from interp.hooks import Head, Hook, kv_head, name_of
from interp.repairs.rows import embedding_matrices, rows_replaced
from interp.repairs.unembedding import Unembedding
from interp.tokens import local_generator

# defect -> the stage that it breaks
DEFECTS = {
    "collapsed": "identity",
    "nearly-collapsed": "identity",
    "random-rows": "readout",
    "shrunk-rows": "readout",
    "blind-values": "content",
    "blind-keys": "matching",
    "blind-previous": "matching",
    "suppressed": "suppression",
}
_OF_ROWS = ("collapsed", "rows")  # suffix of the names of damage to rows
_NOISE = 0.02  # noise as a share of a row's norm, for rows that nearly coincide
_SHRUNK = 0.4  # remaining share of a row's norm
_AGAINST = 3.0  # size of the write against all, relative to what the best induction head writes for a token

Change = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def planted(
    model: TransformerBridge,
    ids: Sequence[int],
    defects: Sequence[str],
    *,
    heads: xr.Dataset,
    part: float = 1.0,
    seed: int = 0,
) -> Iterator[None]:
    """Break the copying of some tokens in the named ways, and undo it afterwards.

    Args:
        model: any loaded model.
        ids: the tokens to break.
        defects: any of `DEFECTS`. `collapsed` sets the input rows to their mean, scaled to the rows' mean norm
            (`nearly-collapsed`: with 2% noise); `random-rows` replaces the unembedding rows by Gaussian ones of the
            same norm, `shrunk-rows` makes them shorter; `blind-values` and `blind-keys` give the induction heads, at
            the chosen tokens, the mean value or key over all tokens; `blind-previous` does so for the values of the
            previous-token heads; `suppressed` adds to what the best induction head carries from them a write against
            their mean output row, the same for all, three times as large as what it writes for each: choose tokens
            whose output rows are related (`related`).
        heads: what `heads.classify_heads` found on ordinary tokens of the undamaged model.
        part: strength of the damage, above 0 and up to 1: rows, values and keys move this fraction of the way.
        seed: determines the random rows.

    Raises:
        InterpError: an unknown defect, a part outside 0 to 1, damage to the output rows of a model with tied
            embeddings, or no head of the kind that the defect needs.
    """
    if not 0 < part <= 1:
        raise InterpError(f"part {part}: use a number above 0, up to 1")
    for defect in defects:
        if defect not in DEFECTS:
            raise InterpError(f"unknown defect '{defect}': use one of {', '.join(DEFECTS)}")
    chosen = torch.tensor(sorted(set(ids)), device=model.cfg.device)
    random = local_generator(seed, 1 << 20)
    weights = embedding_matrices(model)
    with ExitStack() as stack:
        # rows first: a write against tokens is against the rows that they then have
        for defect in sorted(defects, key=lambda d: not d.endswith(_OF_ROWS)):
            if defect.endswith(_OF_ROWS):
                side = "output" if defect.endswith("rows") else "input"
                if side not in weights:
                    raise InterpError(
                        f"'{defect}' needs separate output rows, and this model ties them: use an untied model"
                    )
                own = weights[side].detach()[chosen]
                rows = own + part * (_damaged(defect, own, random) - own)
                stack.enter_context(rows_replaced(model, ids, {side: rows}))
                continue
            kind = "previous" if defect == "blind-previous" else "induction"
            found = heads_of_kind(heads, kind)
            if not found:
                raise InterpError(f"'{defect}' needs a head that is classified as {kind}: this model has none")
            change: Change = _blind
            if defect == "suppressed":
                found, change = found[:1], _against(model, chosen, found[0])
            stack.enter_context(
                _hooked(model, chosen, "k" if defect == "blind-keys" else "v", found, _partly(change, part))
            )
        yield


def _damaged(defect: str, rows: Tensor, random: Generator) -> Tensor:
    """The rows [token d_model] that replace the tokens' own."""
    if defect == "shrunk-rows":
        return _SHRUNK * rows
    norm = rows.norm(dim=-1, keepdim=True)
    mean = normalize(rows.mean(0), dim=-1) * norm.mean()
    if defect == "collapsed":
        return mean.expand_as(rows)
    noise = normalize(torch.randn(rows.shape, generator=random).to(rows), dim=-1)
    return noise * norm if defect == "random-rows" else mean + _NOISE * norm.mean() * noise


def related(model: TransformerBridge, among: Sequence[int], count: int, *, seed: int = 0) -> list[int]:
    """A random token and its nearest neighbours by output rows (cosine, minus the vocabulary's mean).

    Args:
        model: any loaded model.
        among: the tokens to choose from.
        count: how many to choose.
        seed: determines the first.

    Returns:
        Token ids, sorted.
    """
    ids = torch.tensor(sorted(set(among)), device=model.cfg.device)
    output = model.original_model.get_output_embeddings().weight.detach()
    rows = normalize(output[ids] - output.mean(0), dim=-1)
    first = int(torch.randint(len(ids), (), generator=local_generator(seed, 1 << 21)))
    return sorted(ids[(rows @ rows[first]).argsort(descending=True)[:count]].tolist())


def _partly(change: Change, part: float) -> Change:
    """The same change, scaled to part of the way."""
    return lambda values, mean: values + part * (change(values, mean) - values)


def _blind(values: Tensor, mean: Tensor) -> Tensor:
    return mean.expand_as(values)


def _against(model: TransformerBridge, chosen: Tensor, head: Head) -> Change:
    """Values [place d_head] with a write against the mean output row of the chosen tokens added."""
    output = model.original_model.get_output_embeddings().weight.detach()
    reading = Unembedding(model).gain * (output[chosen] - output.mean(0))  # [token d_model]
    into = model.W_O[head[0]][head[1]].detach() @ reading.T  # [d_head token]: logits of a unit of value
    unit = normalize(into.mean(1), dim=-1)

    def change(values: Tensor, mean: Tensor) -> Tensor:
        own = ((values - mean) @ into.to(values)).max(-1).values.mean() if len(values) else 0.0
        return values - _AGAINST * own / (unit @ into).mean() * unit

    return change


@contextmanager
def _hooked(
    model: TransformerBridge, chosen: Tensor, what: str, heads: Sequence[Head], change: Change
) -> Iterator[None]:
    """Change heads' values or keys at the chosen tokens in every pass; `change` receives them and their mean."""
    seen: dict[str, Tensor] = {}

    def look(ids: Tensor, hook: Any) -> None:
        seen["at"] = torch.isin(ids, chosen.to(ids.device))

    def changed(value: Tensor, hook: Any, head: int) -> Tensor:
        value = value.clone()
        value[seen["at"], head] = change(value[seen["at"], head], value[:, 1:, head].mean((0, 1)))
        return value

    def removed(point: Any, added: Any) -> None:
        if added in point.fwd_hooks:
            added.hook.remove()
            point.fwd_hooks.remove(added)

    hooks: list[Hook] = [("embed.hook_in", look)]
    for layer, head in sorted({(layer, kv_head(model, head)) for layer, head in heads}):
        hooks.append((name_of(model, layer, what), partial(changed, head=head)))
    with ExitStack() as stack:
        for name, hook in hooks:
            point = model.hook_dict[name]
            point.add_hook(hook, is_permanent=True)  # otherwise it would end with the first pass
            stack.callback(removed, point, point.fwd_hooks[-1])
        yield
