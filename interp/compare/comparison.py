"""How do models compare: what do they copy, which heads do it, why is the rest not copied? Also for checkpoints of one
training run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp import cache, results
from interp.errors import InterpError
from interp.exhibits import ReportSection
from interp.heads import heads_of_kind
from interp.models import located, origin, split_revision
from interp.pool_names import pools as resolve, pools_by_tokenizer
from interp.progress import track
from interp.prompts import spec_texts
from interp.report.sections import on_model, sections, sections_on_prompts
from interp.results import label
from interp.runner import load_as_asked, run_request, to_stderr
from interp.statistics import BOUNDS, mean_interval
from interp.tables import strongest_heads
from interp.tokens import check_seed


def compare(
    models: Sequence[str],
    out: str | Path = "results/compare",
    *,
    pools: Sequence[str] = (),
    prompts: Sequence[str] = (),
    metric: str = "log_prob",
    answer_tokens: str = "one",
    seed: int = 0,
    fresh: bool = False,
    log: cache.Log = to_stderr,
    **loading: Any,
) -> xr.Dataset:
    """Run the report's gap, glitch tokens, heads and causes on each model, and compare them.

    On prompts: how well the answers are predicted, and by which heads.

    Results already in `out` are reused.

    Args:
        models: names as elsewhere, or `name@revision` for a checkpoint on the hub.
        out: a folder for the result, with a subfolder for each model.
        pools: measured on all models, ordinary tokens last; by default, each model's own from training counts or the
            tokenizer, which have the same names only where the same is known about each model.
        prompts: sets of prompts, as in `interp.run`, tokenised for each model.
        metric: the metric for prompts.
        answer_tokens: for prompts, as in `interp.run`.
        seed: determines every random draw.
        fresh: run again what is already there.
        log: receives one line for each result taken from an earlier run.
        **loading: how every model is loaded, as in `interp.load`: `dtype="bfloat16"`.

    Returns:
        For each model, with 95% intervals over sequences (`bound`: mean, low, high):

        - `copied` and `single` [model pool bound]: log-prob (nats) of the inducible tokens in the second copy, of whole
          blocks and of single tokens among ordinary ones;
        - `under_trained` [model set]: the number of tokens detected as under-trained, and of those among them that the
          model fails to repeat on request;
        - `heads` [model kind] names the heads classified on the last pool, `classified_on` [model]; `score` [model kind
          bound] is the attention score of the best, `without_repeat` [model kind] its mean score in sequences without a
          repeat;
        - `deficit` [model pool bound] and `share` [model pool stage bound] (nats): for single tokens, from
          `glitch_attribution`.

        On prompts, `answered` [model pool bound] is the metric; `together` and `controls` [model pool bound] are the
        losses with the worst heads of the other half of the prompts ablated, and with a size-matched set of other
        heads; `needed` [model pool] names the heads whose single ablation loses most.

        `of` [model] is its name without the revision, or the folder that holds its folder where that is named like
        step1000 or checkpoint-500, and `step` [model] is this number. What a model does not support is NaN, and
        `missing` [model] says why; `shorter_blocks` [model] says where blocks had to fit a small pool, so that models
        are compared on blocks of different lengths.

    Raises:
        InterpError: there are fewer than two models, the same one twice, or one that does not exist (before anything is
            run); or nothing is available for any of them.
    """
    if len(models) < 2 or len(set(models)) < len(models):
        raise InterpError("give two or more models, each once: interp compare organism organism-llama")
    if {"revision", "checkpoint"} & set(loading):
        raise InterpError("each model has a revision of its own: name it as NAME@REVISION")
    check_seed(seed)
    split = {name: split_revision(name) for name in models}
    for name, revision in split.values():
        located(name, revision)
    if prompts and pools:
        raise InterpError("prompts replace pools: give only one of them")
    given = spec_texts(prompts) if prompts else ()
    every = sections_on_prompts(given, metric=metric, answer_tokens=answer_tokens) if given else sections()
    compared = _SUMMARIES_ON_PROMPTS if given else _SUMMARIES
    chosen = [section for section in every if section.name in compared]
    on_pools = {"pools": tuple(pools)} if pools else {}
    with cache.locked(out, log) as folder, cache.runs_below(folder):
        parts: list[xr.Dataset] = []
        about: dict[str, dict[str, Any]] = {}
        for name in track(list(models), "models", total=len(models)):
            model = load_as_asked(split[name][0], **loading, revision=split[name][1])
            identity = {key: value for key, value in origin(model).items() if key != "name"}
            same = next((other for other in about if about[other] == identity), None)
            if same is not None:
                raise InterpError(f"'{name}' and '{same}' are the same model: give each once")
            about[name] = identity
            if pools:
                resolve(list(pools), model, seed=seed)  # before anything is run: a name may be misspelled
            # detected tokens differ between models, so they are not a pool to compare models on
            shared = {} if given else on_pools or {"pools": tuple(pools_by_tokenizer(model))}
            asked = [on_model(s, origin(model), seed, **shared if s.name != "found" else {}) for s in chosen]
            parts.append(_measured(asked, model, folder / _folder(name), fresh, log))
        record = {
            "experiment": "compare",
            "request": {"models": list(models), "pools": list(pools), "seed": seed, **loading},
            "models": [{"name": name, **identity} for name, identity in about.items()],
            "pools": list(pools),
            **({"prompts": list(given), "metric": metric} if given else {}),
            "seed": seed,
            "versions": results.versions(),
        }
        result = results.stamp(_side_by_side(parts, split), record)
        results.save(result, folder / "result.nc")
    return result


def _measured(
    asked: Sequence[ReportSection], model: TransformerBridge, folder: Path, fresh: bool, log: cache.Log
) -> xr.Dataset:
    """Run each section, and summarise what is compared; `missing` names the sections unavailable for this model."""
    data: dict[str, xr.DataArray] = {}
    missing, shorter = [], []
    for section in asked:
        try:
            found = run_request(section.request, model, out=folder / section.name, fresh=fresh, log=log)
        except InterpError as error:
            missing.append(f"{section.name} ({error})")
        else:
            data |= {**_SUMMARIES, **_SUMMARIES_ON_PROMPTS}[section.name](found)
            sequences = results.record(found).get("sequences", {})
            if "fitted_to" in sequences:
                shorter.append(
                    f"{section.name} ({sequences['length']} tokens, as many as '{sequences['fitted_to']}' has)"
                )
    summary = xr.Dataset(data).transpose(..., "bound", missing_dims="ignore")
    return summary.drop_attrs().assign(missing="; ".join(missing), shorter_blocks="; ".join(shorter))


def _side_by_side(parts: Sequence[xr.Dataset], split: Mapping[str, tuple[str, str | None]]) -> xr.Dataset:
    """The models' summaries along `model`; NaN or a dash where a model has none."""
    if not any(part.data_vars.keys() - {"missing", "shorter_blocks"} for part in parts):
        raise InterpError(f"nothing is available for any of them: {parts[0]['missing'].item()}")
    index = xr.DataArray(list(split), dims="model", name="model")
    dashes = {"heads": "-", "classified_on": "-", "needed": "-"}
    data = xr.concat(parts, index, join="outer", data_vars="all", coords="minimal", fill_value=dashes)
    if "pool" in data.coords:  # in the order of the models, not of the alphabet
        pools = dict.fromkeys(pool for part in parts if "pool" in part.coords for pool in part["pool"].values)
        data = data.reindex(pool=list(pools))
    runs, steps = zip(*(_run_and_step(name, revision) for name, revision in split.values()), strict=True)
    return data.assign_coords(of=("model", list(runs)), step=("model", list(steps)))


