"""How is a model initialized that must learn copying within minutes? With an induction circuit too weak to copy.

If every sequence has its own embeddings there is nothing to learn but copying, and no token statistics to learn first.
So a circuit is added to random initial weights, at a strength at which it does not copy yet: training makes it work, or
not.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_FREQUENCY = (math.sqrt(5) - 1) / 2  # the golden ratio spreads frequencies evenly: no two positions look alike
_AMPLITUDE = 0.3  # amplitude of the position sines
_PREVIOUS, _WRITTEN, _MATCHED, _COPIED, _READ, _LEFT = 1.3, 0.34, 1.73, 0.72, 4.0, 0.1  # gains at a strength of 1


@torch.no_grad()
def begin_as_circuit(network: Any, strength: float) -> None:
    """Add an induction circuit to the weights of a GPT-2 of two layers or more.

    Positions are sines in the first sixth of the dimensions; the rest is two halves. The first head of the first layer
    attends to the previous position and copies the first half to the second; that of the second layer attends to where
    the second half equals the current first half, and copies the first half, from which the logits are read.

    Args:
        network: a Hugging Face GPT-2 with random weights, whose heads are 5/12 as wide as the model.
        strength: a factor on all gains; at 1 the circuit copies, at 0.6 it does not.
    """
    body, width = network.transformer, network.config.n_embd
    pairs = width // 12
    size = (width - 2 * pairs) // 2
    half, other = torch.arange(size) + 2 * pairs, torch.arange(size) + 2 * pairs + size
    query, key, value = (torch.arange(size) + part * width for part in range(3))
    head = torch.arange(size)
    frequency = math.pi * ((torch.arange(pairs) + 1) * _FREQUENCY % 1)
    sine = torch.arange(pairs) * 2
    cosine = sine + 1
    angle = torch.arange(network.config.n_positions)[:, None] * frequency
    body.wpe.weight[:, sine], body.wpe.weight[:, cosine] = _AMPLITUDE * angle.sin(), _AMPLITUDE * angle.cos()
    attend, write = body.h[0].attn.c_attn.weight, body.h[0].attn.c_proj.weight  # [in, out]
    # the query is rotated back by one position
    turned = strength * _PREVIOUS
    attend[sine, query[sine]] += turned * frequency.cos()
    attend[cosine, query[sine]] -= turned * frequency.sin()
    attend[cosine, query[cosine]] += turned * frequency.cos()
    attend[sine, query[cosine]] += turned * frequency.sin()
    attend[sine, key[sine]] += turned
    attend[cosine, key[cosine]] += turned
    attend[half, value] += strength
    write[head, other] += strength * _WRITTEN
    attend, write = body.h[1].attn.c_attn.weight, body.h[1].attn.c_proj.weight
    attend[half, query] += strength * _MATCHED
    attend[other, key] += strength * _MATCHED
    attend[half, value] += strength
    write[head, half] += strength * _COPIED
    body.ln_f.weight.fill_(_LEFT)
    body.ln_f.weight[half] = strength * _READ
