"""Why does a head attend where it does: which components wrote its score?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.experiments.attention_scores.experiment import attention_scores
from interp.heads import classify_on_reference, heads_of_kind
from interp.hooks import Head, head_name, parse_heads, record
from interp.identities import require
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.scores import PLACES, ScoreTerms, score_terms, source_hooks, source_parts
from interp.tokens import Draw, Pool, Prompts, Repeated, Sequences, local_generator

KEYS = ("induction", "control")
BUDGETS = {"quick": {"batch": 8, "most": 1, "sources": 1}, "thorough": {"batch": 128, "most": 4, "sources": 4}}
OF_BLOCKS = ("reference",)
_ROUNDING = 1e-4  # of the spread of the scores
_TOKENS, _CONTROLS = 256, 1 << 33  # in one pass; streams of the seed from here on draw controls


def score_attribution(
    model: TransformerBridge,
    pools: list[Pool] | list[Sequences],
    draw: Draw,
    keep: Keep = at_once,
    *,
    heads: str | Sequence[str | Sequence[int]] = "",
    most: int = 2,
    sources: int = 2,
    key: str = "",
    query: str = "",
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Split the attention score of heads, before the softmax, by the components that wrote the query and the key.

    A score is a sum over pairs of components, with the run's own norm scales; it is averaged over the tested inducible
    queries, at the induction key and at a random control key.

    Args:
        model: any loaded model.
        pools: the tokens of the sequences, or prompts with named parts.
        draw: draws sequences of a pool.
        keep: stores finished parts.
        heads: names such as "L1H2,L0H2", or (layer, head) pairs; by default the best induction heads, of prompts the
            heads that attend most to the key.
        most: how many heads, where none are named.
        sources: how many earlier heads, those that contribute most through the keys, are split further.
        key: of prompts, the name of the attended positions; not needed where there is only one name.
        query: of prompts, the name of the attending positions; by default those from which the answer is predicted, or
            the last one where there is none.
        reference: on blocks, the pool on which heads are classified (default: the model's ordinary tokens).
        seed: decides the sequences without a repeat and the control keys.

    Returns:
        `score` [pool attending key_kind batch], as the softmax takes it (before a cap), and `part` [pool attending
        key_kind query_writer key_writer batch], which sums to it; positive raises attention; NaN for components behind
        the head. `source_part` [pool attending key_kind source place component batch] splits the part of each
        `source_head` by where it looked and what it moved.

    Raises:
        InterpError: a number is too small, a head or a name does not exist, blocks have fewer than four tokens, there
            is no induction head, or the model's scores are not such a sum.

    Source:
        Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.

    Example:
        >>> result = interp.run("score_attribution", "wired", "1:33", batch=2, length=6)
        >>> parts = result["part"].sum(["query_writer", "key_writer"])
        >>> bool(abs(parts - result["score"]).max() < 1e-3)
        True
    """
    if most < 1 or sources < 0:
        raise InterpError(f"most {most}, sources {sources}: use a positive integer, and 0 or a positive integer")
    require(model, "residual", "heads", "scores")
    chosen = list(dict.fromkeys(parse_heads(model, heads or ())))
    prompts = [one for one in pools if isinstance(one, Prompts)]
    if not prompts and (key or query):
        raise InterpError("key and query name positions of prompts, and these are repeated blocks: leave them out")
    key = _key(prompts, key, query) if prompts else ""
    if prompts and not chosen:
        chosen = _attending(model, prompts, key, query, most)
    if not chosen:
        healthy, found = classify_on_reference(model, draw, keep, reference, seed=seed)
        chosen = heads_of_kind(found, "induction")[:most]
        if not chosen:
            raise InterpError(f"no induction head was found on '{healthy.name}': name heads, e.g. heads='L1H0'")
    parts, split = [], list[list[Head]]()
    names = [one.name for one in pools if isinstance(one, Pool | Prompts)]
    for name, pool in zip(names, pools, strict=True):
        if isinstance(pool, Pool):
            drawn = draw(pool)
            tokens: Repeated | Prompts = drawn
            places = _places_of_blocks(drawn, seed)
        else:
            assert isinstance(pool, Prompts)
            tokens, places = pool, _places_of_prompts(pool, key, query, seed)
        data = keep(f"scores {name}", partial(_parts, model, tokens, chosen, places)).drop_attrs()
        # the first pool decides which sources are split, so that pools can be compared
        split = split or [_largest(data, head, sources) for head in chosen]
        further = keep(f"sources {name}", partial(_sources, model, tokens, chosen, split, sources, places))
        said = dict(further.attrs)
        parts.append(xr.merge([data, further.drop_attrs()]))
    joined = xr.concat(parts, xr.DataArray(names, dims="pool", name="pool"), join="outer")
    split_names = np.full((len(chosen), sources), "", dtype=object)
    for i, found_heads in enumerate(split):
        split_names[i, : len(found_heads)] = [*map(head_name, found_heads)]
    worst = float(joined["error"].max())
    if worst > (_ROUNDING if next(model.parameters()).dtype.itemsize >= 4 else 0.3):
        raise InterpError(
            f"the parts of the scores of this model's heads do not sum to them (off by {worst:.2g} of their spread): "
            "attention_scores needs patterns alone"
        )
    reason = {"no_sources": said["no_sources"]} if said.get("no_sources") else {}
    unseen = joined["score"].isel(key_kind=0).isnull().all(["pool", "batch"]).values
    beyond = [head_name(head) for head, none in zip(chosen, unseen, strict=True) if none]
    reason |= {"out_of_reach": ", ".join(beyond)} if beyond else {}
    return joined.assign_coords(source_head=(("attending", "source"), split_names)).assign_attrs(reason)


