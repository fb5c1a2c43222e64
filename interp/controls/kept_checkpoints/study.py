"""When in training does copying appear, and when does a token stop being a glitch token? Kept checkpoints of a run.

`interp organism train NAME --keep-at STEPS` leaves models as they were on the way, each with the number of times that
every token had been trained on until then. At each, the same tokens are examined: canaries, whose exposures grow with
training at known rates, and as many ordinary tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp import cache, results
from interp.errors import InterpError
from interp.heads import classify_heads, heads_of_kind
from interp.models import bos_id, load, origin
from interp.organisms import EXPOSURE_FILE, Exposure, exposure
from interp.pool_names import ranges, spec_of
from interp.progress import track
from interp.results import label
from interp.runner import run, to_stderr
from interp.statistics import BOUNDS, binomial_interval, mean_interval, statistic_interval
from interp.tokens import Pool, check_seed, repeated
from interp.undertrained import detected, populations
from interp.vocabulary import census

DOSES = (0, 30, 100, 300, 1000)
STAGES = ("identity", "matching", "content", "readout", "suppression", "unexplained")
NO_INDUCTION = "no head is classified as an induction head: nothing is copied yet"
CONTROL = "control"
_LENGTH = 25  # tokens in a block
_SEQUENCES = 64  # of ordinary tokens
_RESAMPLES = 1000  # of tokens, for the interval of an exposure
_STEP = re.compile(r"step(\d+)")


@dataclass(frozen=True)
class Kept:
    """A checkpoint: after how many `steps`, in which `folder`, how often tokens had been trained on until then."""

    steps: int
    folder: Path
    exposure: Exposure


def training_over_time(
    out: str | Path,
    *,
    model: str | Path,
    doses: Sequence[int] = DOSES,
    batch: int = 24,
    seed: int = 0,
    log: cache.Log = to_stderr,
) -> xr.Dataset:
    """Examine the kept checkpoints of one training run: what is copied, which tokens look alike, which stages fail.

    Pools are the same at all checkpoints: the canaries of some doses and, as a control, as many ordinary tokens (those
    that repeated blocks are made of). Single tokens stand among ordinary ones.

    Args:
        out: a folder; finished parts are kept in it, and the same call resumes after an interruption.
        model: the folder that `interp organism train` wrote, with the folders of the steps that it kept.
        doses: which canaries are examined, by their exposures in the whole training.
        batch: sequences of each pool when a deficit is divided into causes.
        seed: decides the sequences and the control.
        log: receives a line for each part that was taken from an earlier call.

    Returns:
        Over checkpoints, with `bound` for the ends of 95% intervals:

        - `log_prob` [checkpoint part bound], nats: ordinary tokens in the first and in the second copy of a block;
          `induction_score` [checkpoint bound] of the head with the largest, `without_repeat` [checkpoint] of that head
          where nothing repeats, `heads` [checkpoint], those classified as induction heads;
        - `single_log_prob` [checkpoint pool bound], nats, of a single token's second occurrence;
        - `exposure` [checkpoint token] until then, `pool_exposure` [checkpoint pool] its mean over a pool; `clustered`
          [checkpoint token], whether the token is detected as under-trained (never, where not `tested` [token]);
          `clustered_share` [checkpoint pool bound]; `leaves_at` [checkpoint bound], the exposure from which on tokens
          are out of the cluster, and `wrong_side` [checkpoint], how many tokens that does not hold for;
        - `deficit` [checkpoint pool bound] and `share` [checkpoint pool stage bound], nats, of `glitch_attribution`;
          NaN for a `reason` [checkpoint pool stage], before there is an induction head.

    Raises:
        InterpError: there are fewer than two checkpoints, they are of different trainings, or a dose has no canaries.
    """
    check_seed(seed)
    checkpoints = kept_checkpoints(model)
    last = checkpoints[-1]
    odd = next((dose for dose in doses if dose not in last.exposure.doses), None)
    if odd is not None or not doses:
        known = ", ".join(map(str, sorted(last.exposure.doses)))
        raise InterpError(f"no canaries have dose {odd}: use some of {known}")
    ordinary = ordinary_tokens(last.exposure)
    pools = [Pool(f"dose={dose}", last.exposure.doses[dose]) for dose in doses]
    pools.append(_control(ordinary, max(map(len, pools)), seed))
    found = []
    with cache.runs_below(out):
        # the last one first: it takes longest, and announces how long all take
        for at in track(checkpoints[::-1], "checkpoints", total=len(checkpoints)):
            found.append(_examined(at, pools, ordinary, Path(out) / f"step{at.steps}", batch, seed, log))
    steps = xr.DataArray([at.steps for at in checkpoints], dims="checkpoint", name="checkpoint")
    result = xr.concat(found[::-1], steps)
    record = {
        "experiment": "training_over_time",
        "model": origin(load(str(last.folder))) | {"name": Path(model).name},
        "params": {"doses": list(doses), "batch": batch, "length": _LENGTH, "repairs": "transplant"},
        "recipe": _training(last.folder)["recipe"],
        "corpus": _training(last.folder)["corpus"],
        "corpus_sha256": _training(last.folder)["corpus_sha256"],
        "pools": {pool.name: {"size": len(pool), "ids": ranges(pool.ids)} for pool in (*pools, ordinary)},
        "seed": seed,
        "versions": results.versions(),
    }
    result = results.stamp(result, record)
    results.save(result, Path(out) / "result.nc")
    return result


# --- the checkpoints --------------------------------------------------------------------------------------------------


def kept_checkpoints(folder: str | Path) -> list[Kept]:
    """The checkpoints of a training in the order of their steps, and the trained model where it is finished.

    Args:
        folder: what `interp organism train --keep-at` wrote.

    Raises:
        InterpError: there are fewer than two, or they are of different trainings.
    """
    folder = Path(folder).expanduser()
    named = {int(m[1]): path for path in folder.glob("step*") if (m := _STEP.fullmatch(path.name)) and path.is_dir()}
    if (folder / EXPOSURE_FILE).is_file() and (folder / "training.json").is_file():
        steps = sum(phase["steps"] for phase in _training(folder)["recipe"]["phases"])
        named.setdefault(steps, folder)
    if len(named) < 2:
        raise InterpError(
            f"{folder} holds {len(named)} checkpoints, and two are the least: train with "
            "'interp organism train NAME --keep-at 0,500,1000 --out DIR'"
        )
    about = {steps: _training(path) for steps, path in named.items()}
    if len({json.dumps([one["recipe"], one["corpus_sha256"]], sort_keys=True) for one in about.values()}) > 1:
        raise InterpError(f"the checkpoints in {folder} are of different trainings: keep one training's in a folder")
    found = []
    for steps, path in sorted(named.items()):
        counts = exposure(path)
        if counts is None:
            raise InterpError(f"{path} has no exposure counts: train again, with --keep-at")
        found.append(Kept(steps, path, counts))
    return found


def _training(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its training."""
    try:
        found: dict[str, Any] = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        return {name: found[name] for name in ("recipe", "corpus", "corpus_sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InterpError(f"{folder} does not say how it was trained ({error}): train again, with --keep-at") from error


def ordinary_tokens(known: Exposure) -> Pool:
    """The tokens that repeated blocks were made of: those trained on in blocks, without canaries."""
    left_out = {*known.canaries, *known.special}
    return Pool("ordinary", tuple(i for i, count in enumerate(known.blocks) if count and i not in left_out))


def _control(ordinary: Pool, size: int, seed: int) -> Pool:
    drawn = np.random.default_rng(seed).choice(ordinary.ids, min(size, len(ordinary)), replace=False)
    return Pool(CONTROL, tuple(sorted(map(int, drawn))))


# --- what is examined at each -----------------------------------------------------------------------------------------


def _examined(
    at: Kept, pools: Sequence[Pool], ordinary: Pool, out: Path, batch: int, seed: int, log: cache.Log
) -> xr.Dataset:
    """All that is kept of one checkpoint."""
    model = load(str(at.folder))
    asked = {"pools": {pool.name: pool.ids for pool in (*pools, ordinary)}, "seed": seed}
    make = partial(_copying_and_cluster, model, at.exposure, pools, ordinary, seed)
    found = cache.get_or_make(out / "copying", cache.cache_key(_copying_and_cluster, model, asked), make, log)
    found = found.drop_attrs()
    if str(found["heads"].item()) == "":
        return found.merge(_no_causes(pools))
    causes = run(
        "glitch_attribution",
        model,
        list(pools),
        out=out / "causes",
        log=log,
        seed=seed,
        batch=batch,
        length=_LENGTH,
        mixed=True,
        among=ordinary,
        reference=spec_of(ordinary),
        # of the two kinds of repairs, the one whose side effects on ordinary tokens are shown to be small in organisms
        repairs="transplant",
        pairings=1,
        fits=1,
    )
    return found.merge(_causes(causes))


def _copying_and_cluster(
    model: TransformerBridge, known: Exposure, pools: Sequence[Pool], ordinary: Pool, seed: int
) -> xr.Dataset:
    """What a checkpoint copies, with which heads, and which tokens look untrained."""
    drawn: dict[str, Any] = {"seed": seed, "batch": _SEQUENCES, "log": lambda _: None}
    blocks = run("repeated_tokens", model, [ordinary], length=_LENGTH, **drawn)["summary"]
    single = run("repeated_tokens", model, list(pools), among=ordinary, **drawn)["summary"]
    blocks = blocks.isel(pool=0, drop=True).sel(measure="log_prob", definition="inducible", drop=True)
    single = single.sel(measure="log_prob", definition="single", part="second", drop=True)
    data = {
        "log_prob": blocks.transpose("part", "bound"),
        "single_log_prob": single.transpose("pool", "bound"),
    }
    tokens = repeated(ordinary, batch=_SEQUENCES, length=_LENGTH, bos=bos_id(model), seed=seed)
    found = _heads(classify_heads(model, tokens, seed=seed))
    return xr.Dataset(data).assign(found).assign(_cluster(model, known, pools, seed))


def _heads(classified: xr.Dataset) -> dict[str, Any]:
    """The head with the largest induction score, and the names of those classified as induction heads."""
    score = classified["score"].sel(key_kind="induction").stack(at=("layer", "head"))
    best = int(score.mean("batch").argmax("at"))
    null = classified["null"].sel(kind="induction").stack(at=("layer", "head")).isel(at=best)
    names = ", ".join(f"L{layer}H{head}" for layer, head in heads_of_kind(classified, "induction"))
    interval = mean_interval(score.isel(at=best).values)
    return {
        "induction_score": label("induction_score", interval, "bound", {"bound": list(BOUNDS)}),
        "without_repeat": float(null.mean()),
        "heads": xr.DataArray(np.array(names, dtype=object)),
    }


def _cluster(model: TransformerBridge, known: Exposure, pools: Sequence[Pool], seed: int) -> dict[str, xr.DataArray]:
    """Which tokens are detected as under-trained, and the exposure at which they no longer are."""
    counts = np.array(known.total)
    member = np.isin(np.arange(len(counts)), detected(model))
    _, tested = populations(census(model))
    inside = [[int(member[list(pool.ids)].sum()), len(pool)] for pool in pools]
    exposures = [float(counts[list(pool.ids)].mean()) for pool in pools]
    leaves, wrong = leaving_exposure(counts[tested], member[tested], resamples=_RESAMPLES, seed=seed)
    coords = {"token": np.arange(len(counts)), "pool": [pool.name for pool in pools], "bound": list(BOUNDS)}
    share = binomial_interval(*np.array(inside).T).T
    return {
        "exposure": xr.DataArray(counts.astype(np.int32), dims="token", coords={"token": coords["token"]}),
        "tested": label("tested", tested, "token", coords),
        "clustered": label("clustered", member, "token", coords),
        "clustered_share": label("clustered_share", share, "pool bound", coords),
        "pool_exposure": label("pool_exposure", exposures, "pool", coords),
        "leaves_at": label("leaves_at", leaves, "bound", coords),
        "wrong_side": xr.DataArray(wrong),
    }


def leaving_exposure(
    exposures: np.ndarray, member: np.ndarray, *, resamples: int = _RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, int]:
    """The exposure from which on tokens are out of a cluster: the rule that puts the fewest tokens on the wrong side.

    Where several exposures do as well, such as all between the last token inside and the first one outside, it is the
    middle of their range. It is also where a monotone fit of membership to exposure passes one half.

    Args:
        exposures: [token], how often each was trained on.
        member: [token], whether it is in the cluster.
        resamples: bootstrap resamples of tokens.
        seed: decides these.

    Returns:
        [3], the exposure and the ends of its 95% interval, which holds the whole range; NaN where no exposure does
        better than to put all tokens on one side. And how many tokens are on the wrong side; all members, or all
        others, in that case.
    """

    def ends(tokens: np.ndarray) -> np.ndarray:
        return np.array(_best_range(exposures[tokens], member[tokens])[:2])

    every = np.arange(len(exposures))
    low, high, wrong = _best_range(exposures, member)
    if not np.isfinite(low):
        return np.full(3, np.nan), int(wrong)
    least, most = statistic_interval(ends, every, resamples=resamples, seed=seed)
    return np.array([(low + high) / 2, min(low, least[0]), max(high, most[1])]), int(wrong)


def _best_range(exposures: np.ndarray, member: np.ndarray) -> tuple[float, float, float]:
    """Between which exposures inside becomes outside with the fewest tokens on the wrong side, and their number."""
    levels, index = np.unique(exposures, return_inverse=True)
    inside = np.bincount(index, weights=member)
    outside = np.bincount(index, weights=~member)
    # a rule for each gap between two levels: what lies below it is inside
    wrong = np.cumsum(outside)[:-1] + inside[::-1].cumsum()[::-1][1:]
    trivial = min(inside.sum(), outside.sum())
    if not len(wrong) or wrong.min() >= trivial:
        return np.nan, np.nan, float(trivial)
    best = np.flatnonzero(wrong == wrong.min())
    return float(levels[best[0]]), float(levels[best[-1] + 1]), float(wrong.min())


def _causes(found: xr.Dataset) -> xr.Dataset:
    """What is kept of `glitch_attribution`: deficits, shares and reasons."""
    bound = xr.DataArray(list(BOUNDS), dims="bound", name="bound")
    parts = {n: xr.concat([found[n + end] for end in ("", "_low", "_high")], bound) for n in ("deficit", "share")}
    parts["deficit"] = parts["deficit"].transpose("pool", "bound")
    parts["share"] = parts["share"].sel(stage=list(STAGES)).transpose("pool", "stage", "bound")
    reason = found["reason"].sel(stage=list(STAGES)).transpose("pool", "stage")
    return xr.Dataset(parts | {"reason": reason}).drop_attrs()


def _no_causes(pools: Sequence[Pool]) -> xr.Dataset:
    """The same for a checkpoint that does not copy."""
    coords = {"pool": [pool.name for pool in pools], "stage": list(STAGES), "bound": list(BOUNDS)}
    empty = np.full((len(pools), len(STAGES), len(BOUNDS)), np.nan)
    reason = np.full(empty.shape[:2], NO_INDUCTION, dtype=object)
    return xr.Dataset(
        {
            "deficit": label("deficit", empty[:, 0], "pool bound", coords),
            "share": label("share", empty, "pool stage bound", coords),
            "reason": xr.DataArray(reason, dims=("pool", "stage"), coords={n: coords[n] for n in ("pool", "stage")}),
        }
    )
