"""What do the embedding rows of a token say about how much it was trained? Low values are suspicious.

The published indicators (Land and Bartolo 2024, "Fishing for Magikarp", section 3) and versions of them that the softmax's
own invariance leaves alone: adding one vector to every unembedding row changes no probability, and should change no
indicator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interp.errors import InterpError
from interp.models import origin
from interp.vocabulary import IMPOSSIBLE, census

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from transformer_lens.model_bridge import TransformerBridge

_NEIGHBOURS = 10
_SKETCH = 64


@dataclass(frozen=True)
class Indicator:
    """`name`; whether it is `published`, unchanged under U -> U + 1c^T (`shift_invariant`), and what it is."""

    name: str
    published: bool
    shift_invariant: bool
    meaning: str


INDICATORS = (
    Indicator("e_out_cosine", True, False, "1 - cos(U_i, m), m the mean reference row of the unembedding"),
    Indicator("e_out_cosine_no_pc", True, False, "the same with the first principal component removed from U"),
    Indicator("e_out_cosine_centred", True, True, "the same on U less its mean row"),
    Indicator("e_out_l2", True, True, "|U_i - m|"),
    Indicator("e_in_norm", True, True, "|E_i|"),
    Indicator("e_out_bias", True, True, "b_i less the mean bias, where the output layer has one"),
    Indicator("e_out_cosine_centred_no_pc", False, True, "1 - cos with mean row and first component removed"),
    Indicator("e_out_centred_norm", False, True, "|U_i - mean row|"),
    Indicator("e_in_cosine_centred", False, True, "1 - cos(E_i, m) on E less its mean row, where E is not U"),
    Indicator("e_in_l2", False, True, "|E_i - m|, where E is not U"),
)
# chosen on `organism` alone, see docs/undertrained.md; judged on the other two
DEFAULT = "e_out_cosine_centred"


@dataclass(frozen=True)
class Reference:
    """Ids known, or taken, to be unused; `source` is `census`, `asked` or `fallback` (from the rows themselves)."""

    ids: tuple[int, ...]
    source: str
    why: str


def embeddings(model: TransformerBridge) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, bool]:
    """E [token, width], U [token, width], the output bias [token] or None, and whether E is U.

    Raises `InterpError` for folded weights, rows that are not finite, and output layers of another size than the input's.
    """
    if origin(model).get("weights", "raw") != "raw":
        raise InterpError("folded weights change the rows that indicators read: load with weights='raw'")
    source = model.original_model
    head = source.get_output_embeddings()
    if head is None:
        raise InterpError("this model has no output embeddings: indicators need a language model's head")
    inputs, outputs = (m.weight.detach().float().cpu().numpy() for m in (source.get_input_embeddings(), head))
    bias = getattr(head, "bias", None)
    bias = None if bias is None or not bool(bias.any()) else bias.detach().float().cpu().numpy()
    if len(inputs) != len(outputs):
        raise InterpError(
            f"the model embeds {len(inputs)} tokens and predicts {len(outputs)}: indicators need one row for each in both"
        )
    check_rows(inputs, "input")
    check_rows(outputs, "output")
    return inputs, outputs, bias, bool(inputs.shape == outputs.shape and np.array_equal(inputs, outputs))


def check_rows(rows: np.ndarray, which: str) -> None:
    """Raise `InterpError` where a row holds NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise InterpError(
            f"the {which} embedding row of token {bad[0]} is not finite ({len(bad)} such rows): the checkpoint is damaged, "
            "fetch it again"
        )


def reference(model: TransformerBridge, asked: tuple[int, ...] | None = None) -> Reference:
    """The tokens to compare with: those whose bytes no text contains and rows that no entry maps to.

    Tokens that merging alone cannot produce are left out: the text a model was trained on may have been tokenized by
    other code. Where nothing is left, `fallback` takes the densest knot of unembedding rows.
    """
    if asked is not None:
        if not asked:
            raise InterpError("the reference set is empty: name at least one unused token, or leave it out")
        return Reference(asked, "asked", "as asked for")
    table = census(model) if model.tokenizer is not None else None
    if table is not None:
        unused = table[
            (table["reachable"] == IMPOSSIBLE)
            & ((table["kind"] == "beyond") | table["reason"].str.startswith("no valid UTF-8 contains"))
        ]
        if len(unused):
            return Reference(
                tuple(map(int, unused["id"])), "census", "bytes in no UTF-8 text, and rows without an entry"
            )
    return fallback(embeddings(model)[1])


