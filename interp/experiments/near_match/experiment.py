"""Does an induction head match a token that is only close to the one seen, in the embedding or in writing?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import normalize

from interp.errors import InterpError
from interp.heads import reference_pool
from interp.models import encoded, encoded_inside, published_tokenizer, token_text, token_texts
from interp.progress import track
from interp.repairs.unembedding import Unembedding, near_duplicates
from interp.results import Keep, at_once, label
from interp.statistics import mean_interval
from interp.tokens import Draw, Pool, Repeated, local_generator
from interp.undertrained.forward_passes import Way, fastest
from interp.undertrained.prompts import HOLE

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

EXACT, CASE, SPACE, DUPLICATE, OF_POOL, FAR = "exact", "case", "space", "near-duplicate", "same pool", "far"
SPACES = ("input", "output")
SHARE = 0.1  # share of the exact repeat's gain below which a difference counts as none
SLIGHT = 0.1  # nats below which a difference counts as none, however little the exact repeat gains
_LEAST = 4  # tokens of a block: one before A, B after it, and one more, so that B is not the last
_STREAM = 1 << 25  # streams from here on choose tokens
BUDGETS = {"quick": {"batch": 16, "neighbours": 16}, "thorough": {"batch": 256, "neighbours": 256}}


def near_match(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    reference: str = "",
    cue: int = 4,
    neighbours: int = 64,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how well B is predicted in `x1 .. A B .. x1 .. A'`, for A' at increasing distance from A.

    A is a token of the pool, all others are ordinary. A' is A itself (exact), a neighbour in either embedding, A in
    another case or spacing, a near-duplicate, another token of the pool, or a far token.

    Args:
        model: any loaded model.
        pools: the tokens that A is drawn from.
        draw: draws sequences.
        keep: stores finished parts.
        reference: the pool of ordinary tokens (default: the model's).
        cue: how many of the tokens before A are repeated before A', 0 or more; fewer where a block has no room.
        neighbours: the rank of the farthest neighbour, a positive integer; ranks are 1, 2, 4, ...
        seed: decides which tokens are A, its near-duplicates and far tokens.

    Returns:
        By [pool likeness batch]: `log_prob` of B, nats; `cosine_in` and `cosine_out` of the rows of A and A' (output
        rows minus their mean); `match_id`, the token A' (-1: none, and the others are NaN). `source_id` and `answer_id`
        [pool batch] are A and B. The attribute `verdict` says for each pool whether near-duplicates and neighbours
        match.

    Raises:
        InterpError: blocks are too short, sequences test single tokens, or cue or neighbours is out of range.

    Source:
        Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895.

    Example:
        >>> result = interp.run("near_match", "organism", "ordinary", batch=4, neighbours=2)
        >>> log_prob = result["log_prob"].mean(["pool", "batch"])
        >>> (log_prob.sel(likeness="exact") > log_prob.sel(likeness="far")).item()
        True
    """
    if cue < 0 or neighbours < 1:
        raise InterpError(f"cue {cue}, neighbours {neighbours}: use 0 or more, and a positive integer")
    healthy = reference_pool(model, reference, seed=seed)
    blocks = draw(healthy)
    if not bool(blocks.tested[:, blocks.half > 0].all()):
        raise InterpError("near_match puts single tokens among ordinary ones by itself: leave mixed out")
    if blocks.length < _LEAST:
        raise InterpError(
            f"blocks of {blocks.length} have no room for a token and what follows it: use a length of {_LEAST} or more"
        )
    cue = min(cue, blocks.length - _LEAST + 1)
    sources = {a for pool in pools for a in _sources(pool, len(blocks.ids), seed)}
    near = _Neighbourhood.of(model, healthy, sources)
    parts = [keep(pool.name, partial(_of_pool, model, pool, blocks, near, cue, neighbours, seed)) for pool in pools]
    names = xr.DataArray([pool.name for pool in pools], dims="pool", name="pool")
    data = xr.concat([part.drop_attrs() for part in parts], names, data_vars="all", coords="different", compat="equals")
    said = "\n".join(f"{pool.name}: {verdict(data['log_prob'].sel(pool=pool.name))}" for pool in pools)
    return data.assign_attrs(verdict=said, cue=cue, among=healthy.name, not_tested=near.unknown)


def likenesses(neighbours: int) -> list[tuple[str, int]]:
    """What A' may be, as (kind, rank): ranks 1, 2, 4, ... of neighbours in either embedding; rank 0 for all else."""
    ranks = [1 << k for k in range(neighbours.bit_length()) if 1 << k <= neighbours]
    near = [(space, k) for space in SPACES for k in ranks]
    return [(EXACT, 0), *near, *((kind, 0) for kind in (CASE, SPACE, DUPLICATE, OF_POOL, FAR))]


def names_of(neighbours: int) -> list[str]:
    """`likenesses`, as the dimension `likeness` names them: "exact", "input 1", "input 2", ..., "far"."""
    return [f"{kind} {rank}" if rank else kind for kind, rank in likenesses(neighbours)]


