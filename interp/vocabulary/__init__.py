"""What is each entry of a vocabulary, and can any text produce it? `census` says so, with a witness or a proof.

`anatomy` takes the tokenizer apart, `utf8` knows which bytes may stand where, `witness` searches and proves, `category`
has the six published categories.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from interp import results
from interp.errors import InterpError
from interp.files import replacing, write_text
from interp.models import origin
from interp.vocabulary.anatomy import Anatomy, anatomy, load_tokenizer, own_tokenizer
from interp.vocabulary.category import categories
from interp.vocabulary.witness import IMPOSSIBLE, REACHABLE, UNKNOWN, Evidence, evidence

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = [
    "IMPOSSIBLE",
    "KINDS",
    "REACHABLE",
    "UNKNOWN",
    "census",
    "load_tokenizer",
    "own_tokenizer",
    "save",
    "summary",
    "survey",
]

KINDS = ("byte", "fragment", "text", "special", "added", "beyond")
_REMEMBERED: dict[tuple[str, int], pd.DataFrame] = {}


def census(source: TransformerBridge | Any) -> pd.DataFrame:
    """One row per embedding row of a model, or per id of a tokenizer; index and column `id`.

    Columns: `text` printable, broken bytes as `<0xE2>`; `bytes` in hexadecimal, empty for special tokens; `kind`: a
    single `byte`, a `fragment` of UTF-8 (no whole characters), `text`, `special`, `added` (matched before the
    tokenizer's algorithm runs), `beyond` (no tokenizer entry); `roundtrip`: decoded alone and encoded again it is the
    same token; `category`: the six of Land and Bartolo (2024), empty for `beyond`; `reachable`: `reachable` with a
    `witness` text whose encoding holds the token, `impossible`, or `unknown`; `reason`: how the witness was
    found, why no text can produce it, or what was tried; `parent_left`, `parent_right`: the tokens it is
    merged of, -1 where it is not merged; `part_of`: ids merged of it, separated by spaces.

    `attrs["provenance"]` says what was looked at. Raises `InterpError` for a model without a tokenizer.
    """
    is_model = hasattr(source, "original_model")
    tokenizer = own_tokenizer(source) if is_model else source
    if tokenizer is None:
        raise InterpError("this model has no tokenizer: save one beside it, or give --tokenizer a folder that has one")
    if not hasattr(tokenizer, "get_vocab"):
        raise InterpError(f"a census needs a model or a tokenizer, not a {type(tokenizer).__name__}")
    about = anatomy(tokenizer)
    entries = max(about.entries, default=-1) + 1
    rows = int(source.original_model.get_input_embeddings().weight.shape[0]) if is_model else entries
    digest = _digest(about)
    if (digest, rows) in _REMEMBERED:
        table = _REMEMBERED[digest, rows].copy()
    else:
        table = _table(about, rows)
        if about.state:  # else entries may be all that two tokenizers share
            _REMEMBERED[digest, rows] = table.copy()
    table.attrs["provenance"] = {
        "tokenizer": {
            "scheme": about.scheme, "entries": len(about.entries), "sha256": digest, "name": str(tokenizer.name_or_path),
            "beyond_the_embedding": sum(i >= rows for i in about.entries),
        },
        "rows": rows,
        "model": origin(source) if is_model else None,
        "versions": results.versions(),
    }  # fmt: skip
    return table


def _table(about: Anatomy, rows: int) -> pd.DataFrame:
    known = evidence(about)
    inside = [i for i in range(rows) if i in about.entries]
    published = categories(about.tokenizer, inside, about.special)
    nothing = Evidence(IMPOSSIBLE, "", "no tokenizer entry maps to this row")
    records = []
    for i in range(rows):
        found = known.get(i, nothing)
        category, roundtrip = published.get(i, ("", False))
        parents = about.parents.get(i, (-1, -1))
        raw = about.raw.get(i)
        records.append((
            i, printable(about, i), raw.hex() if raw else "", _kind(about, i), roundtrip, category, found.reachable,
            found.witness, found.reason, *parents, " ".join(map(str, about.children.get(i, []))),
        ))  # fmt: skip
    columns = [
        "id", "text", "bytes", "kind", "roundtrip", "category", "reachable", "witness", "reason", "parent_left",
        "parent_right", "part_of",
    ]  # fmt: skip
    return pd.DataFrame(records, columns=columns).set_index("id", drop=False)


def _kind(about: Anatomy, i: int) -> str:
    if i not in about.entries:
        return "beyond"
    if i in about.special:
        return "special"
    if i in about.added:
        return "added"
    raw = about.raw[i] or b""
    if about.is_fallback_byte(i) or (about.scheme == "byte-level BPE" and len(raw) == 1):
        return "byte"
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "fragment"
    return "text"


def printable(about: Anatomy, i: int) -> str:
    """A text to show for a token: control characters escaped, broken bytes as `<0xE2>`, `[id]` beyond the tokenizer."""
    raw = about.raw.get(i)
    if i not in about.entries:
        return f"[{i}]"
    if raw is None:
        return about.entries[i]
    if about.is_fallback_byte(i):
        return about.entries[i]
    text = raw.decode("utf-8", "surrogateescape")
    return "".join(
        f"<0x{ord(c) - 0xDC00:02X}>" if 0xDC80 <= ord(c) <= 0xDCFF
        else c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in text
    )  # fmt: skip


def _digest(about: Anatomy) -> str:
    text = json.dumps(about.state or about.entries, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def summary(table: pd.DataFrame) -> xr.Dataset:
    """How many tokens there are: `count` [kind reachable] and `published` [category], stamped."""
    reachable = [REACHABLE, IMPOSSIBLE, UNKNOWN]
    counts = pd.crosstab(table["kind"], table["reachable"]).reindex(index=KINDS, columns=reachable, fill_value=0)
    names = [c for c in sorted(table["category"].unique()) if c]
    disagree = pd.crosstab(table["category"], table["reachable"]).reindex(index=names, columns=reachable, fill_value=0)
    dataset = xr.Dataset(
        {
            "count": (("kind", "reachable"), counts.to_numpy().astype(np.int64)),
            "published": (("category", "reachable"), disagree.to_numpy().astype(np.int64)),
        },
        coords={"kind": list(KINDS), "reachable": reachable, "category": names},
    )
    return results.stamp(dataset, {"census": True, **table.attrs.get("provenance", {})})


def survey(source: TransformerBridge | Any, folder: str | Path) -> tuple[pd.DataFrame, xr.Dataset]:
    """The census of a model or a tokenizer, and its summary, which is also stored as `folder/result.nc`."""
    table = census(source)
    counts = summary(table)
    results.save(counts, Path(folder) / "result.nc")
    return table, counts


def save(table: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write `census.parquet`, `census.csv` and `census.json` (where it comes from) into a folder, whole or not at all."""
    folder = Path(folder)
    paths = [folder / f"census.{suffix}" for suffix in ("parquet", "csv", "json")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(paths[0]) as parquet, replacing(paths[1]) as sheet:
            table.reset_index(drop=True).to_parquet(parquet, index=False)
            table.to_csv(sheet, index=False, quoting=csv.QUOTE_NONNUMERIC)  # witnesses hold line ends
        write_text(paths[2], json.dumps(table.attrs.get("provenance", {}), indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise InterpError(f"cannot write to {folder} ({error.strerror or error}): choose another --out") from error
    return paths
