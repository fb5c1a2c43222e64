"""Which network answers prompts fastest with the same results? The plain one, in bfloat16 where a trial allows that."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from interp.hooks import forget_patterns
from interp.models import plain_network
from interp.undertrained.prompts import HOLE

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_AGREE = 1e-3  # nats
LARGE = 50_000_000  # parameters from which on bfloat16 is worth a trial
Forward = Callable[[Tensor, Any], tuple[Tensor, Any]]


class Way(NamedTuple):
    """How prompts are run: `forward`; `begins`, the cache of a shared prefix; `many`, that cache for many sequences."""

    forward: Forward
    begins: Callable[[Tensor], Any]
    many: Callable[[Any, int], Any]


def fastest(model: TransformerBridge, form: list[int], tokens: list[int]) -> Way:
    """A plain Hugging Face model with the bridge's own weights where the two agree on a prompt, else the bridge.

    The bridge computes attention so that patterns can be hooked, which costs half of the speed here
    (benchmarks/verification.py). A bridge with hooks is used itself, as is one with edits that plain weights do not
    hold: it differs on the prompt.
    """
    if any(point.fwd_hooks for point in model.hook_dict.values()):
        return _whole(model)
    bridge = _bridged(model)
    ids = torch.tensor([[t if i == HOLE else i for i in form] for t in tokens], device=model.cfg.device)
    try:
        plain = _plain(plain_network(model))
        one, two = (way.forward(ids, None)[0].float().log_softmax(-1) for way in (plain, bridge))
        exact = bool((one - two).abs().max() < _AGREE)
    except Exception:  # whatever a foreign architecture provokes: the bridge is always right
        exact = False
    chosen = plain if exact else bridge
    return chosen if _goes_on(chosen, ids.repeat(2, 1), form.index(HOLE)) else _whole(model)


def _goes_on(way: Way, ids: Tensor, first: int) -> bool:
    """Does continuing a prompt from the cache of its prefix give what the whole prompt gives?

    The state of a recurrent layer is not, or not completely, repeated for several tokens.
    """
    try:
        kept = way.many(way.begins(ids[:1, :first]), len(ids)) if first else way.forward(ids[:, :1], None)[1]
        parts, whole = way.forward(ids[:, max(first, 1) :], kept)[0], way.forward(ids, None)[0]
    except Exception:  # whatever a foreign architecture provokes
        return False
    return bool((parts.float().log_softmax(-1) - whole.float().log_softmax(-1)).abs().max() < _AGREE)


def half_precision(model: TransformerBridge) -> Way | None:
    """The plain network in bfloat16, on a processor that multiplies it; None elsewhere, and for small models.

    Check it against `fastest` before relying on it. The unembedding stays in float32: bfloat16 logits are spaced by
    about a tenth.
    """
    processor = any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
    weights = list(model.original_model.parameters())
    small = sum(p.numel() for p in weights) < LARGE
    hooked = any(point.fwd_hooks for point in model.hook_dict.values())
    if not processor or small or hooked or any(p.dtype != torch.float32 or p.device.type != "cpu" for p in weights):
        return None
    try:
        return _plain(_halved(plain_network(model)))
    except Exception:  # whatever a foreign architecture provokes
        return None


def _halved(network: Any) -> Any:
    """A copy in bfloat16, except for its buffers (rotary frequencies must not be rounded) and its unembedding."""
    network = copy.deepcopy(network)
    head = network.get_output_embeddings()
    exact = torch.nn.Parameter(head.weight.detach().clone())
    for weight in network.parameters():
        weight.data = weight.data.bfloat16()
    head.weight = exact
    head.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))
    return network


def _cached(forward: Forward) -> Way:
    """With keys and values cached: the common beginning is run once."""

    def many(cache: Any, count: int) -> Any:
        cache = copy.deepcopy(cache)  # a pass modifies the cache that it is given
        cache.batch_repeat_interleave(count)
        return cache

    return Way(forward, lambda common: forward(common, None)[1], many)


def _bridged(model: TransformerBridge) -> Way:
    def forward(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        more = {} if cache is None else {"past_key_values": cache}
        logits, after = model(
            ids, return_type="logits_and_cache", use_cache=True, prepend_bos=False, logits_to_keep=1, **more
        )
        forget_patterns(model)
        return logits[:, -1], after

    return _cached(forward)


def _whole(model: TransformerBridge) -> Way:
    """The whole prompt at each step, so that hooks see what they were written for; the cache is the ids so far."""

    def forward(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        ids = ids if cache is None else torch.cat([cache, ids], dim=1)
        logits = model(ids, return_type="logits", prepend_bos=False, logits_to_keep=1)
        forget_patterns(model)
        return logits[:, -1], ids

    return Way(forward, lambda common: common, lambda common, count: common.repeat(count, 1))


def _plain(network: Any) -> Way:
    def forward(ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        output = network(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1], output.past_key_values

    return _cached(forward)
