"""What does docs/findings.md claim about `organism` and `organism-llama`, as numbers that a run decides?

Each claim names the gallery entry that the finding rests on, how its number is read from that result, and between which
bounds it must lie for the sentence to be true. Bounds belong to the sentence, and not to the first seed's number: "the
unclassified heads cost nothing" is within 0.1 nats of zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr


@dataclass(frozen=True)
class Claim:
    """A sentence of the findings: true if the number read from a gallery entry's result lies within the bounds."""

    section: int  # of docs/findings.md
    sentence: str
    entry: str  # folder of the gallery, of the first seed's model
    value: Callable[[xr.Dataset], float]
    unit: str
    at_least: float = -np.inf
    at_most: float = np.inf


def _together(found: xr.Dataset, kind: str, pool: str = "ordinary") -> float:
    """Nats lost with all heads of a kind ablated; NaN where there are none."""
    heads = sum(bool(name) for name in found["ranked"].sel(kind=kind).values)
    return float(found["curve"].sel(pool=pool, kind=kind, ablated=heads).mean()) if heads else np.nan


def _controls(found: xr.Dataset, pool: str = "ordinary") -> float:
    """Nats lost with as many unclassified heads ablated as there are."""
    random = found["random"].sel(pool=pool).mean("draw", skipna=False).mean("batch")
    return float(random.values[np.flatnonzero(np.isfinite(random.values)).max()])


def _gain(found: xr.Dataset, pool: str = "ordinary") -> float:
    return float(found["gain"].sel(pool=pool).mean())


def _carried(found: xr.Dataset, pool: str) -> float:
    """What the induction heads carry of the repeat's gain; NaN where there is next to none to carry."""
    gain = _gain(found, pool)
    return _together(found, "induction", pool) / gain if gain >= 1 else np.nan


def _most_of_any(found: xr.Dataset, pool: str) -> float:
    """The largest change, in nats, that ablating one head or all of a kind makes."""
    kinds = [_together(found, str(kind), pool) for kind in found["kind"].values]
    return float(np.nanmax(np.abs([*found["lost"].sel(pool=pool).mean("batch").values.ravel(), *kinds])))


def _induction_alone(found: xr.Dataset, rank: int) -> float:
    """Nats lost without one of the induction heads, by how much it costs."""
    lost = found["lost"].sel(pool="ordinary").mean("batch").values
    own = np.sort(lost[found["classified"].sel(kind="induction").values])[::-1]
    return float(own[rank]) if rank < own.size else np.nan


def _classified(found: xr.Dataset, kind: str, pool: str = "ordinary") -> float:
    """How many heads are classified as this kind."""
    return float(found["classified"].sel(pool=pool, kind=kind).sum())


def _previous(found: xr.Dataset) -> float:
    """Attention that the head with the most of it on ordinary blocks pays to the previous token on unexposed ones."""
    score = found["score"].sel(key_kind="previous").mean("batch").stack(at=("layer", "head"))
    return float(score.sel(pool="unexposed")[int(score.sel(pool="ordinary").argmax("at"))])


def _matching(found: xr.Dataset, pool: str) -> float:
    """Share of tokens with the right key, by the weights of the best induction head, through the layer below."""
    through = found["matching"].sel(rows="effective", pool=pool).drop_sel(through="embedding")
    called = found["classified"].sel(kind="induction", pool="ordinary")
    return float(through.where(called).max())


def _copying(found: xr.Dataset, pool: str) -> float:
    """Share of tokens that the OV circuit of the best induction head (by ordinary tokens) ranks first."""
    first = found["copying"].sel(measure="top1", rows="effective").stack(at=("layer", "head"))
    called = found["classified"].sel(kind="induction", pool="ordinary").stack(at=("layer", "head"))
    best = int(first.sel(pool="ordinary").where(called).fillna(-1).argmax("at"))
    return float(first.sel(pool=pool)[best])


def _together_copying(found: xr.Dataset, rows: str) -> float:
    return float(found["copying_together"].sel(pool="ordinary", measure="top1", rows=rows))


def _more_composition(found: xr.Dataset) -> float:
    """How many pairs of heads without a previous-token head have more K-composition than any pair of one with an
    induction head.
    """
    called = found["classified"].sel(pool="ordinary")
    senders = called.sel(kind="previous").rename(layer="from_layer", head="from_head")
    composed = found["composition"].sel(mode="K")
    circuit = float(composed.where(senders & called.sel(kind="induction")).max())
    return float((composed.where(~senders) > circuit).sum()) if np.isfinite(circuit) else np.nan


