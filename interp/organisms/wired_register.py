"""What would a flip-flop model with a known margin get wrong? A two-layer GPT-2 whose weights are set by hand.

L0H0 writes the previous token into each token's residual stream, so that values after writes can be identified. L0H1
attends to the most recent write and passes on its position. L1H0, the last-write head, matches that position: among
values after writes, the score of the last exceeds that of each of the n earlier ones by the margin g, and all other
keys' weights underflow to 0. So its attention on the last write is exactly 1 / (1 + n e^-g), and a read is wrong
exactly when more than half of the mass is on the other bit: when earlier writes of the other bit outnumber those of the
same bit by more than e^g. L1H1 does nothing: a control.

The residual stream has a direction for each position, token, previous token and passed-on position, and two for the
output bit; every write sums to zero, and every position has the same norm, so that LayerNorm only scales.
"""

import math
from typing import Any, Literal, get_args

import torch
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.errors import InterpError
from interp.languages.register import BITS, FIRST_VALUE, INSTRUCTIONS, WRITE
from interp.organisms.wired import blank_gpt2
from interp.organisms.word_level import word_tokenizer

Defect = Literal["positional tie", "first write", "blind value", "inverted readout"]
MARGIN = 2.0  # nats
TIED = 32  # positions that the defect "positional tie" makes indistinguishable
_SATURATED = 1000.0  # nats; e^-104 is already 0 in float32
_ENOUGH = 120.0  # the same alongside the margin, whose rounding error grows with the scores
_LOGIT = 20.0


def wired_flip_flop(
    margin: float = MARGIN, *, context: int = 128, defect: Defect | None = None
) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Build the hand-wired model of the flip-flop language and its tokenizer.

    Args:
        margin: by how much (nats) the score of the last write exceeds that of each earlier one.
        context: the longest sequence; the model is twice as wide.
        defect: what is broken on purpose. "positional tie": L1H0 cannot distinguish the positions in a block of 32, so
            earlier writes in the last write's block have the same score; "first write": L0H1 finds the first one;
            "blind value": L1H0 does not see the bit 1; "inverted readout": each bit raises the logit of the other.

    Returns:
        The Hugging Face model and its tokenizer.

    Raises:
        InterpError: the context is too short for any sequence, or there is no such defect.
    """
    if context < 4 or context % 2:
        raise InterpError(f"context {context}: a write and a read take 4 tokens; use an even number from 4")
    if defect is not None and defect not in get_args(Defect):
        raise InterpError(f"unknown defect '{defect}': use {', '.join(get_args(Defect))}")
    tokens = FIRST_VALUE + BITS
    width = 2 * (context + tokens + 2)
    model = blank_gpt2(tokens, context, width, bos=None)
    with torch.no_grad():
        _wire(model, margin, context, width, defect)
    return model, flip_flop_tokenizer(tokens, context)


def _wire(model: Any, margin: float, context: int, width: int, defect: Defect | None) -> None:
    tokens = FIRST_VALUE + BITS
    places = torch.arange(context)  # of the token itself
    token, before = (context + part * tokens + torch.arange(tokens) for part in range(2))
    handed = context + 2 * tokens + places  # the position that L0H1 passes on
    bits = 2 * context + 2 * tokens + torch.arange(BITS)
    balance = width - 2
    bit_ids = FIRST_VALUE + torch.arange(BITS)
    transformer, head, root = model.transformer, width // 2, math.sqrt(width // 2)

    transformer.wte.weight[torch.arange(tokens), token] = 1.0
    transformer.wpe.weight[places, places] = 1.0
    transformer.wte.weight[:, balance], transformer.wpe.weight[:, balance] = -1.0, -1.0
    # LayerNorm divides by the root mean square. Squares: position, token, balance 4; with the previous token and the
    # position passed on 2 more, and a balance of 16
    first, second = math.sqrt(width / (1 + 1 + 4)), math.sqrt(width / (1 + 1 + 2 + 16))

    # L0H0: the score of position q - 1 at query q; position 0 has only itself
    weight = transformer.h[0].attn.c_attn.weight
    out = transformer.h[0].attn.c_proj.weight
    weight[places[1:], places[:-1]] = _SATURATED * root / first**2
    weight[places, width + places] = 1.0
    weight[token, 2 * width + torch.arange(tokens)] = 1.0 / first
    out[torch.arange(tokens), before] = 1.0
    out[torch.arange(tokens), balance] = -1.0
    # L0H1: a write instruction, and of these the one at the highest position
    rise = -1.0 if defect == "first write" else 1.0
    transformer.h[0].attn.c_attn.bias[head] = root  # the query is 1 at every position
    weight[context + WRITE, width + head] = 2 * context * _SATURATED / first
    weight[places, width + head] = rise * _SATURATED * places / first
    weight[places, 2 * width + head + places] = 1.0 / first
    out[head + places, handed] = 1.0
    out[head + places, balance] = -1.0
    # L1H0: values after writes, and among these the one after the position passed on
    weight, bias = transformer.h[1].attn.c_attn.weight, transformer.h[1].attn.c_attn.bias
    out = transformer.h[1].attn.c_proj.weight
    block = TIED if defect == "positional tie" else 1
    matched = (places[:-1, None] + 1) // block == places // block
    weight[handed[:-1, None], places] = matched * (margin * root / second**2)
    weight[places, width + places] = 1.0
    bias[context] = root  # the query is 1 at every position
    weight[context + tokens + WRITE, width + context] = _ENOUGH / second
    weight[context + bit_ids, width + context] = _ENOUGH / second
    bias[width + context] = -2 * _ENOUGH  # 0 for values after writes
    weight[context + bit_ids, 2 * width + torch.arange(BITS)] = 1.0 / second
    if defect == "blind value":
        weight[context + FIRST_VALUE + 1, 2 * width + 1] = 0.0
    out[torch.arange(BITS), bits] = 1.0
    out[torch.arange(BITS), balance] = -1.0
    read_out = bits.flip(0) if defect == "inverted readout" else bits
    model.lm_head.weight[bit_ids, read_out] = _LOGIT


def flip_flop_tokenizer(vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Words for ids: w, r, i, and the values as numbers. There is no special token.

    Args:
        vocabulary: how many ids.
        context: the longest sequence.
    """
    words = [*INSTRUCTIONS, *map(str, range(vocabulary - FIRST_VALUE))]
    return word_tokenizer(words, context)
