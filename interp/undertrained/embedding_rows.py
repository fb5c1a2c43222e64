"""What do the embedding rows of a token say about how much it was trained? Low values are suspicious.

The published indicators (Land and Bartolo 2024, "Fishing for Magikarp", section 3), and versions that share the
softmax's invariance: adding one vector to every unembedding row changes no probability, and should change no indicator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.linalg import eigh

from interp import cache
from interp.errors import InterpError
from interp.models import origin, published_tokenizer
from interp.vocabulary import IMPOSSIBLE, census

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from transformer_lens.model_bridge import TransformerBridge

_NEIGHBOURS = 10
_SKETCH = 64
_AT_ONCE = 1 << 18  # entries of a matrix that are held in double precision: matrices themselves may be large


@dataclass(frozen=True)
class Indicator:
    """`name`; whether it is `published`, invariant under U -> U + 1c^T (`shift_invariant`), and its definition."""

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
# chosen only on `organism`, see docs/undertrained.md; judged on the other two
DEFAULT = "e_out_cosine_centred"


@dataclass(frozen=True)
class Reference:
    """Ids known, or taken, to be unused; `source` is `census`, `asked` or `fallback` (from the rows themselves)."""

    ids: tuple[int, ...]
    source: str
    why: str


def embeddings(model: TransformerBridge) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, bool]:
    """E [token width], U [token width], the output bias [token] or None, and whether E is U.

    Raises `InterpError` for folded weights, and output layers of another size than the input's.
    """
    if origin(model).get("weights", "raw") != "raw":
        raise InterpError("folded weights change the rows that indicators read: load with weights='raw'")
    head = model.original_model.get_output_embeddings()
    if head is None:
        raise InterpError("this model has no output embeddings: indicators need a language model's head")
    weight = model.original_model.get_input_embeddings().weight
    if "meta" in (weight.device.type, head.weight.device.type):
        raise InterpError("device_map spreads the embedding to a disk, where its rows are not read: place it in memory")
    inputs = weight.detach().float().cpu().numpy()
    outputs = inputs if head.weight is weight else head.weight.detach().float().cpu().numpy()
    bias = getattr(head, "bias", None)
    bias = None if bias is None or not bool(bias.any()) else bias.detach().float().cpu().numpy()
    if len(inputs) != len(outputs):
        raise InterpError(
            f"the model embeds {len(inputs)} tokens and predicts {len(outputs)}: indicators need one row for each in "
            "both"
        )
    return inputs, outputs, bias, inputs is outputs or _equal(inputs, outputs)


def _equal(one: np.ndarray, two: np.ndarray) -> bool:
    return one.shape == two.shape and all(np.array_equal(one[part], two[part]) for part in _parts(one))


def _parts(rows: np.ndarray) -> Iterator[slice]:
    """Slices of a few rows, all of them together."""
    size = max(1, _AT_ONCE // max(1, rows.shape[1]))
    yield from (slice(start, start + size) for start in range(0, len(rows), size))


def _double(rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """A few rows at a time in double precision, with their places."""
    yield from ((part, rows[part].astype(np.float64)) for part in _parts(rows))


def _mean_row(rows: np.ndarray) -> np.ndarray:
    return sum((block.sum(0) for _, block in _double(rows)), np.zeros(rows.shape[1])) / len(rows)


def reference(model: TransformerBridge, asked: tuple[int, ...] | None = None) -> Reference:
    """The reference tokens: those whose bytes no text contains, and rows that no entry maps to.

    Tokens that only the merges make unreachable are left out: the training text may have been tokenized by other
    code. If nothing is left, `densest_rows` takes a cluster of unembedding rows.
    """
    if asked is not None:
        return Reference(asked, "asked", "as requested")
    if published_tokenizer(model) is not None:
        table = census(model)
        no_text = (table["kind"] == "beyond") | table["reason"].str.startswith("no valid UTF-8 contains")
        unused = table["id"][(table["reachable"] == IMPOSSIBLE) & no_text]
        if len(unused):
            why = "bytes that occur in no UTF-8 text, and rows without a tokenizer entry"
            return Reference(tuple(map(int, unused)), "census", why)

    def densest() -> list[Any]:
        found = densest_rows(embeddings(model)[1])
        return [found.ids, found.why]

    ids, why = cache.recalled(model, "densest rows", densest, __file__)
    return Reference(tuple(ids), "fallback", why)


def densest_rows(outputs: np.ndarray) -> Reference:
    """If no token is known to be unused: the row with the closest neighbours, and these.

    Unused rows are never targets, so training moves them all alike, and they end up close together. The source marks
    this as a guess.
    """
    rng = np.random.default_rng(0)
    mean, width = _mean_row(outputs), outputs.shape[1]
    onto = np.eye(width) if width <= _SKETCH else rng.standard_normal((width, _SKETCH)) / np.sqrt(_SKETCH)
    sketch = np.concatenate([((block - mean) @ onto).astype(np.float32) for _, block in _double(outputs)])
    k = min(_NEIGHBOURS, len(outputs) - 1)
    squares = (sketch**2).sum(1)
    radius = np.empty(len(sketch))
    size = max(1, min(1024, 16 * _AT_ONCE // len(sketch)))
    for start in range(0, len(sketch), size):
        part = slice(start, start + size)
        distance = squares[part, None] + squares - 2 * sketch[part] @ sketch.T
        radius[part] = np.partition(distance, k, axis=1)[:, k]
    # relative to its length: short rows are always near each other
    seed = int(np.argmin(radius.clip(min=0) / squares.clip(min=1e-12)))
    apart = np.concatenate([((block - outputs[seed]) ** 2).sum(1) for _, block in _double(outputs)])
    near = np.argsort(apart, kind="stable")[: k + 1]
    why = f"no token is provably unused: the {k + 1} rows closest to each other"
    return Reference(tuple(sorted(map(int, near))), "fallback", why)


def model_indicators(model: TransformerBridge, unused: Reference | None = None) -> dict[str, np.ndarray]:
    """Every indicator [token] that a model's embeddings allow, by name; `reference` finds `unused` if not given."""
    unused = unused or reference(model)
    inputs, outputs, bias, tied = embeddings(model)
    return indicators(inputs, outputs, unused.ids, bias=bias, tied=tied)


