"""What would a perfect induction circuit measure? A two-layer GPT-2 whose weights are set by hand.

The previous-token head L0H0 writes each token's predecessor into its residual stream; the induction head
L1H0 attends to the position whose predecessor equals the current token and copies its token. Both attend
with weight 1 to one key (every other key's weight underflows to 0 in float32), so all scores are known exactly:

- induction score of L1H0 = 1 and previous-token score of L0H0 = 1, at every inducible query;
- inducible tokens: log-prob 0; unpredictable tokens: -ln(vocabulary), the uniform guess;
- ablating L0H0 or L1H0 (with BOS): every token -ln(vocabulary). L0H1 and L1H1 do nothing: controls.

It holds for blocks of distinct tokens, with BOS and without. The residual stream has one direction per
token in each of three parts (token, predecessor, output), a circle for the position, and four service
directions; every write sums to zero and every position has the same norm, so that LayerNorm only scales.
"""

import math
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.organisms.word_level import BOS, word_tokenizer

_MARGIN = 1000.0  # attention scores differ by at least this; e^-104 is already 0 in float32
_LOGIT = 200.0


def wired_model(vocabulary: int = 65, context: int = 256) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Build the hand-wired model and its tokenizer.

    Args:
        vocabulary: how many tokens; id 0 is BOS, the others are ordinary.
        context: the longest sequence.

    Returns:
        The Hugging Face model and its tokenizer.
    """
    n = vocabulary - 1
    width = 3 * n + 8 + n % 2
    model = blank_gpt2(vocabulary, context, width, bos=0)
    with torch.no_grad():
        _wire(model, n, context, width)
    return model, word_tokenizer([BOS, *(f"w{i}" for i in range(1, vocabulary))], context, bos=BOS)


def blank_gpt2(vocabulary: int, context: int, width: int, *, bos: int | None) -> GPT2LMHeadModel:
    """A two-layer GPT-2 to be wired by hand: two heads each, norms that only scale, all other weights zero."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=context,
        n_embd=width,
        n_layer=2,
        n_head=2,
        n_inner=1,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        layer_norm_epsilon=1e-12,
        bos_token_id=bos,
        eos_token_id=bos,
        tie_word_embeddings=False,
        architectures=["GPT2LMHeadModel"],
    )
    with torch.random.fork_rng():
        model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
    return model


def _wire(model: Any, n: int, context: int, width: int) -> None:
    token, before, output = (torch.arange(n) + part * n for part in range(3))
    cos, sin, minus_cos, minus_sin, first, later, bos, balance = range(3 * n, 3 * n + 8)
    transformer = model.transformer
    eye = torch.eye(n)

    embed = transformer.wte.weight
    embed[1:, token] = eye
    embed[0, bos] = 1.0  # a direction that no head reads: BOS has no identity to copy
    embed[:, balance] = -1.0
    angle = 2 * math.pi * torch.arange(context, dtype=torch.float64) / context
    place = transformer.wpe.weight
    place[:, cos], place[:, sin] = angle.cos().float(), angle.sin().float()
    place[:, minus_cos], place[:, minus_sin] = -place[:, cos], -place[:, sin]
    place[0, first], place[1:, later], place[:, balance] = 1.0, 1.0, -1.0

    # LayerNorm divides by the root mean square. Squares: circle 2, first or later 1, token 1, balance 4;
    # with the predecessor written, 1 more and a balance of 9
    seen_by_first = math.sqrt(width / (2 + 1 + 1 + 4))
    seen_by_second = math.sqrt(width / (2 + 1 + 1 + 1 + 9))
    head = width // 2

    # L0H0: the score of key p at query q is a multiple of cos(q - 1 - p), largest at the previous position
    attention = transformer.h[0].attn
    weight, step = attention.c_attn.weight, 2 * math.pi / context
    sharpness = 2 * _MARGIN * math.sqrt(head) / (1 - math.cos(step)) / seen_by_first**2
    weight[cos, 0], weight[sin, 0] = sharpness * math.cos(step), sharpness * math.sin(step)
    weight[cos, 1], weight[sin, 1] = -sharpness * math.sin(step), sharpness * math.cos(step)
    weight[cos, width], weight[sin, width + 1] = 1.0, 1.0
    _head_writes(attention, head, width, token, before, eye / seen_by_first, balance)

    # L1H0: query = current token; key = predecessor minus own token; where none matches, position 0 wins.
    # At position 0 without BOS, predecessor and own token are the same (it attends to itself): no match there
    attention = transformer.h[1].attn
    weight, bias = attention.c_attn.weight, attention.c_attn.bias
    strength = 4 * _MARGIN * math.sqrt(head) / seen_by_second**2
    places = torch.arange(n)
    weight[token, places] = strength
    weight[before, width + places] = 1.0
    weight[token, width + places] = -1.0
    bias[n] = 2 * _MARGIN * math.sqrt(head) / seen_by_second
    weight[first, width + n] = 1.0
    # value = own token minus predecessor, zero at position 0, so that the sink writes nothing
    _head_writes(attention, head, width, token, output, eye / seen_by_second, None)
    weight[before, 2 * width + places] = -weight[token, 2 * width + places]
    model.lm_head.weight[1:, output] = eye * _LOGIT


def _head_writes(
    attention: Any,
    head: int,
    width: int,
    source: torch.Tensor,
    target: torch.Tensor,
    matrix: torch.Tensor,
    balance: int | None,
) -> None:
    """Head 0 moves the `source` directions to the `target` directions, undoing LayerNorm's scale."""
    places = source.new_tensor(range(len(source)))
    attention.c_attn.weight[source, 2 * width + places] = matrix.diagonal()
    attention.c_proj.weight[places, target] = 1.0
    if balance is not None:
        attention.c_proj.weight[places, balance] = -1.0
