"""Where tested tokens are predicted, and what a run leaves there: the end of the residual stream, and who wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from interp.errors import InterpError
from interp.hooks import Head, freeze_patterns, mlp_names, name_of, patch, pattern_names, record, z_names
from interp.tokens import Repeated

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Places:
    """Where tested tokens are predicted: sequence, position of the query, and the token, each [place]."""

    sequence: Tensor
    query: Tensor
    token: Tensor

    @classmethod
    def of(cls, tokens: Repeated, *, every: bool = False) -> Places:
        """The tested inducible tokens of sequences, or (`every`) all inducible ones. Raises `InterpError` where there are none."""
        import torch

        read = torch.from_numpy(tokens.inducible_tested)
        if every:
            read = torch.from_numpy(tokens.inducible).expand(read.shape)
        sequence, position = read.nonzero(as_tuple=True)
        if not len(sequence):
            raise InterpError("a sequence tests no inducible token: use longer blocks")
        at = sequence.to(tokens.ids.device), (position - 1).to(tokens.ids.device)
        return cls(at[0], at[1], tokens.ids[at[0], at[1] + 1])


@dataclass
class Ends:
    """The end of a run at some places: `x` and, before the last norm, `resid` [place d_model]; mean `writes` [component d_model]."""

    x: Tensor
    resid: Tensor
    writes: Tensor | None = None
    patterns: dict[str, Tensor] | None = None


def ends(
    model: TransformerBridge,
    tokens: Repeated,
    places: Places,
    *,
    patterns: Mapping[str, Tensor] | None = None,
    heads: Sequence[Head] | None = None,
    keep_patterns: bool = False,
    writes: Tensor | None = None,
) -> Ends:
    """Run sequences [batch position], with the attention of another run in all heads or some, and read the end at `places`.

    `writes`: what each component (`components`) adds to the residual stream, the mean over the places that are marked in it.
    """
    import torch

    names = ["ln_final.hook_in", "unembed.hook_in"]
    whole: dict[str, list[Tensor]] = {} if not keep_patterns else {name: [] for name in pattern_names(model)}
    parts: dict[str, list[Tensor]] = {"x": [], "resid": []}
    written: list[Tensor] = []
    inner = [*z_names(model), *mlp_names(model), *(name_of(model, la, "attn_out") for la in range(model.cfg.n_layers))]
    start = 0
    for part in tokens.split(tokens.rows_per_pass()):
        rows = slice(start, start + len(part.ids))
        given = None if patterns is None else {name: value[rows] for name, value in patterns.items()}
        hooks = []
        if given is not None and heads is None:
            hooks = freeze_patterns(model, given)
        elif given is not None and heads is not None:
            for layer in sorted({la for la, _ in heads}):
                name = name_of(model, layer, "pattern")
                hooks.append(patch(model, name, given, heads=sorted(h for la, h in heads if la == layer)))
        seen = record(model, part.ids, [*names, *whole, *(inner if writes is not None else [])], hooks=hooks)
        for name in whole:
            whole[name].append(seen[name])
        at = (places.sequence >= start) & (places.sequence < rows.stop)
        sequence, query = places.sequence[at] - start, places.query[at]
        parts["x"].append(seen["unembed.hook_in"][sequence, query].float())
        parts["resid"].append(seen["ln_final.hook_in"][sequence, query].float())
        if writes is not None:
            written.append(_writes(model, seen, sequence[writes[at]], query[writes[at]]))
        start = rows.stop
    return Ends(
        torch.cat(parts["x"]),
        torch.cat(parts["resid"]),
        torch.stack(written).sum(0) / writes.sum() if writes is not None else None,
        {name: torch.cat(values) for name, values in whole.items()} if keep_patterns else None,
    )


def _writes(model: TransformerBridge, seen: dict[str, Tensor], sequence: Tensor, query: Tensor) -> Tensor:
    """[component d_model]: what each component adds to the residual stream, summed over places."""
    import torch

    rows = []
    rest = seen["ln_final.hook_in"][sequence, query].float().sum(0)
    for layer in range(model.cfg.n_layers):
        z, out, mlp = (
            seen[name_of(model, layer, n)][sequence, query].float().sum(0) for n in ("z", "attn_out", "mlp_out")
        )
        by_head = torch.einsum("he,hed->hd", z, model.W_O[layer].detach().float())
        rows += [by_head, (out - by_head.sum(0))[None], mlp[None]]
        rest = rest - out - mlp
    return torch.cat([rest[None], *rows])


def components(model: TransformerBridge) -> list[str]:
    """Names of the columns of `Ends.writes`."""
    names = ["embedding"]
    for layer in range(model.cfg.n_layers):
        names += [*(f"L{layer}H{h}" for h in range(model.cfg.n_heads)), f"attention bias {layer}", f"MLP {layer}"]
    return names
