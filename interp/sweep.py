"""How does each of many interventions change the same run? Exact, and much faster than one forward pass each.

Four things are saved. A run resumes at the first layer that an intervention touches, from the residual stream of one clean run.
Several interventions share a pass, sized by tokens. Only positions that are read are unembedded, with the softmax summed
over pieces of the vocabulary. Where only what heads read out is changed, that layer's attention is taken from
the clean run. None of it changes a number beyond rounding; the first use on a model compares the fast way with plain
forward passes, and falls back to these, saying so, where the two differ.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from interp.errors import InterpError
from interp.hooks import Hook, Stop, forget_patterns, name_of, run_to_stop
from interp.measure import log_probs
from interp.progress import track
from interp.results import Keep, at_once

if TYPE_CHECKING:
    import xarray as xr
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

_AGREE = 1e-4  # nats
_VOCABULARY = 8192  # entries of the vocabulary in one piece of the softmax
_TOKENS = 1024  # in one pass, where a CPU is fast
_CHUNK = 64  # interventions kept at a time
_READ_OUT = re.compile(r"blocks\.(\d+)\.attn\.hook_z$")
_LAYER = re.compile(r"blocks\.(\d+)\.")


def sweep(
    model: TransformerBridge,
    ids: Tensor,
    interventions: Sequence[Sequence[Hook]],
    read: Tensor,
    *,
    targets: Tensor | None = None,
    tokens_per_pass: int | None = None,
    what: str = "interventions",
    keep: Keep = at_once,
) -> Tensor:
    """Log-prob [intervention batch position] of each token under each intervention, in nats; NaN where not read.

    `ids` [batch position]; `interventions` are lists of hooks (`interp.hooks`; an empty list is the clean run); `read`, bool
    [position] or [batch position], says which tokens are read, by the token predicted. Position 0 is predicted by
    nothing. Hooks see the batch they were made for, whatever else shares their pass.

    `targets` [target batch position] asks for the log-prob of other tokens in the place of the sequences' own; what comes back
    is then [intervention target batch position]. `tokens_per_pass` changes speed and memory only. `keep(name, make)` stores
    finished chunks. Raises `InterpError` for a `read` or `targets` of another shape, or a `read` that reads nothing.
    """
    import torch
    import xarray as xr

    read = read.to(ids.device)
    if read.shape not in (ids.shape, ids.shape[1:]):
        raise InterpError(
            f"read is {tuple(read.shape)}: give [position] or [batch position] for ids {tuple(ids.shape)}"
        )
    asked = ids[None] if targets is None else targets.to(ids.device)
    if asked.ndim != 3 or asked.shape[1:] != ids.shape:
        raise InterpError(f"targets are {tuple(asked.shape)}: give [target batch position] for ids {tuple(ids.shape)}")
    size = model.original_model.get_input_embeddings().weight.shape[0]
    outside = asked[(asked < 0) | (asked >= size)]
    if len(outside):
        raise InterpError(f"target {int(outside[0])}: this model has ids 0 to {size - 1}")
    read = read.expand(ids.shape).clone()
    read[:, 0] = False
    if not read.any():
        raise InterpError("read marks no token that anything predicts: mark some position from 1 on")
    with torch.no_grad():
        way = works(model)
        engine = _Engine(model, ids, read, tokens_per_pass, way == "sharing", asked) if way else None

        def chunk(part: Sequence[Sequence[Hook]]) -> Tensor:
            return engine.run(part) if engine else _plainly(model, ids, part, read, asked)

        found = []
        starts = range(0, len(interventions), _CHUNK)
        for start in track(starts, what, total=len(starts)):
            part = interventions[start : start + _CHUNK]

            def make(part: Sequence[Sequence[Hook]] = part) -> xr.Dataset:
                return xr.Dataset(
                    {"log_prob": (("intervention", "target", "batch", "position"), chunk(part).cpu().numpy())}
                )

            stored = keep(f"{what} {start}", make)["log_prob"].values
            found.append(torch.from_numpy(stored).to(ids.device))
    scores = torch.cat(found) if found else torch.empty((0, *asked.shape))
    return scores[:, 0] if targets is None else scores


def works(model: TransformerBridge) -> str:
    """What agrees with plain forward passes on this model: `sharing` attention, `resuming` only, or "" for neither.

    Tested at first use, and remembered.
    """
    import torch

    if "sweep_works" not in model.__dict__:
        size = model.original_model.get_input_embeddings().weight.shape[0]
        ids = torch.arange(1, 9, device=model.cfg.device).repeat(2, 1) % size
        ids[1] = ids[1].flip(0)
        read = torch.ones_like(ids, dtype=torch.bool)
        read[:, 0] = False
        last = model.cfg.n_layers - 1
        tried: list[list[Hook]] = [[]]
        tried += [
            [(name_of(model, layer, what), _halved)] for layer in (0, last) for what in ("z", "mlp_out", "resid_pre")
        ]
        with torch.no_grad():
            plain = _plainly(model, ids, tried, read, ids[None])
            why = ""
            for way in ("sharing", "resuming"):
                why = _disagreement(model, ids, tried, read, plain, way)
                if not why:
                    break
            else:
                way = ""
                warnings.warn(
                    f"{model.cfg.model_name}: resuming mid-model is not exact here ({why}); using plain passes",
                    stacklevel=3,
                )
        model.__dict__["sweep_works"] = way
    return str(model.__dict__["sweep_works"])


def _disagreement(
    model: TransformerBridge, ids: Tensor, tried: list[list[Hook]], read: Tensor, plain: Tensor, way: str
) -> str:
    """Why the fast way is not to be used; "" where it agrees."""
    try:
        fast = _Engine(model, ids, read, None, way == "sharing", ids[None]).run(tried)
    except Exception as error:  # whatever a foreign architecture provokes: plain passes are always right
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    same = bool((fast.isnan() == plain.isnan()).all()) and bool((fast - plain).abs().nan_to_num().max() < _AGREE)
    return "" if same else "the two ways differ"


def _halved(value: Tensor, hook: Any) -> Tensor:
    return value / 2


def _plainly(
    model: TransformerBridge, ids: Tensor, interventions: Sequence[Sequence[Hook]], read: Tensor, targets: Tensor
) -> Tensor:
    """One forward pass for each intervention."""
    import torch

    rows = []
    for hooks in interventions:
        logits = model.run_with_hooks(ids, fwd_hooks=list(hooks), prepend_bos=False)
        scores = torch.stack([log_probs(logits, asked) for asked in targets])
        rows.append(scores.masked_fill(~read, torch.nan))
        forget_patterns(model)
    return torch.stack(rows)


class _Engine:
    """One clean run, and what is resumed from it."""

    def __init__(
        self, model: TransformerBridge, ids: Tensor, read: Tensor, size: int | None, shares: bool, targets: Tensor
    ):
        import torch

        self.model, self.ids, self.read, self.shares, self.targets = model, ids, read, shares, targets
        self.size = size or _TOKENS
        self.layers = model.cfg.n_layers
        self.columns = (torch.where(read.any(0))[0] - 1).to(ids.device)  # whose residual predicts what is read
        head = model.original_model.get_output_embeddings()
        self.weight, self.bias = head.weight.detach(), getattr(head, "bias", None)
        self.tail: tuple[Any, ...] | None = None  # what blocks return beside the residual stream
        self.clean: dict[str, Tensor] = {}
        names = [name_of(model, layer, what) for layer in range(self.layers) for what in ("resid_pre", "z")]
        watch = model.blocks[0].register_forward_hook(self._watch)
        try:
            self._pass(self.ids, [(name, self._keep(name)) for name in names], 0)
        finally:
            watch.remove()

    def _watch(self, module: Any, inputs: Any, output: Any) -> None:
        self.tail = output[1:] if isinstance(output, tuple) else None

    def _keep(self, name: str) -> Callable[[Tensor, Any], None]:
        def hook(value: Tensor, hook: Any) -> None:
            self.clean[name] = value.detach().clone()

        return hook

    def run(self, interventions: Sequence[Sequence[Hook]]) -> Tensor:
        """[intervention target batch position], interventions of the same first layer sharing passes."""
        import torch

        found = torch.full((len(interventions), *self.targets.shape), torch.nan, device=self.ids.device)
        order: dict[tuple[int, bool], list[int]] = {}
        for i, hooks in enumerate(interventions):
            start = min((self._layer(name) for name, _ in hooks), default=self.layers - 1)
            if start < 0 or any("unembed" in name for name, _ in hooks):
                found[i] = _plainly(self.model, self.ids, [hooks], self.read, self.targets)[0]
                continue
            # attention of the first layer is as in the clean run where only what its heads read out is changed
            shared = self.shares and all(
                self._layer(name) > start or _READ_OUT.match(name) or not self._in_attention(name) for name, _ in hooks
            )
            order.setdefault((start, bool(shared)), []).append(i)
        together = max(1, self.size // self.ids.numel())
        for (start, shared), members in order.items():
            for at in range(0, len(members), together):
                part = members[at : at + together]
                found[part] = self._together([interventions[i] for i in part], start, shared)
        return found.masked_fill(~self.read, torch.nan)

    def _layer(self, name: str) -> int:
        """The layer of a hook; -1 before the first, the number of layers behind the last."""
        match = _LAYER.match(name)
        if match:
            return int(match[1])
        return self.layers - 1 if name.startswith(("ln_final", "unembed")) else -1

    @staticmethod
    def _in_attention(name: str) -> bool:
        return (
            not name.endswith(("hook_attn_out", "hook_mlp_out", "hook_resid_mid", "hook_resid_post"))
            and ".mlp." not in name
        )

    def _together(self, interventions: Sequence[Sequence[Hook]], start: int, shared: bool) -> Tensor:
        count, batch = len(interventions), len(self.ids)
        by_name: dict[str, list[tuple[int, Callable[..., Any]]]] = {}
        for i, hooks in enumerate(interventions):
            for name, function in hooks:
                by_name.setdefault(name, []).append((i, function))
        resume = name_of(self.model, start, "resid_pre")
        added: list[Hook] = [(resume, lambda value, hook: self.clean[resume].repeat(count, 1, 1))]
        read_out = name_of(self.model, start, "z")
        own = by_name.pop(read_out, []) if shared else None
        added += [(name, _split(changes, batch)) for name, changes in by_name.items()]
        with self._skipping(start), self._sharing(start, own, count):
            residual = self._pass(self.ids.repeat(count, 1), added, start)
        return self._scores(residual.view(count, batch, len(self.columns), -1))

    def _pass(self, ids: Tensor, hooks: list[Hook], start: int) -> Tensor:
        """The final norm's output at the columns that are read."""
        seen: dict[str, Tensor] = {}

        def read(value: Tensor, hook: Any) -> None:
            seen["residual"] = value[:, self.columns]
            raise Stop

        run_to_stop(self.model, ids, [*hooks, ("unembed.hook_in", read)])
        return seen["residual"]

    @contextmanager
    def _skipping(self, start: int) -> Iterator[None]:
        """Blocks before `start` hand on what they are given."""
        skipped = [self.model.blocks[i] for i in range(start)]

        def identity(*args: Any, **kwargs: Any) -> Any:
            value = args[0] if args else kwargs["hidden_states"]
            return value if self.tail is None else (value, *self.tail)

        try:
            for block in skipped:
                block.__dict__["forward"] = identity
            yield
        finally:
            for block in skipped:
                block.__dict__.pop("forward", None)

    @contextmanager
    def _sharing(self, layer: int, changes: list[tuple[int, Callable[..., Any]]] | None, count: int) -> Iterator[None]:
        """The attention of a layer reads out what it did in the clean run, but for `changes`; None leaves it alone."""
        if changes is None:
            yield
            return
        attention = self.model.blocks[layer].attn
        z = _split(changes, len(self.ids))(self.clean[name_of(self.model, layer, "z")].repeat(count, 1, 1, 1), None)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return attention.hook_out(attention.o(z.flatten(2))), None

        try:
            attention.__dict__["forward"] = forward
            yield
        finally:
            attention.__dict__.pop("forward", None)

    def _scores(self, residual: Tensor) -> Tensor:
        """Log-probs [intervention target batch position] from final residuals [intervention batch column d_model]."""
        import torch

        wanted = self.targets[:, None, :, self.columns + 1].expand(-1, len(residual), -1, -1)
        flat = residual.flatten(0, 2)
        total = torch.full((len(flat),), -torch.inf, device=flat.device)
        right = torch.full((len(wanted), len(flat)), torch.nan, device=flat.device)
        asked = wanted.flatten(1)  # [target, row of flat]
        for low in range(0, len(self.weight), _VOCABULARY):
            piece = slice(low, low + _VOCABULARY)
            bias = None if self.bias is None else self.bias[piece]
            logits = torch.nn.functional.linear(flat, self.weight[piece], bias).float()
            total = torch.logaddexp(total, logits.logsumexp(-1))
            inside = (asked >= low) & (asked < low + logits.shape[1])
            found = logits.gather(1, (asked - low).clamp(0, logits.shape[1] - 1).T).T
            right = torch.where(inside, found, right)
        scores = torch.full((len(residual), *self.targets.shape), torch.nan, device=flat.device)
        scores[..., self.columns + 1] = (right - total).view(wanted.shape).transpose(0, 1)
        return scores


def _split(changes: list[tuple[int, Callable[..., Any]]], batch: int) -> Callable[[Tensor, Any], Tensor]:
    """One hook for a pass of several interventions: each changes its own sequences."""

    def hook(value: Tensor, hook: Any) -> Tensor:
        import torch

        parts = list(value.split(batch))
        for i, function in changes:
            new = function(parts[i], hook)
            parts[i] = parts[i] if new is None else new
        return torch.cat(parts)

    return hook
