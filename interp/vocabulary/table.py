"""What is each entry of a vocabulary, and can any text produce it? One row per token, and counts by kind."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from interp import results
from interp.cache import file_sha256
from interp.errors import InterpError
from interp.files import replacing, user_cache, writable, write_errors, write_text
from interp.models import load_tokenizer as load_tokenizer, origin, published_tokenizer
from interp.vocabulary.anatomy import Anatomy, anatomy
from interp.vocabulary.roundtrip import categories
from interp.vocabulary.witness import IMPOSSIBLE, REACHABLE, UNKNOWN, Evidence, evidence

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KINDS = ("byte", "fragment", "text", "special", "added", "beyond")
_LARGE = 10_000  # vocabulary size from which on a census is cached
_REMEMBERED: dict[tuple[str, int], pd.DataFrame] = {}
_TEXT_IDS: dict[tuple[str, int], tuple[int, ...]] = {}


def census(source: TransformerBridge | Any) -> pd.DataFrame:
    """Say of every token what it is, and whether any text can produce it.

    Args:
        source: a model, or a Hugging Face tokenizer.

    Returns:
        One row per embedding row of a model, or per id of a tokenizer. `text` and `bytes` (hexadecimal); `kind`:
        `byte`, `fragment` (of UTF-8), `text`, `special`, `added` or `beyond` (no tokenizer entry); `roundtrip`, whether
        decoding and encoding give the token back; `category` of Land and Bartolo; `reachable`: `reachable` with a
        `witness` text that encodes to it, `impossible` or `unknown`, and the `reason`; `parent_left`, `parent_right`
        and `part_of`, ids it is merged from (-1: none) and into. `attrs["provenance"]` says what was examined.

    Raises:
        InterpError: a model has no tokenizer, or the source is neither.

    Source:
        Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417, for the categories.

    Example:
        >>> interp.census(interp.load("organism")).loc[[72, 300], ["text", "kind", "reachable"]].values.tolist()
        [['i', 'byte', 'reachable'], ['--', 'text', 'reachable']]
    """
    parts, rows = _parts_and_rows(source)
    digest = _digest(parts)
    # without a state, two different tokenizers may have the same entries
    known = _REMEMBERED.get((digest, rows)) if parts.state else None
    table = _stored_or_made(parts, rows, digest) if known is None else known
    if parts.state:
        _REMEMBERED[digest, rows] = table
    table = table.copy()
    table.attrs["provenance"] = {
        "tokenizer": {
            "scheme": parts.scheme,
            "entries": len(parts.entries),
            "sha256": digest,
            "name": str(parts.tokenizer.name_or_path),
            "beyond_the_embedding": sum(i >= rows for i in parts.entries),
        },
        "rows": rows,
        "model": origin(source) if hasattr(source, "original_model") else None,
        "versions": results.versions(),
    }
    return table


def _digest(parts: Anatomy) -> str:
    text = json.dumps(parts.state or parts.entries, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _stored_or_made(parts: Anatomy, rows: int, digest: str) -> pd.DataFrame:
    """The table; for a large vocabulary, which takes many seconds, it is kept in the user's cache."""
    if rows < _LARGE or not parts.state:
        return _table(parts, rows)
    versions = [importlib.metadata.version(name) for name in ("tokenizers", "transformers", "pandas")]
    code = [file_sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    key = hashlib.sha256(json.dumps([digest, rows, parts.scheme, versions, code]).encode()).hexdigest()[:16]
    place = user_cache() / "known" / f"census-{key}.parquet"
    try:
        return pd.read_parquet(place).set_index("id", drop=False)
    except (OSError, ValueError):  # there is none, or it is damaged
        table = _table(parts, rows)
    with contextlib.suppress(OSError, ValueError, InterpError), replacing(writable(place.parent) / place.name) as made:
        table.reset_index(drop=True).to_parquet(made, index=False)
    return table


def text_ids(source: TransformerBridge | Any) -> tuple[int, ...]:
    """Ids of text tokens that the tokenizer produces from some text.

    Args:
        source: a model, or a Hugging Face tokenizer.

    Returns:
        Tokens that are `text` and `reachable` in the census; and single bytes and added tokens that are text, if they
        decode and encode to themselves.

    Raises:
        InterpError: under the same conditions as `census`.
    """
    parts, rows = _parts_and_rows(source)
    asked = (_digest(parts), rows)
    if asked not in _TEXT_IDS or not parts.state:
        _TEXT_IDS[asked] = _text_ids(source, parts, rows)
    return _TEXT_IDS[asked]


def _text_ids(source: TransformerBridge | Any, parts: Anatomy, rows: int) -> tuple[int, ...]:
    kinds = {i: _kind(parts, i) for i in range(rows)}
    chosen = [i for i, kind in kinds.items() if kind in ("text", "byte", "added")]
    alone = {i for i, (_, same) in categories(parts.tokenizer, chosen, parts.special).items() if same}
    whole = {i for i in alone if kinds[i] == "text" or parts.text(i)}
    if all(i in alone for i, kind in kinds.items() if kind == "text"):
        return tuple(sorted(whole))
    table = census(source)  # the longer search, for tokens that need other text around them
    reachable = table["id"][(table["kind"] == "text") & (table["reachable"] == REACHABLE)]
    return tuple(sorted(whole | set(map(int, reachable))))


def _parts_and_rows(source: TransformerBridge | Any) -> tuple[Anatomy, int]:
    """The tokenizer taken apart, and the number of ids: a model's embedding rows, otherwise the tokenizer's own."""
    is_model = hasattr(source, "original_model")
    tokenizer = published_tokenizer(source) if is_model else source
    if tokenizer is None:
        raise InterpError("this model has no tokenizer: save one in the model's folder")
    if not hasattr(tokenizer, "get_vocab"):
        raise InterpError(f"a census needs a model or a tokenizer, not a {type(tokenizer).__name__}")
    parts = anatomy(tokenizer)
    entries = max(parts.entries, default=-1) + 1
    return parts, int(source.original_model.get_input_embeddings().weight.shape[0]) if is_model else entries


def _table(parts: Anatomy, rows: int) -> pd.DataFrame:
    ids = range(rows)
    known = evidence(parts)
    nothing = Evidence(IMPOSSIBLE, "", "no tokenizer entry maps to this row")
    found = [known.get(i, nothing) for i in ids]
    published = categories(parts.tokenizer, [i for i in ids if i in parts.entries], parts.special)
    columns = {
        "id": ids,
        "text": [_printable(parts, i) for i in ids],
        "bytes": [(parts.raw.get(i) or b"").hex() for i in ids],
        "kind": [_kind(parts, i) for i in ids],
        "roundtrip": [published.get(i, ("", False))[1] for i in ids],
        "category": [published.get(i, ("", False))[0] for i in ids],
        "reachable": [evidence.reachable for evidence in found],
        "witness": [evidence.witness for evidence in found],
        "reason": [evidence.reason for evidence in found],
        "parent_left": [parts.parents.get(i, (-1, -1))[0] for i in ids],
        "parent_right": [parts.parents.get(i, (-1, -1))[1] for i in ids],
        "part_of": [" ".join(map(str, parts.children.get(i, []))) for i in ids],
    }
    return pd.DataFrame(columns).set_index("id", drop=False)


def _kind(parts: Anatomy, i: int) -> str:
    if i not in parts.entries:
        return "beyond"
    if i in parts.special:
        return "special"
    if i in parts.added:
        return "added"
    raw = parts.raw[i] or b""
    if parts.is_fallback_byte(i) or (parts.scheme == "byte-level BPE" and len(raw) == 1):
        return "byte"
    return "text" if parts.text(i) or not raw else "fragment"


def _printable(parts: Anatomy, i: int) -> str:
    """A token's text for display: control characters escaped, broken bytes as `<0xE2>`, `[id]` beyond the tokenizer."""
    raw = parts.raw.get(i)
    if raw is None or parts.is_fallback_byte(i):
        return parts.entries.get(i, f"[{i}]")
    return "".join(map(_printable_character, raw.decode("utf-8", "surrogateescape")))


def _printable_character(c: str) -> str:
    if 0xDC80 <= ord(c) <= 0xDCFF:
        return f"<0x{ord(c) - 0xDC00:02X}>"
    return c if c.isprintable() else c.encode("unicode_escape").decode()


def summary(table: pd.DataFrame) -> xr.Dataset:
    """How many tokens of each kind, and of each published category, a text can produce.

    Args:
        table: a census.

    Returns:
        `count` [kind reachable] and `published` [category reachable], numbers of tokens. The source is described by the
        attributes `model_name` ("" for a tokenizer alone), `rows`, `tokenizer_name`, `tokenizer_scheme`,
        `tokenizer_entries`, `tokenizer_sha256` and `beyond_the_embedding` (entries without an embedding row). It is
        stamped as a result of the experiment `census`, so that it is shown as one.
    """
    answers = [REACHABLE, IMPOSSIBLE, UNKNOWN]
    categories = [c for c in sorted(table["category"].unique()) if c]
    coords = {"kind": list(KINDS), "reachable": answers, "category": categories}
    data = {}
    for name, column in (("count", "kind"), ("published", "category")):
        counts = pd.crosstab(table[column], table["reachable"])
        counts = counts.reindex(index=coords[column], columns=answers, fill_value=0)
        data[name] = ((column, "reachable"), counts.to_numpy().astype(np.int64))
    dataset = xr.Dataset(data, coords=coords)
    if "provenance" not in table.attrs:
        return dataset
    return results.stamp(
        dataset.assign_attrs(results.tokenizer_attributes(table.attrs["provenance"])), provenance(table)
    )


def provenance(table: pd.DataFrame) -> dict[str, Any]:
    """The provenance of a census: the experiment's name, the model (or None), the tokenizer, rows, versions."""
    return {"experiment": "census", "parameters": {}, "pools": {}, **table.attrs.get("provenance", {})}


def survey(source: TransformerBridge | Any, folder: str | Path) -> tuple[pd.DataFrame, xr.Dataset]:
    """The census of a model or a tokenizer, and its summary, which is stored as `folder/result.nc`."""
    table = census(source)
    counts = summary(table)
    results.save(counts, Path(folder) / "result.nc")
    return table, counts


def save(table: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write a census atomically as `census.parquet`, `census.csv` and `census.json` (where it comes from).

    Args:
        table: a census.
        folder: created if it does not exist.

    Returns:
        The three files.

    Raises:
        InterpError: the folder cannot be written to.
    """
    folder = Path(folder)
    paths = [folder / f"census.{suffix}" for suffix in ("parquet", "csv", "json")]
    with write_errors(f"to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(paths[0]) as parquet, replacing(paths[1]) as sheet:
            table.reset_index(drop=True).to_parquet(parquet, index=False)
            table.to_csv(sheet, index=False, quoting=csv.QUOTE_NONNUMERIC)  # witnesses contain line breaks
        write_text(paths[2], json.dumps(table.attrs.get("provenance", {}), indent=1, sort_keys=True) + "\n")
    return paths