def fallback(outputs: np.ndarray) -> Reference:
    """Without any token known to be unused: the row with the nearest neighbours, and these.

    Never trained as a target, unused rows are all moved alike, and end close together. A guess, and marked as one.
    """
    rng = np.random.default_rng(0)
    centred = outputs - outputs.mean(0)
    width = centred.shape[1]
    sketch = centred if width <= _SKETCH else centred @ (rng.standard_normal((width, _SKETCH)) / np.sqrt(_SKETCH))
    sketch = sketch.astype(np.float32)
    k = min(_NEIGHBOURS, len(outputs) - 1)
    squares = (sketch**2).sum(1)
    radius = np.empty(len(sketch))
    for start in range(0, len(sketch), 1024):
        part = slice(start, start + 1024)
        distance = squares[part, None] + squares - 2 * sketch[part] @ sketch.T
        radius[part] = np.partition(distance, k, axis=1)[:, k]
    # relative to its length: short rows are near each other whatever they are
    seed = int(np.argmin(radius.clip(min=0) / squares.clip(min=1e-12)))
    near = np.argsort(((centred - centred[seed]) ** 2).sum(1), kind="stable")[: k + 1]
    return Reference(
        tuple(sorted(map(int, near))), "fallback", f"no token is provably unused: the {k + 1} rows closest together"
    )


def indicators(
    inputs: ArrayLike, outputs: ArrayLike, unused: tuple[int, ...], *, bias: ArrayLike | None = None, tied: bool = False
) -> dict[str, np.ndarray]:
    """Every indicator [token] that these embeddings [token, width] allow, by name (`INDICATORS`).

    `unused` are the reference ids. A reference token is compared with the mean of the others, never with itself; a
    single one gives itself NaN. Of tied embeddings the input side is left out where it only repeats the output
    side. Raises `InterpError` for an empty reference, an id out of range, or rows that are not finite.
    """
    e, u = np.asarray(inputs, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    for rows, which in ((e, "input"), (u, "output")):
        check_rows(rows, which)
    unused = tuple(dict.fromkeys(unused))
    if not unused:
        raise InterpError("the reference set is empty: name at least one unused token")
    if min(unused) < 0 or max(unused) >= len(u):
        raise InterpError(f"the reference names token {max(unused)}, and ids run from 0 to {len(u) - 1}")
    centred = u - u.mean(0)
    first = _first_component(centred)
    found = {
        "e_out_cosine": _cosine(u, unused),
        "e_out_cosine_no_pc": _cosine(u - np.outer(u @ first, first), unused),
        "e_out_cosine_centred": _cosine(centred, unused),
        "e_out_l2": _distance(u, unused),
        "e_in_norm": np.linalg.norm(e, axis=1),
        "e_out_cosine_centred_no_pc": _cosine(centred - np.outer(centred @ first, first), unused),
        "e_out_centred_norm": np.linalg.norm(centred, axis=1),
    }
    if bias is not None:
        b = np.asarray(bias, dtype=np.float64)
        found["e_out_bias"] = b - b.mean()
    if not tied:
        found["e_in_cosine_centred"] = _cosine(e - e.mean(0), unused)
        found["e_in_l2"] = _distance(e, unused)
    return {indicator.name: found[indicator.name] for indicator in INDICATORS if indicator.name in found}


def _first_component(centred: np.ndarray) -> np.ndarray:
    from scipy.linalg import eigh

    width = centred.shape[1]
    _, vectors = eigh(centred.T @ centred, subset_by_index=[width - 1, width - 1])
    return vectors[:, 0]


def _means(rows: np.ndarray, unused: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean reference row, and for each reference token the mean of the others (NaN where there are none)."""
    ids = np.asarray(unused)
    total = rows[ids].sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        others = (total - rows[ids]) / (len(ids) - 1)
    return total / len(ids), ids, np.where(len(ids) > 1, others, np.nan)


def _cosine(rows: np.ndarray, unused: tuple[int, ...]) -> np.ndarray:
    mean, ids, others = _means(rows, unused)
    norms = np.linalg.norm(rows, axis=1)
    value = 1 - rows @ mean / (norms * np.linalg.norm(mean)).clip(min=1e-12)
    value[ids] = 1 - (rows[ids] * others).sum(1) / (norms[ids] * np.linalg.norm(others, axis=1)).clip(min=1e-12)
    return value


def _distance(rows: np.ndarray, unused: tuple[int, ...]) -> np.ndarray:
    mean, ids, others = _means(rows, unused)
    value = np.linalg.norm(rows - mean, axis=1)
    value[ids] = np.linalg.norm(rows[ids] - others, axis=1)
    return value
