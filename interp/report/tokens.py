"""What is known about each suspicious token? The table of a report: findings, nearest tokens, a curve over copies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import normalize
from transformer_lens.model_bridge import TransformerBridge

from interp import cache
from interp.first_token import first_token
from interp.measure import log_probs
from interp.models import token_texts
from interp.pool_names import ordinary_pool
from interp.tokens import Pool, repeated

MAX_ROWS = 1500
COPIES = 4
_BLOCK = 10  # tokens
_OFFSET = 5  # the token's position in a block
_NEIGHBOURS = 6
_MIN_ORDINARY = 20
_MIN_DEFICIT = 1  # nats; a token with a smaller deficit is not tested for its cause


@dataclass(frozen=True)
class TokenTable:
    """The rows of the table, and the number of suspicious tokens; the rows hold those with the lowest indicator."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    suspicious: int = 0


def token_table(model: TransformerBridge, found: Mapping[str, xr.Dataset], *, seed: int = 0) -> TokenTable:
    """Combine what the sections of a report found about tokens.

    Args:
        model: the loaded model.
        found: results by section name; without the section `found` there is no table, `reach` and `causes` are
            optional.
        seed: determines the ordinary tokens and the blocks of the curves.

    Returns:
        One row per token that is detected as under-trained, was never seen in training, or can never be the arg-max, at
        most half of `MAX_ROWS`; and the same number of ordinary ones for comparison. For each: id, text, kind, exposure
        where known, indicator, verified probability, verdict and largest lead from argmaxability (logits), the largest
        cause where it was tested; `near` by input and output rows (id, text, cosine); `curve`, its log-prob (nats) in
        the copies of a block of ordinary tokens.
    """
    if "found" not in found:
        return TokenTable()
    about, reach = found["found"], found.get("reach")
    of_indicator = about.sel(indicator=about.attrs["indicator"])
    indicator, detected = of_indicator["value"].values, of_indicator["detected"].values.astype(bool)
    unknown = np.full(len(detected), np.nan)
    exposure = about["exposure"].values if "exposure" in about.coords else unknown
    verdict, lead = np.zeros(len(detected), int), unknown
    if reach is not None:
        verdict = reach["verdict"].sel(question="any state").values.astype(int)
        lead = reach["margin"].sel(question="after the norm").values
    suspicious = np.flatnonzero(detected | (exposure == 0) | (verdict != 0))
    lowest = suspicious[np.argsort(indicator[suspicious], kind="stable")][: MAX_ROWS // 2]
    ids = np.concatenate([np.sort(lowest), _ordinary(model, lowest, seed)])
    causes = _causes(found["causes"]) if "causes" in found else {}
    nothing = [None] * len(ids)
    columns: dict[str, Sequence[Any]] = {
        "id": ids.tolist(),
        "text": token_texts(model, ids.tolist()),
        "kind": list(map(str, about["kind"].values[ids])),
        "detected": detected[ids].tolist(),
        "exposure": exposure[ids].astype(int).tolist() if "exposure" in about.coords else nothing,
        "indicator": _plain(indicator[ids]),
        "probability": _plain(about["max_probability"].values[ids]) if "max_probability" in about else nothing,
        "verdict": nothing if reach is None else list(map(str, reach["verdicts"].values[verdict[ids]])),
        "lead": _plain(lead[ids]),
        "cause": [causes.get(token, (None, None))[0] for token in ids.tolist()],
        "shares": [causes.get(token, (None, None))[1] for token in ids.tolist()],
        "near": _neighbours(model, ids),
        "curve": list(map(_plain, _curves(model, ids, seed))),
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return TokenTable(rows, len(suspicious))


def _ordinary(model: TransformerBridge, suspicious: np.ndarray, seed: int) -> np.ndarray:
    """The same number of ordinary tokens as suspicious ones, up to the size of the table."""
    ordinary = np.setdiff1d(np.asarray(ordinary_pool(model).ids), suspicious)
    count = max(_MIN_ORDINARY, min(len(suspicious), MAX_ROWS - len(suspicious)))
    return np.sort(np.random.default_rng(seed).permutation(ordinary)[:count])


def _plain(values: np.ndarray) -> list[float | None]:
    """Rounded to five digits; None for unknown values, as JSON has no NaN."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values.tolist()]


def _causes(result: xr.Dataset) -> dict[int, tuple[str, dict[str, float]]]:
    """For each token that was tested: the largest cause, and the nats of each."""
    stages = list(map(str, result["stage"].values))
    shares = result["token_share"].transpose("pool", "member", "stage").values.reshape(-1, len(stages))
    found = {}
    for token, own, deficit in zip(
        result["member_id"].values.ravel().tolist(), shares, result["token_deficit"].values.ravel(), strict=True
    ):
        if token >= 0 and np.isfinite(own).all():
            largest = stages[int(own.argmax())] if deficit > _MIN_DEFICIT else "-"
            found[int(token)] = largest, {s: float(f"{v:.3g}") for s, v in zip(stages, own, strict=True)}
    return found


def _neighbours(model: TransformerBridge, ids: np.ndarray) -> list[dict[str, list[tuple[int, str, float]]]]:
    """The nearest tokens by cosine of input and of output rows, the vocabulary's mean subtracted."""
    network = model.original_model
    found: list[dict[str, Any]] = [{} for _ in ids]
    for side, layer in (("input", network.get_input_embeddings()), ("output", network.get_output_embeddings())):
        weight = layer.weight.detach().float()
        unit = normalize(weight - weight.mean(0), dim=-1)
        best = [
            (unit[part] @ unit.T).scatter_(1, part[:, None], -2).topk(min(_NEIGHBOURS, len(unit) - 1))
            for part in torch.from_numpy(ids).to(unit.device).split(256)
        ]
        near = [row for part in best for row in part.indices.tolist()]
        cosines = [row for part in best for row in part.values.tolist()]
        texts = iter(token_texts(model, chain.from_iterable(near)))
        for about, tokens, own in zip(found, near, cosines, strict=True):
            about[side] = [(token, next(texts), round(cosine, 3)) for token, cosine in zip(tokens, own, strict=True)]
    return found


@torch.inference_mode()
def _curves(model: TransformerBridge, ids: np.ndarray, seed: int) -> np.ndarray:
    """[token copy]: log-prob of each token in the copies of a block of ordinary tokens that contains it."""
    bos, ordinary = first_token(model).id, ordinary_pool(model)
    asked = hashlib.sha256(json.dumps([ids.tolist(), ordinary.ids, bos, seed]).encode()).hexdigest()
    made = partial(_measured_curves, model, ids, ordinary, bos, seed)
    return np.array(cache.recalled(model, f"curves {asked}", made, __file__), dtype=np.float32)


def _measured_curves(
    model: TransformerBridge, ids: np.ndarray, ordinary: Pool, bos: int | None, seed: int
) -> list[list[float]]:
    tokens = repeated(ordinary, batch=len(ids), length=_BLOCK, copies=COPIES, bos=bos, seed=seed)
    places = int(tokens.bos is not None) + _OFFSET + _BLOCK * torch.arange(COPIES)
    fed = tokens.ids.clone()
    fed[:, places] = torch.from_numpy(ids)[:, None].to(fed)
    parts = (part.to(model.cfg.device) for part in fed.split(64))
    found = torch.cat([log_probs(model(part, prepend_bos=False), part)[:, places].float().cpu() for part in parts])
    curves: list[list[float]] = found.tolist()
    return curves