def written_otherwise(tokenizer: object, token: int) -> dict[str, int]:
    """The tokens for the same text in another case, and with or without its space.

    Args:
        tokenizer: a published tokenizer.
        token: an id.

    Returns:
        By `CASE` and `SPACE`, an id; variants of several tokens are left out.
    """
    text = token_text(tokenizer, token)
    if not text.strip() or "\ufffd" in text:
        return {}
    cases = [text.lower(), text[: len(text) - len(text.lstrip())] + text.lstrip().capitalize(), text.upper()]
    written = {CASE: cases, SPACE: [text[1:] if text.startswith(" ") else f" {text}"]}
    found = {}
    for kind, texts in written.items():
        ids = (_one_token(tokenizer, other) for other in texts)
        i = next((i for i in ids if i is not None and i != token), None)
        if i is not None:
            found[kind] = i
    return found


def _one_token(tokenizer: object, text: str) -> int | None:
    """The single token of a text, alone or after other text; None where it is several, or written otherwise."""
    for ids in (encoded(tokenizer, text), encoded_inside(tokenizer, text) or []):
        if len(ids) == 1 and token_text(tokenizer, ids[0]) == text:
            return ids[0]
    return None


def verdict(log_prob: xr.DataArray) -> str:
    """What a pool's log-probs [likeness batch] say, in words: matched, not matched, undecided, or not testable."""
    exact, far = log_prob.sel(likeness=EXACT), log_prob.sel(likeness=FAR)
    gain, low, high = map(float, mean_interval((exact - far).values))
    if not low > SLIGHT:
        shown = f"{gain:.2f} nats ({low:.2f} .. {high:.2f})" if np.isfinite(low) else f"{gain:.2f} nats (no interval)"
        return f"not testable: the exact repeat is not shown to be copied; it gains {shown} over a far token"
    margin = max(SLIGHT, SHARE * gain)
    of = f"the exact repeat gains {gain:.2f} nats ({low:.2f} .. {high:.2f}) over a far token"
    said = [of, _compared("near-duplicates", log_prob.sel(likeness=DUPLICATE), exact, far, margin)]
    said.append(_compared("nearest neighbours", log_prob.sel(likeness=f"{SPACES[0]} 1"), exact, far, margin))
    return "; ".join(said)


def _compared(what: str, values: xr.DataArray, exact: xr.DataArray, far: xr.DataArray, margin: float) -> str:
    """Whether tokens of a kind match as the exact one does, not at all, or in part."""
    count = int(values.notnull().sum())
    if not count:
        return f"{what}: there are none"
    lost, gained = mean_interval((exact - values).values), mean_interval((values - far).values)
    shown = f"lose {lost[0]:.2f} nats of it ({lost[1]:.2f} .. {lost[2]:.2f}; {count} sequences)"
    if not np.isfinite(lost[1:]).all() or not np.isfinite(gained[1:]).all():
        return f"{what}: not testable on {count} sequences"
    if abs(lost[1:]).max() <= margin:
        return f"{what} match as well as the token itself: they {shown}"
    if abs(gained[1:]).max() <= margin:
        return f"{what} do not match: they {shown}"
    if lost[1] > 0 and gained[1] > 0:
        return f"{what} match in part: they {shown}"
    return f"{what}: undecided, they {shown}"


@dataclass(frozen=True)
class _Neighbourhood:
    """Neighbourhoods of tokens: rows of length 1 by name of the space, [token d_model], and near-duplicates by token.

    `unknown` says why no near-duplicates are known, where that is so.
    """

    rows: dict[str, Tensor]
    duplicates: dict[int, Tensor]
    healthy: Pool
    unknown: str

    @classmethod
    def of(cls, model: TransformerBridge, healthy: Pool, sources: Iterable[int]) -> _Neighbourhood:
        network = model.original_model
        given, read = network.get_input_embeddings().weight.detach().float(), _output_rows(model)
        rows = {"input": normalize(given, dim=-1), "output": normalize(read - read.mean(0), dim=-1)}
        try:
            found, unknown = near_duplicates(model, sorted(sources), healthy.ids, Unembedding(model)), ""
        except InterpError as error:
            found, unknown = {}, str(error)
        return cls(rows, {i: near for i, near in found.items() if len(near) > 1}, healthy, unknown)

    def cosines(self, token: int, space: str) -> Tensor:
        """[token]: of a token's row with all rows."""
        rows = self.rows[space]
        return rows @ rows[token]

    def ranked(self, token: int, space: str, present: set[int], most: int) -> list[int]:
        """The nearest tokens that do not occur in the sequence, the nearest first; `most` of them or fewer."""
        order = self.cosines(token, space).topk(min(len(self.rows[space]), most + len(present))).indices.tolist()
        return [i for i in order if i not in present][:most]