@dataclass(frozen=True)
class _Places:
    """Where scores are split: `at` [key_kind place 3], sequence, query and key; a key of -1 is none."""

    kinds: tuple[str, ...]
    at: np.ndarray


def _key(prompts: Sequence[Prompts], key: str, query: str) -> str:
    """The name of the positions that are attended to."""
    for one in prompts:
        for name in filter(None, (key, query)):
            if name not in one.labels:
                raise InterpError(f"no positions of '{one.pool}' are named '{name}': use {', '.join(one.labels)}")
    named = [n for n in prompts[0].labels if n not in (query, "last") and all(n in one.labels for one in prompts)]
    if not key and len(named) != 1:
        raise InterpError(f"name the positions that are attended to: key, one of {', '.join(named) or 'none'}")
    return key or named[0]


def _attending(model: TransformerBridge, prompts: Sequence[Prompts], key: str, query: str, most: int) -> list[Head]:
    """The heads that attend most to the key, over all prompts."""
    if key in (query, "last"):
        raise InterpError(f"how heads attend to '{key}' from there is not scored: name heads, e.g. heads='L1H0'")
    scores = [attention_scores(model, one, query=query)["score"].sel(key_kind=key) for one in prompts]
    mean = xr.concat(scores, "batch", coords="minimal", compat="override").mean("batch").fillna(-1.0)
    order = np.argsort(-mean.transpose("layer", "head").values, axis=None, kind="stable")[:most]
    return [(int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, mean.shape), strict=True)]


def _places_of_prompts(tokens: Prompts, key: str, query: str, seed: int) -> _Places:
    """Every pair of a query and an earlier position with the key's name, and another position before the query."""
    read = bool(tokens.read.any())
    asking = tokens.labels[query] if query else tokens.queries if read else tokens.labels["last"]
    held = tokens.present.cpu().numpy()
    asking, named = (mask.cpu().numpy() & held for mask in (asking, tokens.labels[key]))
    found = []
    for b in range(len(tokens)):
        rng = np.random.default_rng((seed, _CONTROLS, b))
        for q in np.flatnonzero(asking[b]):
            others = [k for k in range(1, q) if held[b, k] and not named[b, k]]
            for k in np.flatnonzero(named[b, : q + 1]):
                control = int(rng.choice(others)) if others else -1
                found.append([[b, q, k], [b, q, control]])
    if not found:
        raise InterpError(f"no position of '{tokens.pool}' named '{key}' is before a query: there is no score to split")
    return _Places((key, "control" if key != "control" else "random"), np.array(found).transpose(1, 0, 2))