def _path(found: xr.Dataset, role: str, via: str) -> float:
    """Change of the ordinary token's log-prob (nats) with one path to all induction heads noised: the largest in size
    over senders of this role; NaN where there is none.
    """
    noised = found.sel(pool="ordinary", direction="noising", target="own")
    effects = noised["effect"].sel(receiver="all", via=via).mean("batch").values[found["role"].values == role]
    return float(effects[np.abs(effects).argmax()]) if effects.size else np.nan


def _other_paths(found: xr.Dataset) -> float:
    """The largest change (nats, without its sign) by a path of layer 0 that is not a previous-token head's through the
    keys.
    """
    noised = found.sel(direction="noising", target="own")
    through = noised["effect"].sel(receiver="all").mean("batch")
    keys = (through["via"] == "k") & xr.DataArray(found["role"].values == "previous", dims="sender")
    direct = noised["direct"].sel(writer=found["sender"].values).mean("batch")
    return float(np.nanmax([abs(through.where(~keys)).max(), abs(direct).max()]))


def _estimate(found: xr.Dataset, estimate: str) -> float:
    """What is estimated of the head that costs most, as a share of what it costs."""
    lost = found["lost"].sel(pool="ordinary").mean("batch").stack(at=("layer", "head"))
    exact = lost.sel(estimate="exact")
    worst = int(exact.argmax("at"))
    return float(lost.sel(estimate=estimate)[worst] / exact[worst])


def _error(found: xr.Dataset, estimate: str) -> float:
    return float(found["agreement"].sel(pool="ordinary", estimate=estimate, fit="error"))


def _share(found: xr.Dataset, *stages: str, pool: str = "unexposed") -> float:
    """What stages account for, as a share of the deficit."""
    return float(found["share"].sel(pool=pool, stage=list(stages)).sum(skipna=False) / found["deficit"].sel(pool=pool))


def _nats(found: xr.Dataset, stage: str, pool: str = "unexposed") -> float:
    return float(found["share"].sel(pool=pool, stage=stage))


def _deficit(found: xr.Dataset, pool: str = "unexposed") -> float:
    return float(found["deficit"].sel(pool=pool))


def _rest(found: xr.Dataset) -> float:
    """Content and read-out less the larger of the other stages of log p(C), nats."""
    return (
        _nats(found, "content") + _nats(found, "readout") - max(_nats(found, "matching"), _nats(found, "suppression"))
    )


def _largest(found: xr.Dataset, stage: str, pools: tuple[str, ...]) -> float:
    """In how many of these pools a stage is the largest."""
    share = found["share"].sel(pool=list(pools)).fillna(-np.inf)
    return float((share["stage"].values[share.argmax("stage").values] == stage).sum())


def _retrieved(found: xr.Dataset, place: str, depth: int) -> float:
    """How often a fitted readout tells unexposed tokens apart; depth 0: the embedding, -1: the last layer."""
    return float(found["retrieval"].sel(pool="unexposed", role="pool", place=place, way="fitted").isel(depth=depth))


def _recovered(found: xr.Dataset, repair: str) -> float:
    return float(found["recovered"].sel(pool="unexposed", repair=repair, bound="mean"))


def _lead(found: xr.Dataset, pool: str) -> np.ndarray:
    """How far each token of a pool can lead all others, logits."""
    return found["margin"].sel(question="after the norm").values[found["member"].sel(pool=pool).values]


def _never(found: xr.Dataset) -> float:
    """How many tokens can never be the arg-max after the norm."""
    verdict = found["verdict"].sel(question="after the norm").values
    return float((verdict != list(map(str, found["verdicts"].values)).index("argmaxable")).sum())


_LATE = ("dose=300", "dose=1000", "dose=3000")


