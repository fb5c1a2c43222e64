"""Can each class of an output layer be the arg-max? Verdicts, each with a verified state or proof."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp import models
from interp.argmax.ball_search import margins_in_ball, spacing
from interp.argmax.norm_ball import NormBall
from interp.argmax.points import checked, groups, output_layer
from interp.argmax.search import Search
from interp.errors import InterpError
from interp.files import writable

VERDICTS = ("argmaxable", "tied", "unargmaxable", "undecided")
DTYPES = {"bfloat16": 8, "float16": 11}  # bits of a number's significand
_MEASURED = 1e-6  # relative error of a norm's gain


def argmaxability(
    source: Any, bias: Any = None, *, seconds: float | None = None, parts: Path | None = None
) -> pd.DataFrame:
    """Decide for every class of an output layer whether some hidden state makes it the arg-max.

    Every verdict is verified in float64 by `interp.argmax.verification`, which shares no code with the search. Caps and
    scales of logits change no verdict.

    Args:
        source: a loaded model, the name of one, or the weights [class d_model] themselves.
        bias: [class], for weights only; a model brings its own.
        seconds: how long to search; what is left then is undecided. None: until all are decided.
        parts: a folder in which verdicts are saved, so that an interrupted call goes on.

    Returns:
        One row per class: `verdict` (argmaxable, tied, unargmaxable, undecided); `witness` [d_model], a state that puts
        the class first, its lead `margin` (logits) and `norm`; or, as proof that none does, the convex combination
        (`others`, `weights`) of other rows that equals it. Of a model whose last norm is known also `norm_verdict`, and
        `norm_margin`, logits, the largest lead behind that norm; negative: never first. docs/argmaxability.md lists the
        other columns.

    Raises:
        InterpError: the source is not such a matrix or model.

    Source:
        Grivas, Bogoychev and Lopez 2022, Low-Rank Softmax Can Have Unargmaxable Classes, arXiv 2203.06462.

    Example:
        >>> rows = [[1, 1], [1, -1], [-1, 1], [-1, -1], [0, 0]]  # the last one lies inside the square of the others
        >>> interp.argmaxability(np.array(rows, float))["verdict"].tolist()
        ['argmaxable', 'argmaxable', 'argmaxable', 'argmaxable', 'unargmaxable']
    """
    if not isinstance(source, str) and not hasattr(source, "original_model"):
        return _matrix_table(source, bias, seconds, parts)
    if bias is not None:
        raise InterpError("a model brings its own biases: leave bias out")
    model = models.load(source) if isinstance(source, str) else source
    table = _matrix_table(*output_layer(model), seconds, parts)
    ball = NormBall.of_model(model)
    return table if ball is None else table.assign(**_norm_columns(ball, table, parts))


def _matrix_table(weights: Any, bias: Any, seconds: float | None, parts: Path | None) -> pd.DataFrame:
    """`argmaxability` of an array or tensor."""
    rows, offsets = checked(weights, bias)
    if offsets is not None and not np.ptp(offsets):
        offsets = None  # the same for all: no effect on any comparison
    first, group = groups(rows, offsets)
    # powers of two, so that nothing is rounded and no square overflows
    unit = _power_of_two(rows)
    unit_of_bias = unit if offsets is None else _power_of_two(offsets)
    scaled = rows[first] / unit, None if offsets is None else offsets[first] / unit_of_bias
    search = Search(*scaled, seconds, None if parts is None else writable(parts))
    table = pd.DataFrame(search.run()).iloc[group].reset_index(drop=True)
    table.insert(0, "id", table.index)
    table.insert(7, "twin", -1)
    table.insert(8, "first", table["witness"].notna())
    for g in np.flatnonzero(np.bincount(group) > 1):  # equal rows: neither is ever first alone
        same = np.flatnonzero(group == g)
        table.loc[same, "twin"] = np.where(same == same[0], same[1], same[0])
        table.loc[same, "verdict"], table.loc[same, "margin"] = "tied", 0.0
    table["others"] = [first[others] for others in table["others"]]
    # back to the original scales
    lengthened = unit_of_bias / unit
    table[["margin", "norm", "residual", "slack"]] *= [unit_of_bias, lengthened, unit, unit_of_bias]
    witnesses = [None if state is None else state * lengthened for state in table["witness"]]
    return table.assign(witness=pd.Series(witnesses, dtype=object))


def _power_of_two(values: np.ndarray) -> float:
    """The smallest power of two not below the largest absolute value; 1 for zeros."""
    largest = float(np.abs(values).max())
    return float(2.0 ** np.ceil(np.log2(largest))) if largest > 0 else 1.0


def _norm_columns(ball: NormBall, table: pd.DataFrame, parts: Path | None) -> dict[str, np.ndarray]:
    """What a model's last norm allows."""
    # a proof that no state puts a class first also holds in the ball; of two classes with equal rows, neither leads
    proofs = {i: (others, weights) for i, others, weights in table[["id", "others", "weights"]].values if len(others)}
    proofs |= {i: (np.array([twin]), np.ones(1)) for i, twin in table[["id", "twin"]].values if twin >= 0}
    found = margins_in_ball(ball, proofs=proofs, parts=None if parts is None else writable(parts))
    level = np.where(table["verdict"] == "argmaxable", np.nan if np.ptp(ball.offsets) else 0.0, np.inf)
    # gain and offset are measured in single precision: margins within that error of 0 cannot be resolved
    near = found.error + _MEASURED * ball.radius * np.linalg.norm(ball.rows, axis=1)
    never = found.margin < -near
    nowhere = table["verdict"] == "unargmaxable"  # nor in the ball
    clear = [table["twin"] >= 0, found.margin > near, nowhere | (never & (found.bound < 0)), never]
    verdict = np.select(clear, ["tied", "argmaxable", "unargmaxable", "undecided"], "tied")
    least = np.where(np.isnan(found.least), level, found.least)
    columns = {"norm_verdict": verdict, "norm_margin": found.margin, "norm_least": least}
    return columns | {f"spacing_{name}": spacing(found.logit, bits) for name, bits in DTYPES.items()}
