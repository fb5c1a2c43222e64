"""Does the model repeat this token when it is asked to? Greedy, for every token, many tokens in a pass.

The published score is the largest probability given to the token over three prompts and three steps; below 0.01, the token
counts as under-trained (Land and Bartolo 2024).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.hooks import forget_patterns
from interp.models import plain_network
from interp.progress import track
from interp.results import Keep, at_once
from interp.undertrained.prompts import ARTICLE, HOLE, PUBLISHED, Prompt, placeholders, template
from interp.vocabulary import census, own_tokenizer

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

THRESHOLD = 0.01
STEPS = 3
_CHUNK = 512
_AGREE = 1e-3  # nats
Forward = Callable[["Tensor", Any], tuple["Tensor", Any]]


def verify(
    model: TransformerBridge,
    ids: Sequence[int],
    *,
    prompts: Sequence[Prompt] = (*PUBLISHED, ARTICLE),
    steps: int = STEPS,
    tokens_per_pass: int | None = None,
    keep: Keep = at_once,
) -> xr.Dataset:
    """`probability` [token prompt new_token] of each tested token at each greedy step, and `generated` ids, the same shape.

    Step 1 is the token right after the prompt; later ones follow what the model itself said. A prompt longer than
    the context (less `steps`) gives NaN and -1, and is named in `attrs["too_long"]`. `keep(name, make)` stores
    finished chunks, so that an interrupted run goes on. `tokens_per_pass` changes speed and memory only (up to rounding).

    Raises `InterpError` where there is nothing to ask, the model has no tokenizer, or no prompt fits.
    """
    import torch

    if not len(ids):
        raise InterpError("no token to ask for: name at least one")
    if steps < 1 or (tokens_per_pass is not None and tokens_per_pass < 1):
        raise InterpError(f"steps {steps}, tokens_per_pass {tokens_per_pass}: use whole numbers from 1 up")
    table = census(model)
    if min(ids) < 0 or max(ids) >= len(table):
        raise InterpError(
            f"no token {max(ids) if min(ids) >= 0 else min(ids)}: this model has ids 0 to {len(table) - 1}"
        )
    texts = placeholders(table)
    tokenizer = own_tokenizer(model)
    forms = {p.name: template(p, tokenizer, texts) for p in prompts}
    outside = max((i for form in forms.values() for i in form), default=0)
    if outside >= len(table):
        raise InterpError(
            f"the prompts hold token {outside}, and this model embeds {len(table)} tokens: its tokenizer is another model's"
        )
    room = model.cfg.n_ctx - steps + 1
    fitting = {name: form for name, form in forms.items() if len(form) <= room}
    too_long = [name for name in forms if name not in fitting]
    if not fitting:
        shortest = min(map(len, forms.values()))
        raise InterpError(
            f"the context of this model is {model.cfg.n_ctx}, and the shortest prompt with {steps} steps takes "
            f"{shortest + steps - 1}: ask for fewer steps or another prompt, or (undertrained) use --verify-tokens none"
        )
    size = tokens_per_pass or (4096 if str(model.cfg.device) == "cpu" else 16384)
    names = list(forms)
    found = []
    chunks = [list(ids[i : i + _CHUNK]) for i in range(0, len(ids), _CHUNK)]
    with torch.no_grad():
        passes: dict[str, _Passes] = {}

        def chunk(part: list[int]) -> xr.Dataset:
            if not passes:
                some = sorted({ids[0], ids[len(ids) // 2], ids[-1]})
                way = _fastest(model, next(iter(fitting.values())), some)
                passes.update({name: _Passes(way, form, model.cfg.device, size) for name, form in fitting.items()})
            shape = (len(part), len(names), steps)
            probability, generated = np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int64)
            for name in fitting:
                at = names.index(name)
                probability[:, at], generated[:, at] = passes[name].greedy(part, steps)
            dims = ("token", "prompt", "new_token")
            return xr.Dataset({"probability": (dims, probability), "generated": (dims, generated)})

        for i, part in enumerate(track(chunks, "asking every token", total=len(chunks))):
            decides = json.dumps([part, forms, steps, size])
            name = f"verification {i} {hashlib.sha256(decides.encode()).hexdigest()[:16]}"
            found.append(keep(name, partial(chunk, part)))
    whole = xr.concat([part.drop_attrs() for part in found], "token")
    whole = whole.assign_coords(token=list(ids), prompt=names, new_token=range(1, steps + 1))
    return whole.assign_attrs(too_long=" ".join(too_long))


def max_probability(probability: xr.DataArray) -> xr.DataArray:
    """The published score [token]: the largest probability over the three published prompts and all steps."""
    published = [p.name for p in PUBLISHED if p.name in probability["prompt"].values]
    return probability.sel(prompt=published).max(["prompt", "new_token"])


class _Way(NamedTuple):
    """How prompts are run: `forward`; what a beginning common to all `begins` with; and that cache for `many` sequences."""

    forward: Forward
    begins: Callable[[Tensor], Any]
    many: Callable[[Any, int], Any]


class _Passes:
    """One prompt, asked for many tokens: what stands before the first of them is run once."""

    def __init__(self, way: _Way, form: list[int], device: Any, size: int):
        import torch

        self.way, self.device = way, device
        first = form.index(HOLE)
        self.rest = torch.tensor(form[first:], device=device)
        self.rows = max(1, size // len(self.rest))
        self.prefix = way.begins(torch.tensor([form[:first]], device=device)) if first else None

    def greedy(self, ids: list[int], steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Probability of the tested token and the arg-max, both [token new_token]."""
        parts = [self._greedy(ids[i : i + self.rows], steps) for i in range(0, len(ids), self.rows)]
        return np.concatenate([p for p, _ in parts]), np.concatenate([g for _, g in parts])

    def _greedy(self, ids: list[int], steps: int) -> tuple[np.ndarray, np.ndarray]:
        import torch

        tested = torch.tensor(ids, device=self.device)
        cache = None if self.prefix is None else self.way.many(self.prefix, len(ids))
        batch = torch.where(self.rest == HOLE, tested[:, None], self.rest)
        probability, generated = [], []
        for _ in range(steps):
            logits, cache = self.way.forward(batch, cache)
            log_p = logits.float().log_softmax(-1)
            probability.append(log_p.gather(-1, tested[:, None])[:, 0].exp())
            generated.append(log_p.argmax(-1))
            batch = generated[-1][:, None]
        return torch.stack(probability, 1).cpu().numpy(), torch.stack(generated, 1).cpu().numpy()


