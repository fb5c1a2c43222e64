"""The table of glitch tokens: what every part of a report knows of each, its neighbours, and its curve over copies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.measure import log_probs
from interp.pools import ordinary_pool, token_texts
from interp.tokens import repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

MOST = 1500  # rows of the table
COPIES = 4
_LENGTH = 10
_PLACE = 5  # in a block, where the token stands
_NEAREST = 6


def rows(model: TransformerBridge, found: dict[str, xr.Dataset], *, seed: int = 0) -> tuple[list[dict[str, Any]], int]:
    """One row per token that is called under-trained, was never seen, or can never be first; and as many ordinary ones for comparison; and
    how many of the first kind there are, of which the table has those with the lowest indicator where they are more than half of `MOST`.

    Of each: id, text, kind, exposure where known, indicator, verified probability, verdict and widest lead of argmaxability, the largest cause where it was
    asked for; `near` by input and output rows (id, text, cosine); `curve`, log-prob in copies 1 to 4 of a block of ordinary tokens.
    """
    about = found.get("found")
    if about is None:
        return [], 0
    called = about["called"].sel(indicator=about.attrs["indicator"]).values.astype(bool)
    exposure = about["exposure"].values if "exposure" in about.coords else None
    never = np.zeros(len(called), bool) if exposure is None else exposure == 0
    reach = found.get("reach")
    codes = None if reach is None else reach["verdict"].sel(question="any state").values
    odd = called | never | (np.zeros(len(called), bool) if codes is None else codes != 0)
    value = about["value"].sel(indicator=about.attrs["indicator"]).values
    every = np.flatnonzero(odd)
    ids = np.sort(every[np.argsort(value[every], kind="stable")][: MOST // 2])
    ordinary = np.setdiff1d(np.asarray(ordinary_pool(model).ids), ids)
    few = np.random.default_rng(seed).permutation(ordinary)[: max(20, min(len(ids), MOST - len(ids)))]
    ids = np.concatenate([ids, np.sort(few)])
    texts = token_texts(model, ids.tolist())
    causes = _causes(found.get("causes"))
    near = _neighbours(model, ids)
    curve = _curve(model, ids, seed)
    probability = about["max_probability"].values if "max_probability" in about else np.full(len(called), np.nan)
    table = []
    for i, (token, text) in enumerate(zip(ids.tolist(), texts, strict=True)):
        lead = math.nan if reach is None else float(reach["margin"].sel(question="behind the norm").values[token])
        table.append(
            {
                "id": token, "text": text, "kind": str(about["kind"].values[token]), "called": bool(called[token]),
                "exposure": None if exposure is None else int(exposure[token]), "indicator": _plain(value[token]), "probability": _plain(probability[token]),
                "verdict": None if codes is None or reach is None else str(reach["verdicts"].values[int(codes[token])]), "lead": _plain(lead),
                "cause": causes.get(token, {}).get("largest"), "shares": causes.get(token, {}).get("shares"),
                "near": near[i], "curve": [_plain(v) for v in curve[i]],
            }
        )  # fmt: skip
    return table, len(every)


def _plain(value: float) -> float | None:
    return None if not np.isfinite(value) else float(f"{value:.5g}")


def _causes(result: xr.Dataset | None) -> dict[int, dict[str, Any]]:
    """Per token that was asked: its shares, and the largest."""
    if result is None:
        return {}
    stages = list(map(str, result["stage"].values))
    found = {}
    for pool in result["pool"].values:
        at = result.sel(pool=pool)
        for token, shares, deficit in zip(
            at["member_id"].values, at["token_share"].values, at["token_deficit"].values, strict=True
        ):
            if token >= 0 and np.isfinite(shares).all():
                largest = stages[int(shares.argmax())] if deficit > 1 else "-"
                found[int(token)] = {
                    "largest": largest,
                    "shares": {s: float(f"{v:.3g}") for s, v in zip(stages, shares, strict=True)},
                }
    return found


def _neighbours(model: TransformerBridge, ids: np.ndarray) -> list[dict[str, list[Any]]]:
    """The nearest tokens by cosine of input and of output rows, the vocabulary's mean subtracted."""
    import torch

    network = model.original_model
    sides = {"input": network.get_input_embeddings().weight, "output": network.get_output_embeddings().weight}
    found: list[dict[str, list[Any]]] = [{} for _ in ids]
    with torch.no_grad():
        for side, weight in sides.items():
            unit = torch.nn.functional.normalize(weight.float() - weight.float().mean(0), dim=-1)
            asked = torch.from_numpy(ids).to(unit.device)
            for start in range(0, len(ids), 256):
                part = asked[start : start + 256]
                cosine = unit[part] @ unit.T
                cosine[torch.arange(len(part)), part] = -2
                best = cosine.topk(min(_NEAREST, cosine.shape[1] - 1))
                for k in range(len(part)):
                    near = best.indices[k].tolist()
                    names = token_texts(model, near)
                    found[start + k][side] = [
                        [t, n, round(c, 3)] for t, n, c in zip(near, names, best.values[k].tolist(), strict=True)
                    ]
    return found


def _curve(model: TransformerBridge, ids: np.ndarray, seed: int) -> np.ndarray:
    """[token copy]: log-prob of each token in the copies of a block of ordinary tokens in which it stands."""
    import torch

    tokens = repeated(
        ordinary_pool(model),
        batch=len(ids),
        length=_LENGTH,
        copies=COPIES,
        bos=getattr(model.tokenizer, "bos_token_id", None),
        seed=seed,
    )
    fed = tokens.ids.clone()
    first = int(tokens.bos is not None) + _PLACE
    places = [first + copy * _LENGTH for copy in range(COPIES)]
    fed[:, places] = torch.from_numpy(ids)[:, None].to(fed)
    found = []
    with torch.inference_mode():
        for part in fed.split(64):
            part = part.to(model.cfg.device)
            found.append(log_probs(model(part, prepend_bos=False), part)[:, places].float().cpu())
    return torch.cat(found).numpy()
