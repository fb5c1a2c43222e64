"""Where are tested tokens predicted, and what is the final residual stream there, and which components wrote it?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.hooks import Head, Hook, freeze_patterns, name_of, patch, record
from interp.residual import head_writes, write_hooks, writes as component_writes
from interp.tokens import Repeated


@dataclass(frozen=True)
class PredictionSites:
    """Where tested tokens are predicted: sequence, position of the query, and the token, each [place]."""

    sequence: Tensor
    query: Tensor
    token: Tensor

    @classmethod
    def of(cls, tokens: Repeated, *, every: bool = False) -> Self:
        """The sites of the tested tokens that the context determines, sequence by sequence.

        Args:
            tokens: repeated sequences.
            every: take all inducible tokens, tested or not.

        Raises:
            InterpError: there are none.
        """
        read = torch.from_numpy(tokens.inducible_tested)
        if every:
            read = torch.from_numpy(tokens.inducible).expand(read.shape)
        sequence, position = (at.to(tokens.ids.device) for at in read.nonzero(as_tuple=True))
        if not len(sequence):
            raise InterpError("a sequence tests no inducible token: use longer blocks")
        return cls(sequence, position - 1, tokens.ids[sequence, position])

    def batches(self, tokens: Repeated) -> Iterator[tuple[Repeated, slice, Tensor, tuple[Tensor, Tensor]]]:
        """The sequences, in batches of one forward pass.

        Yields:
            The sequences of a pass, the slice of all rows that they are, which sites [place] lie in them, and where: an
            index (sequence, query) into the activations of the pass.
        """
        start = 0
        for part in tokens.split(tokens.rows_per_pass()):
            rows = slice(start, start + len(part.ids))
            here = (self.sequence >= rows.start) & (self.sequence < rows.stop)
            yield part, rows, here, (self.sequence[here] - start, self.query[here])
            start = rows.stop


def head_rows(sequence: Tensor, heads: Sequence[int], query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An index of [sequence head query key] that gives [place head key]."""
    return sequence[:, None], torch.tensor(list(heads), dtype=torch.long, device=query.device)[None], query[:, None]


@dataclass(frozen=True)
class FinalResidual:
    """The final residual stream of a run at its sites: `x` after the last norm and `resid` before it, [place d_model].

    `writes` [component d_model] is what each component (`component_names`) adds to the residual stream, averaged over
    sites; empty if it was not asked for.
    """

    x: Tensor
    resid: Tensor
    writes: Tensor


def final_residuals(
    model: TransformerBridge,
    tokens: Repeated,
    sites: PredictionSites,
    *,
    patterns: Mapping[str, Tensor] | None = None,
    heads: Sequence[Head] | None = None,
    repair: Callable[[Repeated, slice], list[Hook]] | None = None,
    writes: Tensor | None = None,
) -> FinalResidual:
    """Run sequences and read the final residual stream.

    Args:
        model: any loaded model.
        tokens: the sequences.
        sites: where to read.
        patterns: attention of another run, to replace the model's own.
        heads: the heads (layer, head) whose attention is replaced; None: all.
        repair: gives the hooks of another intervention, from the sequences of a pass and their slice of all rows.
        writes: [place], the sites over which the components' writes are averaged; None: they are not read.
    """
    names = ["ln_final.hook_in", "unembed.hook_in"]
    if writes is not None:
        names = write_hooks(model, heads=True)
    x, resid, written = [], [], []
    for part, rows, here, at in sites.batches(tokens):
        hooks = [] if repair is None else repair(part, rows)
        if patterns is not None:
            given = {name: value[rows] for name, value in patterns.items()}
            if heads is None:
                hooks = freeze_patterns(model, given)
            for layer in sorted({layer for layer, _ in heads or ()}):
                of_layer = sorted(h for la, h in heads or () if la == layer)
                hooks.append(patch(model, name_of(model, layer, "pattern"), given, heads=of_layer))
        seen = record(model, part.ids, names, hooks=hooks)
        x.append(seen["unembed.hook_in"][at].float())
        resid.append(seen["ln_final.hook_in"][at].float())
        if writes is not None:
            placed = {name: value.expand(len(part.ids), *value.shape[1:]) for name, value in seen.items()}
            written.append(_writes(model, {name: value[at][writes[here]].float() for name, value in placed.items()}))
    mean = torch.stack(written).sum(0) / writes.sum() if writes is not None else resid[0][:0]
    return FinalResidual(torch.cat(x), torch.cat(resid), mean)


def _writes(model: TransformerBridge, seen: Mapping[str, Tensor]) -> Tensor:
    """[component d_model]: what each component adds to the residual stream, summed over the recorded sites."""
    added = {name: value.sum(0) for name, value in component_writes(model, seen).items()}
    rows = [added.pop("embed") + added.pop("pos_embed", 0.0)]
    for layer in range(model.cfg.n_layers):
        by_head, biases = head_writes(model, layer, seen)
        rows += [*by_head.sum(0), biases.sum(0), added[f"{layer}_mlp_out"]]
    return torch.stack(rows)


def component_names(model: TransformerBridge) -> list[str]:
    """Names of the rows of `FinalResidual.writes`."""
    names = ["embedding"]
    for layer in range(model.cfg.n_layers):
        names += [*(f"L{layer}H{h}" for h in range(model.cfg.n_heads)), f"attention bias {layer}", f"MLP {layer}"]
    return names