# --- names ------------------------------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"(?:(?P<run>.+?)[-_.])?(?:step|checkpoint|ckpt)[-_]?(?P<step>\d+)", re.I)  # of a folder


def _folder(name: str) -> str:
    """A folder name for a model: unique to it, and safe as a path."""
    plain = re.sub(r"[^\w.@-]+", "--", name).strip(".-")
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _run_and_step(name: str, revision: str | None) -> tuple[str, float]:
    """The run that a model is a checkpoint of, and its training step; NaN where neither revision nor folder has one.

    `gpt2@step1000` and `gpt2/step1000` are both step 1000 of gpt2, `runs/tied-step1000` is one of runs/tied.
    """
    if revision is not None:
        return name, _step(revision)
    folder = PurePath(name)
    found = _NUMBERED.fullmatch(folder.name)
    if not found:
        return name, float("nan")
    return str(folder.parent / (found["run"] or "")), float(found["step"])


def _step(revision: str) -> float:
    """The training step in a revision's name (step1000, checkpoint-500, 1000); NaN otherwise, as for a commit."""
    found = re.search(r"(?:step|checkpoint|ckpt)[-_]?(\d+)|^(\d{1,9})$", revision, re.I)
    return float(found[1] or found[2]) if found else float("nan")


# --- what is compared of each section ---------------------------------------------------------------------------------