def _fastest(model: TransformerBridge, form: list[int], tokens: list[int]) -> _Way:
    """A plain Hugging Face model with the bridge's own weights where the two agree on a prompt, else the bridge.

    The bridge computes attention so that patterns can be hooked, which costs half of the speed here
    (benchmarks/verification.py). A bridge with hooks is used itself, as is one with edits that plain weights do not
    hold: it differs on the prompt.
    """
    import torch

    if any(point.fwd_hooks for point in model.hook_dict.values()):
        return _whole(model)
    bridge = _bridged(model)
    try:
        plain = _plain(model)
        ids = torch.tensor([[t if i == HOLE else i for i in form] for t in tokens], device=model.cfg.device)
        one, two = (way.forward(ids, None)[0].float().log_softmax(-1) for way in (plain, bridge))
        exact = bool((one - two).abs().max() < _AGREE)
    except Exception:  # whatever a foreign architecture provokes: the bridge is always right
        exact = False
    return plain if exact else bridge


def _cached(forward: Forward) -> _Way:
    """With keys and values cached: the common beginning is run once."""

    def many(cache: Any, count: int) -> Any:
        cache = copy.deepcopy(cache)  # a pass writes into the cache that it is given
        cache.batch_repeat_interleave(count)
        return cache

    return _Way(forward, lambda common: forward(common, None)[1], many)


def _bridged(model: TransformerBridge) -> _Way:
    def forward(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        more = {} if cache is None else {"past_key_values": cache}
        logits, after = model(
            ids, return_type="logits_and_cache", use_cache=True, prepend_bos=False, logits_to_keep=1, **more
        )
        forget_patterns(model)
        return logits[:, -1], after

    return _cached(forward)


def _whole(model: TransformerBridge) -> _Way:
    """The whole prompt at each step, so that hooks see what they were written for; the cache is the ids so far."""
    import torch

    def forward(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        ids = ids if cache is None else torch.cat([cache, ids], dim=1)
        logits = model(ids, return_type="logits", prepend_bos=False, logits_to_keep=1)
        forget_patterns(model)
        return logits[:, -1], ids

    return _Way(forward, lambda common: common, lambda common, count: common.repeat(count, 1))


def _plain(model: TransformerBridge) -> _Way:
    network = plain_network(model)

    def forward(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        output = network(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], output.past_key_values

    return _cached(forward)