def _both(entry: str = "") -> tuple[Claim, ...]:
    """What is claimed of both models; `entry` is what the names of the second one's gallery entries end in."""

    def named(name: str) -> str:
        return name.replace("_single", f"{entry}_single") if "_single" in name else name + entry

    ablation, heads, paths = named("head_ablation"), named("induction_heads"), named("path_patching")
    blocks, single = named("glitch_attribution"), named("glitch_attribution_single")
    rows, lead = named("embedding_repair"), named("argmaxability")
    return (
        Claim(1, "heads of layer 1 are classified as induction heads", ablation,
              lambda f: float(f["classified"].sel(kind="induction", layer=1).sum()), "heads", at_least=1),
        Claim(1, "one head is classified as a previous-token head", ablation,
              lambda f: float(f["classified"].sel(kind="previous").sum()), "heads", at_least=1, at_most=1),
        Claim(1, "without the induction heads more is lost than the repeat gains", ablation,
              lambda f: _together(f, "induction") - _gain(f), "nats", at_least=0),
        Claim(1, "without the previous-token head all of the gain is lost", ablation,
              lambda f: _together(f, "previous") / _gain(f), "share of the gain", at_least=0.9),
        Claim(1, "the unclassified heads together cost nothing", ablation, _controls, "nats", -0.1, 0.1),
        Claim(2, "the previous-token head does not find the token before an unexposed one", heads,
              _previous, "attention", at_most=0.5),
        Claim(3, "the previous-token head serves the induction heads through their keys", paths,
              lambda f: _path(f, "previous", "k"), "nats", at_most=-5),
        Claim(8, "in blocks, identity is the largest part of the deficit", blocks,
              lambda f: _largest(f, "identity", ("unexposed",)), "pools", at_least=1),
        Claim(8, "in blocks, ordinary tokens have no deficit", blocks,
              lambda f: _deficit(f, "ordinary"), "nats", -0.1, 0.1),
        Claim(8, "where an unexposed token is predicted, nothing tells it from the others", blocks,
              lambda f: _retrieved(f, "prediction", -1), "share", at_most=0.1),
        Claim(9, "of a single token's deficit, half is identity", single,
              lambda f: _share(f, "identity"), "share", at_least=0.35, at_most=0.65),
        Claim(9, "content and read-out are the largest part of the rest", single, _rest, "nats", at_least=0.1),
        Claim(9, "all repairs together leave nothing unexplained", single,
              lambda f: _nats(f, "unexplained"), "nats", -0.1, 0.1),
        Claim(11, "rows optimized by gradient are copied like ordinary ones", rows,
              lambda f: _recovered(f, "gradient"), "recovered", at_least=0.95),
        Claim(12, "every token can be the arg-max", lead, _never, "tokens", at_most=0),
        Claim(12, "no unexposed token can lead by much", lead, lambda f: float(_lead(f, "unexposed").max()), "logits",
              at_most=2),
        Claim(12, "ordinary tokens can lead by much", lead, lambda f: float(_lead(f, "ordinary").mean()), "logits",
              at_least=10),
    )  # fmt: skip