def _copying(gap: xr.Dataset) -> dict[str, xr.DataArray]:
    """The log-prob of the inducible tokens."""
    second = gap["summary"].sel(measure="log_prob", part="second", drop=True)
    names = {"copied": "inducible", "single": "single"}
    known = second["definition"].values
    return {name: second.sel(definition=of, drop=True) for name, of in names.items() if of in known}


def _under_trained(found: xr.Dataset) -> dict[str, xr.DataArray]:
    """The number of tokens detected, and of those among them not repeated; NaN where they were not asked."""
    detected = found["detected"].sel(indicator=found.attrs["indicator"]).astype(bool)
    asked = "max_probability" in found
    refused = detected & (found["max_probability"] < found.attrs["threshold"]) if asked else None
    counts = [float(detected.sum()), np.nan if refused is None else float(refused.sum())]
    return {"under_trained": label("under_trained", counts, "set", {"set": ["detected", "not repeated"]})}


def _heads(found: xr.Dataset) -> dict[str, xr.DataArray]:
    """The heads classified on the last pool, and the best of each kind; NaN scores where no sequences give any.

    A pool that the experiment added is not one that all models share.
    """
    found = found.isel(pool=-2 if found.attrs.get("added") else -1)
    kinds = list(map(str, found["kind"].values))
    names = [", ".join(f"L{layer}H{head}" for layer, head in heads_of_kind(found, kind)) or "-" for kind in kinds]
    score = found["score"].sel(key_kind=kinds).rename(key_kind="kind").stack(at=("layer", "head"))
    mean = score.mean("batch", skipna=False)
    best, known = mean.fillna(-np.inf).argmax("at"), mean.notnull().any("at")
    null = found["null"].stack(at=("layer", "head")).isel(at=best)
    intervals = mean_interval(score.isel(at=best).where(known).transpose("batch", "kind").values)
    without = null.mean([dim for dim in null.dims if dim != "kind"]).where(known)
    coords = {"kind": kinds, "bound": list(BOUNDS)}
    return {
        "heads": xr.DataArray(np.array(names, dtype=object), dims="kind", coords={"kind": kinds}),
        "score": label("score", intervals.T, "kind bound", coords),
        "without_repeat": label("without_repeat", without.values, "kind", coords),
        "classified_on": xr.DataArray(np.array(str(found["pool"].item()), dtype=object)),
    }


def _causes(found: xr.Dataset) -> dict[str, xr.DataArray]:
    """The deficit of single tokens, in total and by cause."""
    bound = xr.DataArray(list(BOUNDS), dims="bound", name="bound")
    names = ("deficit", "share")
    return {name: xr.concat([found[name + end] for end in ("", "_low", "_high")], bound) for name in names}


def _answers(lens: xr.Dataset) -> dict[str, xr.DataArray]:
    """The metric of the model's own prediction, by set of prompts."""
    return {"answered": _with_interval("answered", lens["score_after"].isel(after=-1, drop=True))}


def _needed(lost: xr.Dataset) -> dict[str, xr.DataArray]:
    """The cost of ablation: together, next to size-matched controls, and the heads that cost most alone."""
    most = {"ablated": -1}
    alone = lost["lost"].mean("batch").transpose("pool", "layer", "head")
    names = [str(strongest_heads(row, 4)) for row in alone]
    return {
        "together": _with_interval("together", lost["curve"].isel(most, drop=True)),
        "controls": _with_interval("controls", lost["random"].mean("draw", skipna=False).isel(most, drop=True)),
        "needed": xr.DataArray(np.array(names, dtype=object), dims="pool", coords={"pool": lost["pool"]}),
    }


def _with_interval(name: str, values: xr.DataArray) -> xr.DataArray:
    """[pool bound] of values [pool batch]."""
    found = mean_interval(values.transpose("batch", "pool").values)
    return label(name, found.T, "pool bound", {"pool": values["pool"].values, "bound": list(BOUNDS)})


_SUMMARIES = {"gap": _copying, "found": _under_trained, "heads": _heads, "causes": _causes}
_SUMMARIES_ON_PROMPTS = {"lens": _answers, "needed": _needed}
