"""What does a model's last norm do: what are its gain and bias, and does it subtract the mean?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.arguments import takes_what_it_says
from interp.errors import InterpError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@takes_what_it_says
def last_norm(model: TransformerBridge) -> tuple[Tensor, Tensor, bool]:
    """Measure the model's last norm on random vectors, as `norm_parts` does.

    Raises:
        InterpError: the model has none, or it is neither LayerNorm nor RMSNorm.
    """
    norm = getattr(model, "ln_final", None)
    if norm is None:
        raise InterpError("this model has no norm before its unembedding: its logits cannot be decomposed")
    return norm_parts(norm, model.original_model.get_output_embeddings().weight[0])


@takes_what_it_says
def norm_parts(norm: torch.nn.Module, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Measure a norm on random vectors.

    Args:
        norm: the module.
        like: a vector [d_model] with the dtype and device that it takes.

    Returns:
        Gain and bias [d_model], float32, and whether the norm subtracts the mean over features (LayerNorm does, RMSNorm
        does not).

    Raises:
        InterpError: the norm is neither LayerNorm nor RMSNorm.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(16, len(like), generator=generator)
    # long vectors, so that the norm's epsilon is negligible, but with squares that are finite even in float16
    vectors = min(100.0, torch.finfo(like.dtype).max ** 0.5 / 25) * vectors.to(like)
    normed, mirrored = (norm(v[None])[0].detach().float() for v in (vectors, -vectors))
    vectors, odd, even = vectors.float(), (normed - mirrored) / 2, (normed + mirrored) / 2
    for centres in (True, False):
        plain = vectors - vectors.mean(-1, keepdim=True) if centres else vectors
        unit = plain / plain.square().mean(-1, keepdim=True).sqrt()
        gain = (odd * unit).sum(0) / unit.square().sum(0)
        # in bfloat16 a norm is accurate to about a hundredth
        if float((odd - gain * unit).norm()) < 0.03 * float(odd.norm()):
            return gain, even.mean(0), centres
    raise InterpError("a norm of this model is neither LayerNorm nor RMSNorm: its input cannot be decomposed")