def _places_of_blocks(tokens: Repeated, seed: int) -> _Places:
    """Every tested inducible query, with its induction key and with another one."""
    if tokens.length < 4:
        raise InterpError(f"blocks of {tokens.length}: a control key needs blocks of 4 tokens or more")
    if not tokens.inducible_queries.any(1).all():
        raise InterpError("a sequence tests no inducible query: use longer blocks")
    start, found = tokens.ids.shape[1] - tokens.copies * tokens.length, []
    for b, row in enumerate(tokens.inducible_queries):
        queries = np.flatnonzero(row)
        offsets = (queries - start) % tokens.length
        drawn = torch.randint(tokens.length - 2, (len(queries),), generator=local_generator(seed, _CONTROLS + b))
        # neither the query's own offset nor the next one
        away = (offsets + 2 + drawn.numpy()) % tokens.length
        sequence = np.full_like(queries, b)
        keys = (queries - tokens.length + 1, start + away)
        found.append(np.stack([np.stack([sequence, queries, key], axis=-1) for key in keys]))
    return _Places(KEYS, np.concatenate(found, axis=1))


def _passes(tokens: Repeated | Prompts, places: np.ndarray, what: str) -> Any:
    """Ids and places of a few sequences at a time: every component is held of each."""
    size = max(1, _TOKENS // tokens.ids.shape[1])
    starts = range(0, len(tokens.ids), size)
    for start in track(starts, f"{what}: {tokens.pool}", total=len(starts)):
        part = tokens.ids[start : start + size]
        inside = (places[0, :, 0] >= start) & (places[0, :, 0] < start + len(part))
        at = torch.from_numpy(places[:, inside].copy()).to(part.device)
        at[..., 0] -= start
        yield part, at


def _parts(model: TransformerBridge, tokens: Repeated | Prompts, heads: list[Head], places: _Places) -> xr.Dataset:
    """`score`, `part` and `error` of one pool."""
    scores, pairs, errors = [], [], []
    names: list[tuple[str, ...]] = []
    for ids, at in _passes(tokens, places.at, "scores"):
        terms = score_terms(model, heads, ids)
        names = [terms[head].components for head in heads]
        seen = [(terms[head], [_in_reach(terms[head], k) for k in at]) for head in heads]
        scores.append([[_means(own.scores[tuple(k.T)], k, len(ids)) for k in kinds] for own, kinds in seen])
        pairs.append([[_means(own.pairs(*k.T), k, len(ids)) for k in kinds] for own, kinds in seen])
        errors.append([terms[head].error for head in heads])
    every: list[str] = max((list(own) for own in names), key=len)
    size = len(every)
    part = np.full((len(heads), len(places.kinds), size, size, len(tokens.ids)), np.nan, dtype=np.float32)
    for i, own in enumerate(names):
        rows = [every.index(name) for name in own]
        values = np.concatenate([np.stack([k.cpu().numpy() for k in of_pass[i]]) for of_pass in pairs], axis=-1)
        part[i][np.ix_(range(len(places.kinds)), rows, rows)] = values
    score = np.concatenate([[[k.cpu().numpy() for k in head] for head in of_pass] for of_pass in scores], axis=-1)
    coords = {
        "attending": [*map(head_name, heads)],
        "key_kind": list(places.kinds),
        "query_writer": every,
        "key_writer": every,
        "batch": np.arange(len(tokens.ids)),
    }
    return xr.Dataset(
        {
            "score": label("score", score, "attending key_kind batch", coords),
            "part": label("part", part, "attending key_kind query_writer key_writer batch", coords),
            "error": label("error", np.max(errors, axis=0), "attending", coords),
        }
    )


def _in_reach(terms: ScoreTerms, places: Tensor) -> Tensor:
    """The places [place 3] with a key that the attention reaches: a window may end before it."""
    return places[terms.scores[tuple(places.T)].isfinite() & (places[:, 2] >= 0)]


def _largest(data: xr.Dataset, head: Head, sources: int) -> list[Head]:
    """The earlier heads that give most to a head's scores through its keys, at those that matter."""
    at = data["part"].sel(attending=head_name(head)).isel(key_kind=0).mean("batch")
    given = abs(at.sum("query_writer")).where(at.notnull().any("query_writer"), drop=True)
    found = [(float(given.sel(key_writer=n)), str(n)) for n in given["key_writer"].values if str(n)[0] == "L"]
    return [_named(name) for _, name in sorted(found, key=lambda pair: -pair[0])[:sources]]


def _named(name: str) -> Head:
    layer, _, head = name[1:].partition("H")
    return int(layer), int(head)


def _sources(
    model: TransformerBridge,
    tokens: Repeated | Prompts,
    heads: list[Head],
    split: list[list[Head]],
    sources: int,
    places: _Places,
) -> xr.Dataset:
    """`source_part` of one pool."""
    every: list[str] = []
    found: list[dict[tuple[int, int, int, str], Tensor]] = []
    layers = sorted({layer for of_head in split for layer, _ in of_head})
    reason, sizes = "", []
    try:
        for ids, at in _passes(tokens, places.at, "sources"):
            terms = score_terms(model, heads, ids)
            every = max((list(t.components) for t in terms.values()), key=len)
            seen = record(model, ids, dict.fromkeys(source_hooks(model, layers)))
            found.append(_of_sources(model, terms, split, seen, ids, at, tokens.bos is not None))
            sizes.append(len(ids))
    except InterpError as error:
        reason, found = str(error), []
    shape = (len(heads), len(places.kinds), sources, len(PLACES), len(every), len(tokens.ids))
    values = np.full(shape, np.nan, dtype=np.float32)
    for start, part in zip(np.cumsum([0, *sizes]), found, strict=False):
        for (i, k, s, name), given in part.items():
            values[i, k, s, :, every.index(name), start : start + given.shape[-1]] = given.cpu().numpy()
    coords = {
        "attending": [*map(head_name, heads)],
        "key_kind": list(places.kinds),
        "source": np.arange(sources),
        "place": list(PLACES),
        "component": every,
        "batch": np.arange(len(tokens.ids)),
    }
    made = label("source_part", values, "attending key_kind source place component batch", coords).to_dataset()
    return made.assign_attrs({"no_sources": reason} if reason else {})


def _of_sources(
    model: TransformerBridge,
    terms: dict[Head, ScoreTerms],
    split: list[list[Head]],
    seen: dict[str, Tensor],
    ids: Tensor,
    at: Tensor,
    bos: bool,
) -> dict[tuple[int, int, int, str], Tensor]:
    """By attending head, kind of key, source and component: means over the queries, [place batch]."""
    found = dict[tuple[int, int, int, str], Tensor]()
    for i, own in enumerate(terms.values()):
        for k, every in enumerate(at):
            places = _in_reach(own, every)
            for s, source in enumerate(split[i]):
                given = source_parts(model, own, source, seen, ids, tuple(places.T), bos=bos)
                total = torch.stack(list(given.values())).sum((0, 1))
                column = own.components.index(head_name(source))
                right = own.pairs(*places.T)[:, column].sum(0)
                scale = float(own.scores[own.scores.isfinite()].std())
                half = next(model.parameters()).dtype.itemsize < 4
                if len(places) and float((total - right).abs().max()) > (0.3 if half else _ROUNDING) * max(scale, 1e-6):
                    raise InterpError(f"what {head_name(source)} moved does not sum to what it wrote")
                found |= {(i, k, s, name): _means(value, places, len(ids)) for name, value in given.items()}
    return found


def _means(values: Tensor, places: Tensor, size: int) -> Tensor:
    """Means over the places of each sequence: [... place] to [... batch]."""
    sequence = places[:, 0]
    count = torch.zeros(size, dtype=values.dtype, device=values.device).index_add(
        0, sequence, torch.ones(len(sequence), dtype=values.dtype, device=values.device)
    )
    empty = torch.zeros(*values.shape[:-1], size, dtype=values.dtype, device=values.device)
    return empty.index_add(-1, sequence, values) / count
