"""Which tokens of the vocabulary are under-trained? Indicators, detection, verification and the truth, where known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.models import exposure_of, needed_tokenizer
from interp.pool_names import pools as resolve
from interp.results import Keep, at_once, label
from interp.undertrained import (
    DEFAULT,
    FDR,
    MEASURES,
    THRESHOLD,
    Detection,
    detect,
    detection_scores,
    max_probability,
    model_indicators,
    populations,
    reference,
    to_ask,
    verify,
)
from interp.vocabulary import census

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def undertrained(
    model: TransformerBridge,
    keep: Keep = at_once,
    *,
    indicator: str = DEFAULT,
    fdr: float = FDR,
    verify_tokens: Literal["all", "detected", "none"] = "all",
    reference_pool: str = "",
    chat: bool = False,
    tokens_per_pass: int = 0,
    precision: Literal["auto", "float32"] = "auto",
    others: bool = True,
    seed: int = 0,
) -> xr.Dataset:
    """Detect under-trained tokens by their embedding rows, verify them by asking, and compare with known exposure.

    Args:
        model: any loaded model with a tokenizer and raw weights.
        keep: stores finished chunks of the verification, so that an interrupted run goes on.
        indicator: the one that is shown, decides which tokens are asked, and whose detections are reported.
        fdr: the false-discovery rate of the detections, between 0 and 1.
        verify_tokens: which tokens the model is asked to repeat: "all", "detected" (and as many random controls),
            "none".
        reference_pool: a pool of unused tokens to compare rows with (default: those that the census finds).
        chat: ask every prompt a second time, in the model's chat template; the published score stays that of the plain
            prompts.
        tokens_per_pass: how many tokens are run in a pass; it changes speed and memory only, 0 chooses by the device.
        precision: "auto" asks large models in bfloat16 where that is fast and a trial agrees, and again in float32 near
            the threshold; "float32" asks all as the model is loaded.
        others: whether the other indicators are reported, too; without them, results of large vocabularies are small.
        seed: decides which control tokens are asked, and the bootstrap.

    Returns:
        `value` (low is suspicious), `p_value` and `detected` [indicator token]; `threshold`, `null_centre`,
        `null_width` and `mirrored` [indicator], of the null fitted to reachable text. `probability` and `generated`
        [token prompt new_token]; `max_probability` [token], the published score (under-trained below 0.01; NaN: not
        asked); with `chat` also `max_probability_chat`. `truth` [detector subset measure bound], each detector against
        exposure counts (up to 10 times against 200 or more), where these are known.

    Raises:
        InterpError: the model has no tokenizer or folded weights, the indicator is unknown, or `chat` has nothing to
            ask or no chat template.

    Source:
        Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417.

    Example:
        >>> result = interp.run("undertrained", "organism", verify_tokens="none")
        >>> at = dict(detector=result.attrs["indicator"], subset="multi-character", measure="auroc", bound="value")
        >>> result["truth"].sel(at).item() > 0.9
        True
    """
    if verify_tokens not in ("all", "detected", "none"):
        raise InterpError(f"unknown verify_tokens '{verify_tokens}': use all, detected or none")
    if chat and verify_tokens == "none":
        raise InterpError("chat does nothing where no token is asked: leave it out, or leave verify_tokens out")
    needed_tokenizer(model, "telling which tokens are text")
    table = census(model)
    asked = tuple(i for pool in resolve(reference_pool, model) for i in pool.ids) if reference_pool else None
    unused = reference(model, asked)
    values = model_indicators(model, unused)
    if indicator not in values:
        raise InterpError(f"unknown indicator '{indicator}': this model has {', '.join(values)}")
    healthy, family = populations(table)
    shown = detect(values[indicator], healthy, family, fdr=fdr)
    values = values if others else {indicator: values[indicator]}
    found = {n: shown if n == indicator else _detect_or_none(v, healthy, family, fdr) for n, v in values.items()}
    token: dict[str, Any] = {"token": table["id"].to_numpy(), "indicator": list(values)}
    for column in ("text", "kind", "category", "reachable"):
        token[column] = ("token", table[column].to_numpy(dtype=object))
    characters = table["bytes"].map(lambda raw: len(bytes.fromhex(raw).decode("utf-8", "replace")))
    several = ((table["kind"] == "text") & (characters > 1)).to_numpy()
    token["multi_character"] = ("token", several)
    scores, detected = dict(values), {name: d.detected for name, d in found.items()}
    by_token = {"value": values, "p_value": {n: d.p_value for n, d in found.items()}, "detected": detected}
    data = {n: label(n, np.stack(list(rows.values())), "indicator token", token) for n, rows in by_token.items()}
    names = {"threshold": "threshold", "null_centre": "centre", "null_width": "width", "mirrored": "mirrored"}
    for name, attribute in names.items():
        data[name] = label(name, [getattr(d, attribute) for d in found.values()], "indicator", token)
    left_out = {"too_long": ""}
    if ids := _asked(shown.detected, family, verify_tokens, seed):
        size = tokens_per_pass or None
        verified = verify(model, ids, chat=chat, tokens_per_pass=size, precision=precision, keep=keep)
        left_out = dict(verified.attrs)
        verified = verified.reindex(token=table["id"].to_numpy(), fill_value={"probability": np.nan, "generated": -1})
        data |= {str(name): array for name, array in verified.data_vars.items()}
        data["max_probability"] = max_probability(verified["probability"])
        if chat:
            data["max_probability_chat"] = max_probability(verified["probability"], chat=True)
        if not data["max_probability"].isnull().any():  # of some tokens only, it would not compare with the indicators
            scores["max_probability"] = data["max_probability"].to_numpy()
            detected["max_probability"] = scores["max_probability"] < THRESHOLD
    dataset = xr.Dataset(data)
    known = exposure_of(model)
    if known is not None:
        canary = [i in known.canaries for i in table["id"]]
        counts = np.array(known.total)
        dataset = dataset.assign_coords(exposure=("token", counts), canary=("token", canary))
        subsets = {"multi-character": several, "all": (table["kind"] != "special").to_numpy()}
        rows = [
            [detection_scores(value, detected[name], counts, among, seed=seed) for among in subsets.values()]
            for name, value in scores.items()
        ]
        coords = {"detector": list(scores), "subset": list(subsets), "measure": list(MEASURES)}
        coords["bound"] = ["value", "low", "high"]
        dataset["truth"] = label("truth", np.array(rows), "detector subset measure bound", coords)
    source = json.dumps({"ids": unused.ids, "source": unused.source, "why": unused.why})
    return dataset.assign_attrs(indicator=indicator, fdr=fdr, threshold=THRESHOLD, reference=source, **left_out)


def _detect_or_none(value: np.ndarray, healthy: np.ndarray, family: np.ndarray, fdr: float) -> Detection:
    """Detections of an indicator that is only reported: none where it says nothing (a bias that is mostly zero)."""
    try:
        return detect(value, healthy, family, fdr=fdr)
    except InterpError:
        return Detection(np.full(len(value), np.nan), np.zeros(len(value), bool), np.nan, np.nan, np.nan, 0)


def _asked(detected: np.ndarray, family: np.ndarray, which: str, seed: int) -> list[int]:
    if which == "detected":
        return to_ask(detected, family, seed=seed)
    return list(range(len(detected))) if which == "all" else []