def _output_rows(model: TransformerBridge) -> Tensor:
    head = model.original_model.get_output_embeddings()
    if head is None:
        raise InterpError("this model has no output embeddings: near_match needs a language model's head")
    rows: Tensor = head.weight.detach().float()
    return rows


def _of_pool(
    model: TransformerBridge,
    pool: Pool,
    blocks: Repeated,
    near: _Neighbourhood,
    cue: int,
    neighbours: int,
    seed: int,
) -> xr.Dataset:
    """The result for one pool."""
    names = names_of(neighbours)
    count = len(blocks.ids)
    ids = np.full((len(names), count), -1, dtype=np.int64)
    log_prob = np.full((len(names), count), np.nan)
    cosine = {space: np.full((len(names), count), np.nan) for space in SPACES}
    source, answer = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    way: Way | None = None
    for i, (prefix, a, b) in track(
        enumerate(_sequences(pool, blocks, cue, seed)), f"near matches: {pool.name}", total=count
    ):
        source[i], answer[i] = a, b
        chosen = _chosen(model, a, {*prefix.tolist(), a}, pool, near, neighbours, local_generator(seed, _STREAM + i))
        at = [k for k, name in enumerate(names) if name in chosen]
        others = [chosen[names[k]] for k in at]
        if way is None:  # the same sizes in all sequences
            way = fastest(model, [*prefix.tolist(), HOLE], others[:2])
        last = torch.tensor(others, device=blocks.ids.device)
        logits = way.forward(last[:, None], way.many(way.begins(prefix[None]), len(last)))[0].float()
        ids[at, i] = others
        log_prob[at, i] = (logits[:, b] - logits.logsumexp(-1)).cpu().numpy()
        for space in SPACES:
            cosine[space][at, i] = near.cosines(a, space)[last].cpu().numpy()
    texts = token_texts(model, source.tolist())
    coords = {
        "likeness": names,
        "neighbour": ("likeness", [rank for _, rank in likenesses(neighbours)]),
        "batch": range(count),
        "source_id": ("batch", source),
        "answer_id": ("batch", answer),
        "text": ("batch", np.array(texts, dtype=object)),
    }
    values = {"log_prob": log_prob, "cosine_in": cosine["input"], "cosine_out": cosine["output"], "match_id": ids}
    return xr.Dataset({name: label(name, value, "likeness batch", coords) for name, value in values.items()})


def _sources(pool: Pool, count: int, seed: int) -> list[int]:
    """A of each sequence; the pool's tokens take turns."""
    order = torch.randperm(len(pool), generator=local_generator(seed, _STREAM - 1)).tolist()
    return [pool.ids[order[i % len(order)]] for i in range(count)]


def _sequences(pool: Pool, blocks: Repeated, cue: int, seed: int) -> Iterator[tuple[Tensor, int, int]]:
    """The tokens before A', A, and B, of each block."""
    start = int(blocks.bos is not None)
    for i, (row, a) in enumerate(zip(blocks.ids, _sources(pool, len(blocks.ids), seed), strict=True)):
        prefix = row[: start + blocks.length].clone()
        generator = local_generator(seed, _STREAM // 2 + i)
        first, last = max(1, cue), blocks.length - _LEAST + 2
        at = start + int(torch.randint(first, last, (), generator=generator))
        block = prefix[start:]
        block[block == a] = prefix[at].clone()  # where it is there already: exchange, so that none occurs twice
        prefix[at] = a
        yield torch.cat([prefix, prefix[at - cue : at]]), a, int(prefix[at + 1])


def _chosen(
    model: TransformerBridge,
    a: int,
    present: set[int],
    pool: Pool,
    near: _Neighbourhood,
    neighbours: int,
    generator: torch.Generator,
) -> dict[str, int]:
    """A' by the name of the likeness; those that a token lacks are left out."""

    def one_of(candidates: Sequence[int]) -> int:
        return candidates[int(torch.randint(len(candidates), (), generator=generator))]

    found = {EXACT: a}
    for space in SPACES:
        order = near.ranked(a, space, present, neighbours)
        names = ((f"{kind} {k}", k) for kind, k in likenesses(neighbours) if kind == space)
        found |= {name: order[k - 1] for name, k in names if k <= len(order)}
    tokenizer = published_tokenizer(model)
    if tokenizer is not None:
        found |= {kind: i for kind, i in written_otherwise(tokenizer, a).items() if i not in present}
    alike = set(near.duplicates[a].tolist()) if a in near.duplicates else set()
    groups = {
        DUPLICATE: sorted(alike - present),
        OF_POOL: [] if near.unknown else [i for i in pool.ids if i not in present | alike],
    }
    ordinary = torch.tensor([i for i in near.healthy.ids if i not in present | alike], device=near.rows["input"].device)
    if len(ordinary):
        cosine = near.cosines(a, "input")[ordinary]
        groups[FAR] = ordinary[cosine <= cosine.median()].tolist()
    return found | {name: one_of(candidates) for name, candidates in groups.items() if candidates}
