"""How does each of many interventions change the same run? Exact, and much faster than one forward pass each.

It saves work in four ways. A run resumes at the first layer that an intervention touches, from the residual stream of
one clean run. Several interventions share a pass, up to a number of tokens. Only positions that are read are
unembedded, with the softmax summed over chunks of the vocabulary. Where only head outputs are changed, that layer's
attention is taken from the clean run. None of this changes a number beyond rounding; the first use on a model compares
the fast way with plain forward passes, and falls back to these with a warning where the two differ.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge

from interp.arguments import takes_what_it_says
from interp.errors import InterpError, first_line
from interp.hooks import Hook, forget_patterns, ids_of, name_of, record
from interp.measure import log_probs, ranks
from interp.results import Keep, at_once, each
from interp.tokens import Sequences

TARGETS = ("own", "other")
# what is read from the logits at a position: a target's log-prob; the number of tokens that beat it; the
# Kullback-Leibler divergence from the clean run, the same for every target
Statistic = Literal["log_prob", "rank", "kl"]
Mode = Literal["sharing", "resuming", ""]
_MODES: WeakKeyDictionary[TransformerBridge, Mode] = WeakKeyDictionary()  # for each model tested so far
_AGREE = 1e-4  # nats
_VOCABULARY = 8192  # entries of the vocabulary in one chunk of the softmax
_TOKENS = 1024  # tokens in one pass: efficient on a CPU
_CHUNK = 64  # interventions per stored part
_LAYER = re.compile(r"blocks\.(\d+)\.")
# hooks of a block at or after its head outputs, which leave its attention unchanged
_BEHIND_ATTENTION = re.compile(r"\.mlp\.|(\.attn\.hook_z|hook_attn_out|hook_mlp_out|hook_resid_mid|hook_resid_post)$")


@takes_what_it_says
def sweep(
    model: TransformerBridge,
    tokens: Tensor | Sequences,
    interventions: Sequence[Sequence[Hook]],
    read: Tensor | np.ndarray | Sequence[Any],
    *,
    targets: Tensor | None = None,
    statistic: Statistic = "log_prob",
    tokens_per_pass: int | None = None,
    what: str = "interventions",
    keep: Keep = at_once,
) -> Tensor:
    """Log-prob (or rank) of each read token under each of many interventions.

    Args:
        model: any loaded model.
        tokens: sequences, or their ids [batch position].
        interventions: lists of hooks (`interp.hooks`); an empty list is the clean run. Hooks see only the batch they
            were built for, whatever else shares their pass.
        read: bool [position] or [batch position], which tokens are read, by the token predicted; for example
            `tokens.inducible`. Position 0 is predicted by nothing.
        targets: [target batch position], other tokens to read instead of the sequences' own.
        statistic: "log_prob"; "rank", the number of tokens with a higher logit, ties counted by half; or "kl", the
            Kullback-Leibler divergence of the prediction from that of the clean run, whatever the targets.
        tokens_per_pass: about how many tokens share a forward pass; it changes speed and memory only.
        what: label of the progress bar and of the parts that are kept.
        keep: stores finished chunks, `keep(name, make)`.

    Returns:
        [intervention batch position], nats (or a number of tokens), or with targets [intervention target batch
        position]; NaN where not read.

    Raises:
        InterpError: `read` or `targets` has another shape, or `read` marks no token.
    """
    ids = ids_of(model, tokens)
    try:
        read = torch.as_tensor(read, device=ids.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InterpError(f"read is not a boolean array ({first_line(error)}): give tokens.inducible") from error
    if read.dtype != torch.bool:
        raise InterpError(
            f"read holds {str(read.dtype).removeprefix('torch.')}: give truth values, as tokens.inducible"
        )
    if read.shape not in (ids.shape, ids.shape[1:]):
        raise InterpError(
            f"read is {tuple(read.shape)}: give [position] or [batch position] for ids {tuple(ids.shape)}"
        )
    if read.dtype != torch.bool:
        kind = str(read.dtype).removeprefix("torch.")
        raise InterpError(f"read holds {kind}: give truth values, as tokens.inducible has them")
    asked = ids[None] if targets is None else targets.to(ids.device)
    if asked.ndim != 3 or asked.shape[1:] != ids.shape:
        raise InterpError(f"targets are {tuple(asked.shape)}: give [target batch position] for ids {tuple(ids.shape)}")
    size = len(model.original_model.get_input_embeddings().weight)
    outside = asked[(asked < 0) | (asked >= size)]
    if len(outside):
        raise InterpError(f"target {int(outside[0])}: this model has ids 0 to {size - 1}")
    read = (read & (torch.arange(ids.shape[1], device=ids.device) > 0)).expand(ids.shape)
    if not read.any():
        raise InterpError("read marks no token that is predicted: mark some position after the first")

    def chunk(start: int) -> xr.Dataset:
        scores = run(interventions[start : start + _CHUNK]).cpu().numpy()
        return xr.Dataset({"log_prob": (("intervention", "target", "batch", "position"), scores)})

    with torch.no_grad():
        mode = exact_mode(model)
        run = (
            _Engine(model, ids, read, asked, mode, tokens_per_pass, statistic).run
            if mode
            else partial(_plain_passes, model, ids, read, asked, statistic=statistic)
        )
        makes = {f"{what} {start}": partial(chunk, start) for start in range(0, len(interventions), _CHUNK)}
        found = [part["log_prob"].values for part in each(keep, makes, what)]
    scores = torch.from_numpy(np.concatenate([np.empty((0, *asked.shape), np.float32), *found])).to(ids.device)
    return scores[:, 0] if targets is None else scores


@takes_what_it_says
def paired_scores(
    model: TransformerBridge,
    run: Sequences,
    source: Sequences,
    interventions: Sequence[Sequence[Hook]],
    read: Tensor | np.ndarray | Sequence[Any],
    *,
    what: str = "interventions",
    keep: Keep = at_once,
) -> np.ndarray:
    """Mean log-prob of the read tokens of each sequence, without and with interventions from a paired sequence.

    Args:
        model: any loaded model.
        run: the sequences that the model runs on.
        source: the sequences paired with them.
        interventions: lists of hooks.
        read: which tokens are read, as for `sweep`.
        what: label of the progress bar.
        keep: stores finished chunks.

    Returns:
        [intervention target batch], nats; the first intervention is the clean run, and the targets are the run's `own`
        tokens and the `other` tokens, from the source.
    """
    targets = torch.stack([run.ids, source.ids])
    found = sweep(model, run, [[], *interventions], read, targets=targets, what=what, keep=keep)
    return found.nanmean(-1).cpu().numpy()


@takes_what_it_says
def exact_mode(model: TransformerBridge) -> Mode:
    """The fast mode that agrees with plain forward passes on this model: "sharing" attention, only "resuming", or ""
    for neither.

    Tested at first use, then cached.
    """
    if model in _MODES:
        return _MODES[model]
    one = torch.arange(1, 9, device=model.cfg.device) % len(model.original_model.get_input_embeddings().weight)
    ids = torch.stack([one, one.flip(0)])
    read = (torch.arange(8, device=ids.device) > 0).expand_as(ids)
    tried: list[list[Hook]] = [[]]
    known = model.hook_dict
    for layer in (0, model.cfg.n_layers - 1):
        names = (f"blocks.{layer}.{what}" for what in ("attn.hook_z", "hook_mlp_out", "hook_resid_pre"))
        tried += [[(name, _halved)] for name in names if name in known]
    mode: Mode
    with torch.no_grad():
        plain = _plain_passes(model, ids, read, ids[None], tried)
        for mode in ("sharing", "resuming"):
            try:
                fast = _Engine(model, ids, read, ids[None], mode).run(tried)
                same = torch.allclose(fast, plain.to(fast), rtol=0, atol=_AGREE, equal_nan=True)
                why = "" if same else "the two ways differ"
            except Exception as error:  # a foreign architecture may raise anything; plain passes are always right
                why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            if not why:
                break
        else:
            mode = ""
            name = model.cfg.model_name
            warnings.warn(f"{name}: resuming mid-model is not exact here ({why}); using plain passes", stacklevel=3)
    return _MODES.setdefault(model, mode)


def _halved(value: Tensor, hook: Any) -> Tensor:
    return value / 2


def _plain_passes(
    model: TransformerBridge,
    ids: Tensor,
    read: Tensor,
    targets: Tensor,
    interventions: Sequence[Sequence[Hook]],
    statistic: Statistic = "log_prob",
) -> Tensor:
    """One forward pass for each intervention."""
    rows = []
    clean = model(ids, return_type="logits", prepend_bos=False) if statistic == "kl" else None
    for hooks in interventions:
        logits = model.run_with_hooks(ids, fwd_hooks=list(hooks), prepend_bos=False)
        if clean is not None:
            found = [pad(divergence(clean, logits)[:, :-1], (1, 0), value=torch.nan)] * len(targets)
        else:
            measured = ranks if statistic == "rank" else log_probs
            found = [measured(logits, asked) for asked in targets]
        rows.append(torch.stack(found).masked_fill(~read, torch.nan))
        forget_patterns(model)
    return torch.stack(rows)


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """The Kullback-Leibler divergence (nats) of predictions from clean ones, both logits [... vocabulary]."""
    right = clean.float().log_softmax(-1)
    return (right.exp() * (right - logits.float().log_softmax(-1))).sum(-1)


class _Engine:
    """One clean run, and the runs resumed from it."""

    def __init__(
        self,
        model: TransformerBridge,
        ids: Tensor,
        read: Tensor,
        targets: Tensor,
        mode: Mode,
        tokens_per_pass: int | None = None,
        statistic: Statistic = "log_prob",
    ):
        self.statistic = statistic
        self.model, self.ids, self.read, self.targets, self.mode = model, ids, read, targets, mode
        self.together = max(1, (tokens_per_pass or _TOKENS) // ids.numel())
        self.layers = model.cfg.n_layers
        self.columns = (torch.where(read.any(0))[0] - 1).to(ids.device)  # whose residual predicts the read tokens
        self.tail: tuple[Any, ...] | None = None  # what blocks return beside the residual stream
        watch = model.blocks[0].register_forward_hook(self._watch)
        try:
            known = model.hook_dict
            names = [f"blocks.{la}.{what}" for la in range(self.layers) for what in ("hook_resid_pre", "attn.hook_z")]
            names += ["unembed.hook_in"] if statistic == "kl" else []
            self.clean = record(model, ids, [name for name in names if name in known])
        finally:
            watch.remove()

    def _watch(self, module: Any, inputs: Any, output: Any) -> None:
        self.tail = output[1:] if isinstance(output, tuple) else None

    def run(self, interventions: Sequence[Sequence[Hook]]) -> Tensor:
        """[intervention target batch position]; interventions with the same first layer share passes."""
        found = torch.full((len(interventions), *self.targets.shape), torch.nan, device=self.ids.device)
        groups: dict[tuple[int, bool], list[int]] = {}
        for i, hooks in enumerate(interventions):
            start = min((self._layer(name) for name, _ in hooks), default=self.layers - 1)
            if start < 0 or any("unembed" in name for name, _ in hooks):
                found[i] = _plain_passes(self.model, self.ids, self.read, self.targets, [hooks], self.statistic)[0]
                continue
            shared = (
                self.mode == "sharing"
                and f"blocks.{start}.attn.hook_z" in self.clean
                and all(self._layer(name) > start or _BEHIND_ATTENTION.search(name) for name, _ in hooks)
            )
            groups.setdefault((start, shared), []).append(i)
        for (start, shared), members in groups.items():
            for at in range(0, len(members), self.together):
                part = members[at : at + self.together]
                found[part] = self._resumed([interventions[i] for i in part], start, shared)
        return found.masked_fill(~self.read, torch.nan)

    def _layer(self, name: str) -> int:
        """The layer of a hook; -1 before the first layer, and the last layer for anything after it."""
        if match := _LAYER.match(name):
            return int(match[1])
        return self.layers - 1 if name.startswith(("ln_final", "unembed")) else -1

    def _resumed(self, interventions: Sequence[Sequence[Hook]], start: int, shared: bool) -> Tensor:
        """The scores of one pass from layer `start` on, with that layer's attention from the clean run if `shared`."""
        count, batch = len(interventions), len(self.ids)
        by_name: dict[str, list[tuple[int, Callable[..., Any]]]] = {}
        for i, hooks in enumerate(interventions):
            for name, function in hooks:
                by_name.setdefault(name, []).append((i, function))
        resume, read_out = (name_of(self.model, start, what) for what in ("resid_pre", "z"))

        def identity(*args: Any, **kwargs: Any) -> Any:
            value = args[0] if args else kwargs["hidden_states"]
            return value if self.tail is None else (value, *self.tail)

        def attend(*args: Any, **kwargs: Any) -> Any:
            return attention.hook_out(attention.o(z.flatten(2))), None

        replaced = {self.model.blocks[i]: identity for i in range(start)}
        if shared:
            z = self.clean[read_out].repeat(count, 1, 1, 1)
            z = _split(by_name.pop(read_out, []), batch)(z, None)
            attention = self.model.blocks[start].attn
            replaced[attention] = attend
        added: list[Hook] = [(resume, lambda value, hook: self.clean[resume].repeat(count, 1, 1))]
        added += [(name, _split(changes, batch)) for name, changes in by_name.items()]
        with _replaced_forwards(replaced):
            final = record(self.model, self.ids.repeat(count, 1), ["unembed.hook_in"], hooks=added)["unembed.hook_in"]
        return self._scores(final[:, self.columns].view(count, batch, len(self.columns), -1))

    def _scores(self, residual: Tensor) -> Tensor:
        """The statistic [intervention target batch position] of final residuals [intervention batch column d_model]."""
        wanted = self.targets[:, None, :, self.columns + 1].expand(-1, len(residual), -1, -1)
        flat = residual.flatten(0, 2)
        asked = wanted.flatten(1)  # [target, row of flat]
        if self.statistic == "kl":
            clean = self.clean["unembed.hook_in"][:, self.columns].expand_as(residual).flatten(0, 2)
            found = self._divergence(clean, flat).expand(len(asked), -1)
        else:
            total, right = self._target_logits(flat, asked)
            found = right - total if self.statistic == "log_prob" else self._ranks(flat, asked, right)
        scores = torch.full((len(residual), *self.targets.shape), torch.nan, device=flat.device)
        scores[..., self.columns + 1] = found.reshape(wanted.shape).transpose(0, 1)
        return scores

    def _pieces(self, flat: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of final residuals [row d_model], one chunk of the vocabulary at a time, with its first index."""
        head = self.model.original_model.get_output_embeddings()
        weight, bias = head.weight.detach(), getattr(head, "bias", None)
        for low in range(0, len(weight), _VOCABULARY):
            piece = slice(low, low + _VOCABULARY)
            part = None if bias is None else bias[piece]
            yield low, torch.nn.functional.linear(flat, weight[piece], part).float()

    def _target_logits(self, flat: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        """The log of the softmax's normaliser [row], and the logits of the targets [target row]."""
        total = torch.full((len(flat),), -torch.inf, device=flat.device)
        right = torch.full(asked.shape, torch.nan, device=flat.device)
        for low, logits in self._pieces(flat):
            total = torch.logaddexp(total, logits.logsumexp(-1))
            inside = (asked >= low) & (asked < low + logits.shape[1])
            found = logits.gather(1, (asked - low).clamp(0, logits.shape[1] - 1).T).T
            right = torch.where(inside, found, right)
        return total, right

    def _ranks(self, flat: Tensor, asked: Tensor, right: Tensor) -> Tensor:
        """The number of tokens with a higher logit than the targets [target row]; ties count half."""
        above = torch.zeros(asked.shape, device=flat.device)
        for _, logits in self._pieces(flat):
            for row, target in zip(above, right, strict=True):
                row += (logits > target[:, None]).sum(-1) + (logits == target[:, None]).sum(-1) / 2
        return above - 0.5  # the token ties with itself

    def _divergence(self, clean: Tensor, flat: Tensor) -> Tensor:
        """The Kullback-Leibler divergence of predictions from those of the clean residuals [row]."""
        totals = [torch.full((len(flat),), -torch.inf, device=flat.device) for _ in range(2)]
        for pieces in zip(self._pieces(clean), self._pieces(flat), strict=True):
            totals = [torch.logaddexp(t, p.logsumexp(-1)) for t, (_, p) in zip(totals, pieces, strict=True)]
        found = torch.zeros(len(flat), device=flat.device)
        for (_, right), (_, other) in zip(self._pieces(clean), self._pieces(flat), strict=True):
            right, other = right - totals[0][:, None], other - totals[1][:, None]
            found += (right.exp() * (right - other)).sum(-1)
        return found


@contextmanager
def _replaced_forwards(forwards: Mapping[Any, Callable[..., Any]]) -> Iterator[None]:
    """Replace what modules compute inside the context.

    A hook cannot do this: it runs in addition to the module's computation, which this is meant to skip.
    `Module.__call__` uses an instance attribute named `forward` instead of the class's, and runs the module's hooks
    around it.
    """
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)


def _split(changes: list[tuple[int, Callable[..., Any]]], batch: int) -> Callable[[Tensor, Any], Tensor]:
    """One hook for a pass of several interventions, each of which changes its own sequences."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        parts = list(value.split(batch))
        for i, function in changes:
            new = function(parts[i], hook)
            parts[i] = parts[i] if new is None else new
        return torch.cat(parts)

    return hook
