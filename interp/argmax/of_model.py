"""The output layer of a model: its rows as they are stored, what its last norm lets through, and what logits of few bits tell apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from interp.argmax import check
from interp.argmax.norm import Ball, reach
from interp.argmax.table import of_matrix
from interp.errors import InterpError
from interp.progress import track

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DTYPES = {"bfloat16": 8, "float16": 11}  # bits of a number's significand
_EVERY = 4096  # classes up to which the widest margin is found for all
_MEASURED = 1e-6  # relative error of a norm's gain
_CLEAR = 4.0  # spacings of bfloat16 logits that a guess must win by elsewhere


def output_layer(model: TransformerBridge) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows [class d_model] and biases [class] (None where it has none or all are 0) of a model's unembedding, in float64."""
    head = model.original_model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    rows = head.weight.detach().cpu().double().numpy()
    if bias is None or not bool(bias.detach().any()):
        return rows, None
    return rows, bias.detach().cpu().double().numpy()


def ball_of(model: TransformerBridge) -> Ball | None:
    """What the model's last norm can produce, as its unembedding meets it; None for a model whose last norm is none that is known."""
    from interp.stages.unembedding import last_norm

    try:
        gain, offset, centres = last_norm(model)
    except InterpError:
        return None
    rows, bias = output_layer(model)
    by, shift = gain.cpu().double().numpy(), offset.cpu().double().numpy()
    # measured: what is at the size of rounding is nothing
    shift = np.where(np.abs(shift) > 1e-5 * float(np.abs(by).max()), shift, 0.0)
    return Ball.of(rows, bias, by, shift, centres)


def of_model(model: TransformerBridge, *, seconds: float | None = None, parts: Path | None = None) -> pd.DataFrame:
    """`argmaxable` of a model's unembedding, and the same question for the states behind its last norm.

    Logit caps and scales change no verdict. Beside the columns of `argmaxable`: `norm_verdict` (argmaxable, unargmaxable, or tied: level within what the norm is known to, inside the
    ball), `norm_margin`, the widest margin there in logits (beyond 4,096 classes: at least that, where it is far above what bfloat16
    tells apart; below 0: nothing comes closer), `norm_least`, the share of the ball's radius at which the class is level with the best (infinite: never), and
    for bfloat16 and float16 `spacing_...`, the distance of neighbouring numbers at the class's logit there: a smaller margin may be lost.
    """
    rows, bias = output_layer(model)
    table = of_matrix(rows, bias, seconds=seconds, parts=parts)
    ball = ball_of(model)
    if ball is None:
        return table
    count = len(rows)
    free = not np.ptp(ball.offsets)
    least = np.where(table["verdict"] == "argmaxable", 0.0 if free else np.nan, np.inf)
    # a guess first: towards the class's own row, as long as allowed
    towards = ball.rows - ball.rows.mean(0)
    z = ball.radius * towards / np.linalg.norm(towards, axis=1, keepdims=True).clip(1e-30)
    margin, error, _ = check.leads(ball.rows, ball.offsets, np.arange(count), z)
    logit = (ball.rows * z).sum(1) + ball.offsets
    open_ = (
        np.arange(count) if count <= _EVERY else np.flatnonzero(margin < _CLEAR * spacing(logit, DTYPES["bfloat16"]))
    )
    for which in track(open_, "classes behind the norm", total=len(open_)):
        found = reach(ball, int(which))
        least[which] = found.least / ball.radius
        if not np.isfinite(found.margin):
            margin[which], logit[which] = found.margin, np.nan
            continue
        lead, _, _ = check.leads(ball.rows, ball.offsets, np.array([which]), found.z[None])
        if lead[0] > margin[which]:
            margin[which], logit[which] = lead[0], ball.rows[which] @ found.z + ball.offsets[which]
    twin = table["twin"].to_numpy() >= 0
    # gain and offset are measured, in single precision: what is closer to level than that is not told apart
    near = error + _MEASURED * ball.radius * np.linalg.norm(ball.rows, axis=1)
    level = np.where(margin < -near, "unargmaxable", "tied")
    table["norm_verdict"] = np.where(twin, "tied", np.where(margin > near, "argmaxable", level))
    table["norm_margin"], table["norm_least"] = margin, least
    for name, bits in DTYPES.items():
        table[f"spacing_{name}"] = spacing(logit, bits)
    return table


def spacing(logits: np.ndarray, bits: int) -> np.ndarray:
    """The distance between neighbouring numbers with `bits` of significand at each logit."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2.0 ** (np.floor(np.log2(np.abs(logits))) - bits + 1)