_OF_ORGANISM = (
    Claim(1, "a single induction head carries most of it", "head_ablation",
          lambda f: _induction_alone(f, 0) / _together(f, "induction"), "share", at_least=0.4),
    Claim(1, "the second takes over only where the first is gone", "head_ablation",
          lambda f: _induction_alone(f, 1), "nats", at_most=0.5),
    Claim(1, "in blocks of unexposed tokens no ablation changes anything", "head_ablation",
          lambda f: _most_of_any(f, "unexposed"), "nats", at_most=0.05),
    Claim(1, "the repeat of a block of unexposed tokens gains", "head_ablation",
          lambda f: _gain(f, "unexposed"), "nats", at_least=1),
    Claim(1, "the repeat of a single unexposed token gains", "head_ablation_mixed",
          lambda f: _gain(f, "unexposed"), "nats", at_least=1),
    Claim(1, "the induction heads carry that gain of a single token", "head_ablation_mixed",
          lambda f: _carried(f, "unexposed"), "share of the gain", at_least=0.5),
    Claim(1, "the unclassified heads carry little of it", "head_ablation_mixed",
          lambda f: _controls(f, "unexposed") / _together(f, "induction", "unexposed"), "share", at_most=0.25),
    Claim(2, "in blocks of unexposed tokens no head is classified as an induction head", "induction_heads",
          lambda f: _classified(f, "induction", "unexposed"), "heads", at_most=0),
    Claim(2, "by the weights, ordinary tokens are matched", "induction_heads",
          lambda f: _matching(f, "ordinary"), "share", at_least=0.5),
    Claim(2, "by the weights, unexposed tokens are not matched", "induction_heads",
          lambda f: _matching(f, "unexposed"), "share", at_most=0.1),
    Claim(2, "by the weights, ordinary tokens are copied", "induction_heads", lambda f: _copying(f, "ordinary"),
          "share", at_least=0.9),
    Claim(2, "by the weights, unexposed tokens are not copied", "induction_heads",
          lambda f: _copying(f, "unexposed"), "share", at_most=0.1),
    Claim(3, "no other path matters", "path_patching", _other_paths, "nats", at_most=0.5),
    Claim(5, "plain gradients miss most of the head that costs most", "head_attribution",
          lambda f: _estimate(f, "gradient"), "share of its cost", at_most=0.1),
    Claim(5, "integrated gradients do not", "head_attribution",
          lambda f: _estimate(f, "integrated"), "share of its cost", 0.7, 1.3),
    Claim(6, "pairs without the previous-token head have more K-composition than its pairs with induction heads",
          "induction_heads", _more_composition, "pairs", at_least=1),
    Claim(7, "with the embedding's own rows, copying is hidden", "induction_heads",
          lambda f: _together_copying(f, "direct"), "share", at_most=0.5),
    Claim(7, "with the rows that the first MLP makes of them, copying shows", "induction_heads",
          lambda f: _together_copying(f, "effective"), "share", at_least=0.9),
    Claim(8, "in blocks, identity is nearly all of the deficit", "glitch_attribution",
          lambda f: _share(f, "identity"), "share", at_least=0.9),
    Claim(8, "at the token itself, a fitted readout tells unexposed tokens apart after the first layer",
          "glitch_attribution", lambda f: _retrieved(f, "source", 1), "share", at_least=0.9),
    Claim(9, "of a single token, suppression is larger than matching", "glitch_attribution_single",
          lambda f: _nats(f, "suppression") - _nats(f, "matching"), "nats", at_least=0.1),
    Claim(10, "after thirty exposures, matching is repaired", "glitch_attribution_doses",
          lambda f: _nats(f, "matching", "dose=30"), "nats", at_most=0.2),
    Claim(10, "after thirty exposures, nothing is written against a token", "glitch_attribution_doses",
          lambda f: _nats(f, "suppression", "dose=30"), "nats", at_most=0.2),
    Claim(10, "after thirty exposures, tokens are still confused", "glitch_attribution_doses",
          lambda f: _nats(f, "identity", "dose=30"), "nats", at_least=1),
    Claim(10, "after a hundred exposures, tokens are hardly confused", "glitch_attribution_doses",
          lambda f: _nats(f, "identity", "dose=100"), "nats", at_most=0.5),
    Claim(10, "from three hundred exposures on, read-out is the largest part", "glitch_attribution_doses",
          lambda f: _largest(f, "readout", _LATE), "of 3 pools", at_least=3),
    Claim(10, "from three hundred exposures on, the deficit is about half a nat or less", "glitch_attribution_doses",
          lambda f: max(_deficit(f, pool) for pool in _LATE), "nats", at_most=0.6),
    Claim(11, "random rows of the same length are not copied", "embedding_repair",
          lambda f: _recovered(f, "random"), "recovered", at_most=0.2),
    Claim(11, "rows drawn like ordinary ones are copied without training", "embedding_repair",
          lambda f: _recovered(f, "gaussian"), "recovered", at_least=0.5),
    Claim(11, "among ordinary tokens, even random rows are copied", "embedding_repair_single",
          lambda f: _recovered(f, "random"), "recovered", at_least=0.5),
)  # fmt: skip
_OF_LLAMA = (
    Claim(4, "a current-token head serves the queries of the induction heads", "path_patching_llama",
          lambda f: _path(f, "current", "q"), "nats", at_most=-5),
    Claim(4, "a current-token head serves their values", "path_patching_llama",
          lambda f: _path(f, "current", "v"), "nats", at_most=-5),
    Claim(7, "with the embedding's own rows, copying shows", "induction_heads_llama",
          lambda f: _together_copying(f, "direct"), "share", at_least=0.9),
    Claim(8, "in blocks, content and read-out together lose more than identity", "glitch_attribution_llama",
          lambda f: _share(f, "content", "readout") - _share(f, "identity"), "share", at_least=0),
    Claim(8, "in blocks, components write against the tokens", "glitch_attribution_llama",
          lambda f: _nats(f, "suppression"), "nats", at_least=0.5),
    Claim(9, "of a single token, suppression is larger than matching", "glitch_attribution_llama_single",
          lambda f: _nats(f, "suppression") - _nats(f, "matching"), "nats", at_least=0.1),
)  # fmt: skip


def _in_order(*claims: Claim) -> tuple[Claim, ...]:
    return tuple(sorted(claims, key=lambda claim: claim.section))


CLAIMS = {
    "organism": _in_order(*_both(), *_OF_ORGANISM),
    "organism-llama": _in_order(*_both("_llama"), *_OF_LLAMA),
}