def indicators(
    inputs: ArrayLike, outputs: ArrayLike, unused: tuple[int, ...], *, bias: ArrayLike | None = None, tied: bool = False
) -> dict[str, np.ndarray]:
    """Every indicator that these embeddings allow, in double precision; the matrices are not copied.

    Args:
        inputs: [token width], the embedding E.
        outputs: [token width], the unembedding U.
        unused: the reference ids. A reference token is compared with the mean of the others, never with itself; a
            single one gives itself NaN.
        bias: [token], the output layer's, where it has one.
        tied: whether E is U; the input side is then left out where it only repeats the output side.

    Returns:
        Each indicator [token] by its name, in the order of `INDICATORS`; low values are suspicious.

    Raises:
        InterpError: for an empty reference, an id out of range, or rows that are not finite.

    Source:
        Land and Bartolo, "Fishing for Magikarp" (2024), section 3, for those that are published.
    """
    e, u = np.asarray(inputs), np.asarray(outputs)
    for rows, which in ((e, "input"), (u, "output")):
        bad = np.flatnonzero(np.concatenate([~np.isfinite(rows[part]).all(1) for part in _parts(rows)]))
        if len(bad):
            raise InterpError(
                f"the {which} embedding row of token {bad[0]} is not finite ({len(bad)} such rows): the checkpoint is "
                "damaged, fetch it again"
            )
    unused = tuple(dict.fromkeys(unused))
    if not unused:
        raise InterpError("the reference set is empty: name at least one unused token, or leave it out")
    if min(unused) < 0 or max(unused) >= len(u):
        raise InterpError(f"the reference names token {max(unused)}, and ids run from 0 to {len(u) - 1}")
    mean, last = _mean_row(u), u.shape[1] - 1
    squares = sum(((block - mean).T @ (block - mean) for _, block in _double(u)), np.zeros((last + 1, last + 1)))
    first = eigh(squares, subset_by_index=[last, last])[1][:, 0]  # principal component
    without = lambda rows: rows - np.outer(rows @ first, first)  # noqa: E731
    found = {
        "e_out_cosine_no_pc": _from_reference(u, unused, without)[0],
        "e_out_cosine_centred": _from_reference(u, unused, lambda rows: rows - mean)[0],
        "e_in_norm": _norms(e),
        "e_out_cosine_centred_no_pc": _from_reference(u, unused, lambda rows: without(rows - mean))[0],
        "e_out_centred_norm": _norms(u, mean),
    }
    found["e_out_cosine"], found["e_out_l2"] = _from_reference(u, unused)
    if bias is not None:
        b = np.asarray(bias, dtype=np.float64)
        found["e_out_bias"] = b - b.mean()
    if not tied:
        around = _mean_row(e)
        found["e_in_cosine_centred"] = _from_reference(e, unused, lambda rows: rows - around)[0]
        found["e_in_l2"] = _from_reference(e, unused)[1]
    return {indicator.name: found[indicator.name] for indicator in INDICATORS if indicator.name in found}


def _norms(rows: np.ndarray, around: np.ndarray | float = 0.0) -> np.ndarray:
    """The distance [token] of each row to a point."""
    return np.concatenate([np.linalg.norm(block - around, axis=1) for _, block in _double(rows)])


def _from_reference(
    rows: np.ndarray, unused: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray] = lambda rows: rows
) -> tuple[np.ndarray, np.ndarray]:
    """1 - cosine and distance [token] to the mean reference row; of a reference token, to the mean of the others.

    `change` is made to rows before, a few at a time.
    """
    count, is_reference = len(unused), np.zeros(len(rows), dtype=bool)
    is_reference[list(unused)] = True
    parts = [(part, np.flatnonzero(is_reference[part])) for part in _parts(rows)]
    total = np.zeros(rows.shape[1])
    for part, known in parts:
        total += change(rows[part][known].astype(np.float64)).sum(0)
    cosine, distance = np.empty(len(rows)), np.empty(len(rows))
    for (part, block), (_, known) in zip(_double(rows), parts, strict=True):
        changed = change(block)
        mean = np.broadcast_to(total / count, changed.shape).copy()
        # a single one has no others: NaN
        mean[known] = (total - changed[known]) / (count - 1) if count > 1 else np.nan
        norms = np.linalg.norm(changed, axis=1) * np.linalg.norm(mean, axis=1)
        cosine[part] = 1 - (changed * mean).sum(1) / norms.clip(min=1e-12)
        distance[part] = np.linalg.norm(changed - mean, axis=1)
    return cosine, distance
