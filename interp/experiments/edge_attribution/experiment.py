"""Which edges between heads, MLPs and the logits produce an answer, and how few of them suffice?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.edges import Graph, Written, edge_gradients, edge_patches, run_with_edges, written
from interp.errors import InterpError
from interp.heads import reference_pool
from interp.identities import require
from interp.measure import log_probs
from interp.metrics import UNITS, check_metric, of_logits, scores
from interp.progress import track
from interp.results import Keep, at_once, joined, label
from interp.sweep import paired_scores
from interp.tokens import Draw, Paired, Pool, Prompts, Repeated, corrupted_prompts

ESTIMATES = ("gradient", "integrated", "exact")
ORDERS = ("integrated", "exact")  # by which edges are kept
FITS = ("spearman", "pearson", "found", "error")
Metric = Literal["logit_difference", "log_prob", "probability"]
OF_BLOCKS = ("reference",)
BUDGETS = {
    "quick": {"batch": 6, "exact": 32, "others": 16, "sizes": 8, "draws": 2},
    "thorough": {"batch": 128, "exact": 512, "others": 128, "draws": 8},
}
_NOTHING = 1e-4  # of the largest effect, below which an edge carries nothing
_LEAST = 1e-3  # nats between the two runs, below which there is nothing to keep a share of


def edge_attribution(
    model: TransformerBridge,
    pools: list[Pool] | list[Paired],
    draw: Draw,
    keep: Keep = at_once,
    *,
    steps: int = 8,
    exact: int = 128,
    others: int = 32,
    sizes: int = 14,
    draws: int = 4,
    metric: Metric = "logit_difference",
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Estimate every edge's effect by integrated gradients (EAP-IG), patch the largest exactly, and test circuits.

    An edge leads from a writer (embedding, head, MLP) to a reader (a head's q, k or v, an MLP, the logits).

    Args:
        model: any loaded model whose layers all have attention.
        pools: the tokens to copy, or prompts with answers and corrupted prompts.
        draw: draws sequences of a pool, and paired ones.
        keep: stores finished parts.
        steps: midpoints between the two runs' embeddings that gradients are averaged over.
        exact: how many edges, those with the largest estimates, are patched exactly.
        others: how many other edges, drawn at random, are also patched exactly.
        sizes: how many circuit sizes are tried, evenly spaced on a logarithmic scale.
        draws: how many random orders of the edges circuits are compared with.
        metric: "logit_difference" (the clean token's logit minus the corrupted one's; of prompts, answers minus
            rivals), "log_prob", or of prompts "probability".
        reference: on blocks, the pool of ordinary tokens (default: the model's).
        seed: decides the random edges.

    Returns:
        `effect` [pool estimate edge batch], the change of the metric when that edge alone is corrupted (negative: it
        was needed), by `gradient` (EAP), `integrated` (EAP-IG) or `exact` (NaN where not run). `faithfulness` [pool
        order size batch], the share of the runs' difference that the first edges keep, beside `random_faithfulness`.
        docs/circuit.md lists the rest.

    Raises:
        InterpError: a number or the metric is not valid, or edges cannot be separated.

    Source:
        Hanna, Pezzelle and Belinkov 2024, Have Faith in Faithfulness, arXiv 2403.17806.

    Example:
        >>> few = dict(batch=2, length=6, exact=16, others=4, sizes=4, draws=1)
        >>> result = interp.run("edge_attribution", "wired", "1:33", reference="33:65", **few)
        >>> exact = result["effect"].sel(estimate="exact", pool="1:33").mean("batch")
        >>> str(exact["edge"].values[np.nanargmin(exact)])
        'embed > L1H0.v'
    """
    if min(steps, exact, draws) < 1 or sizes < 2 or others < 0:
        raise InterpError(
            f"steps {steps}, exact {exact}, others {others}, sizes {sizes}, draws {draws}: use positive integers, 2 "
            "sizes or more, and 0 or more others"
        )
    pairs = [one for one in pools if isinstance(one, Prompts)]
    for given in pairs:
        check_metric(metric, given, without=("rank", "kl"), why="has no gradient at the clean run")
    if not pairs and metric not in get_args(Metric)[:2]:
        raise InterpError(f"metric '{metric}' on repeated blocks: use {' or '.join(get_args(Metric)[:2])}")
    require(model, "edges")
    graph = Graph.of(model)
    orders = np.random.default_rng(seed)
    random = np.stack([orders.permutation(len(graph.edges)) for _ in range(draws)])
    spaced = np.unique(np.geomspace(1, len(graph.edges), sizes).round().astype(int))
    healthy = None if pairs else reference_pool(model, reference, seed=seed)
    parts, names = [], [one.name for one in pools if isinstance(one, Pool | Prompts)]
    for one in pools:
        if isinstance(one, Prompts):
            pair = _Pair(model, graph, one, corrupted_prompts(one), metric)
        else:
            assert isinstance(one, Pool)
            assert healthy is not None
            tokens = draw(one)
            if not tokens.inducible_tested.any(1).all():
                raise InterpError("a sequence tests no inducible token: use longer blocks")
            pair = _Pair(model, graph, tokens, draw(healthy, paired_with=tokens), metric)
        name = pair.clean.pool
        estimates = keep(f"gradients {name}", partial(pair.estimates, steps)).drop_attrs()
        chosen = _chosen(estimates, exact, others, random[0])
        patched = pair.patched(chosen, keep)
        effect = xr.concat([estimates["effect"], patched["effect"]], "estimate")
        data = _with_agreement(estimates.drop_vars(["effect", "estimate"]).assign(effect=effect))
        ranked = np.stack([_ranked(data, order) for order in ORDERS])
        curves = keep(f"circuits {name}", partial(pair.curves, np.concatenate([ranked, random]), spaced))
        parts.append(xr.merge([data, _faithfulness(data, curves["measured"].assign_coords(size=spaced))]))
    data = joined(parts, names, outer=bool(pairs))
    ends = {
        "edge": graph.names(),
        "writer": ("edge", [graph.writers[w] for w, _ in graph.edges]),
        "reader": ("edge", [graph.readers[r] for _, r in graph.edges]),
    }
    if healthy is None:
        return data.assign_coords(ends).assign_attrs(metric=metric, unit=UNITS[metric])
    return data.assign_coords(ends).assign_attrs(measure=metric, among=healthy.name)


@dataclass(frozen=True)
class _Pair:
    """Clean and corrupted sequences, and what is measured on them."""

    model: TransformerBridge
    graph: Graph
    clean: Repeated | Prompts
    corrupted: Repeated | Prompts
    metric: Metric

    def passes(self, what: str, most: int = 2) -> Iterator[tuple[Any, Any]]:
        """A few sequences of both at a time: every writer's output is held of each."""
        size = max(1, self.clean.rows_per_pass() // most)
        parts = zip(self.clean.split(size), self.corrupted.split(size), strict=True)
        yield from track(parts, f"{what}: {self.clean.pool}", total=-(-len(self.clean.ids) // size))

    def measure(self, clean: Repeated | Prompts, corrupted: Repeated | Prompts) -> Callable[[Tensor], Tensor]:
        """From logits to the metric's mean over the tested inducible tokens of each sequence, [batch]."""
        if isinstance(clean, Prompts):
            return partial(of_logits, tokens=clean, metric=self.metric)
        read = torch.from_numpy(clean.inducible_tested).to(clean.ids.device)

        def measured(logits: Tensor) -> Tensor:
            found = log_probs(logits, clean.ids)
            if self.metric == "logit_difference":  # the softmax's normaliser is the same for both
                found = found - log_probs(logits, corrupted.ids)
            return found.masked_fill(~read, 0.0).sum(1) / read.sum(1)

        return measured

    def estimates(self, steps: int) -> xr.Dataset:
        """`effect` [estimate edge batch] by gradients, and `clean` and `corrupted` [batch]."""
        model, midpoints = self.model, [(i + 0.5) / steps for i in range(steps)]
        effects, ends = [], []
        for clean, corrupted in self.passes("gradients"):
            metric = self.measure(clean, corrupted)
            with torch.no_grad():
                own, other = (written(model, self.graph, part.ids).writers for part in (clean, corrupted))
                logits = (model(part.ids, return_type="logits", prepend_bos=False) for part in (clean, corrupted))
                ends.append(torch.stack([metric(found) for found in logits]).cpu())
            change = other - own
            shares: list[list[float]] = [[0.0], midpoints]
            found = [edge_gradients(model, self.graph, clean.ids, change, metric, share) for share in shares]
            effects.append(torch.stack(found).cpu())
        coords = {"batch": np.arange(len(self.clean.ids)), "estimate": list(ESTIMATES[:2])}
        values = torch.cat(effects, -1)
        clean_score, corrupted_score = torch.cat(ends, -1)
        whole = float((corrupted_score - clean_score).mean())
        through = float(values[1, self.graph.edges[:, 0] == 0].sum(0).mean())
        accounted = through / whole if abs(whole) > _LEAST else np.nan
        return xr.Dataset(
            {
                "effect": label("effect", values, "estimate edge batch", coords),
                "clean": label("clean", clean_score, "batch", coords),
                "corrupted": label("corrupted", corrupted_score, "batch", coords),
                "accounted": ((), np.float32(accounted)),
            }
        )

    def patched(self, chosen: np.ndarray, keep: Keep) -> xr.Dataset:
        """`effect` [estimate edge batch] by path patching of the chosen edges."""
        needed = {int(w): i for i, w in enumerate(np.unique(self.graph.edges[chosen, 0]))}
        # only the requested writers: all of them would not fit into memory for a whole batch
        run, source = (self._written(part, list(needed)) for part in (self.clean, self.corrupted))
        plans = [edge_patches(self.model, self.graph, run, source, int(e), at=needed) for e in chosen]
        what = f"edges: {self.clean.pool}"
        if isinstance(self.clean, Prompts):
            values = scores(self.model, self.clean, [[], *plans], self.metric, what=what, keep=keep)
        else:
            read = self.clean.inducible_tested
            by_target = paired_scores(self.model, self.clean, self.corrupted, plans, read, what=what, keep=keep)
            own, other = by_target[:, 0], by_target[:, 1]
            values = own - other if self.metric == "logit_difference" else own
        effect = np.full((1, len(self.graph.edges), values.shape[-1]), np.nan, dtype=np.float32)
        effect[0, chosen] = values[1:] - values[0]
        coords = {"batch": np.arange(values.shape[-1]), "estimate": [ESTIMATES[2]]}
        return label("effect", effect, "estimate edge batch", coords).to_dataset()

    def _written(self, tokens: Repeated | Prompts, writers: list[int]) -> Written:
        parts = []
        with torch.no_grad():
            for part in tokens.split(max(1, tokens.rows_per_pass() // 2)):
                found = written(self.model, self.graph, part.ids)
                parts.append(Written(found.writers[writers].clone(), found.streams))
        streams = {name: torch.cat([part.streams[name] for part in parts]) for name in parts[0].streams}
        return Written(torch.cat([part.writers for part in parts], 1), streams)

    def curves(self, orders: np.ndarray, sizes: np.ndarray) -> xr.Dataset:
        """`measured` [order size batch] where the first edges of each order are kept."""
        found = []
        for clean, corrupted in self.passes("circuits"):
            metric, rows = self.measure(clean, corrupted), []
            with torch.no_grad():
                other = written(self.model, self.graph, corrupted.ids)
                for order in orders:
                    for size in sizes:
                        kept = torch.zeros(len(self.graph.edges), dtype=torch.bool)
                        kept[torch.from_numpy(order[:size])] = True
                        logits = run_with_edges(self.model, self.graph, clean.ids, other, kept.to(clean.ids.device))
                        rows.append(metric(logits).cpu())
            found.append(torch.stack(rows).unflatten(0, (len(orders), len(sizes))))
        return label("measured", torch.cat(found, -1), "chain size batch").to_dataset()


def _chosen(estimates: xr.Dataset, exact: int, others: int, random: np.ndarray) -> np.ndarray:
    """The edges that are patched exactly: those of the largest integrated estimates, and others at random."""
    order = np.argsort(-np.abs(estimates["effect"].sel(estimate="integrated").mean("batch").values), kind="stable")
    top = order[:exact]
    rest = random[~np.isin(random, top)][:others]
    return np.sort(np.concatenate([top, rest]))


def _ranked(data: xr.Dataset, by: str) -> np.ndarray:
    """Edges, the largest modulus first; those that were not patched exactly come last, by their estimates."""
    mean = data["effect"].mean("batch", skipna=False)
    estimate, known = (np.abs(mean.sel(estimate=name).values) for name in ("integrated", by))
    return np.lexsort((-estimate, -np.nan_to_num(known, nan=-1.0)))


def _with_agreement(data: xr.Dataset) -> xr.Dataset:
    """The same with `agreement` [estimate fit]."""
    mean = data["effect"].mean("batch", skipna=False)
    exact = mean.sel(estimate="exact").values
    known = np.isfinite(exact)
    fits = [_agreement(mean.sel(estimate=e).values[known], exact[known]) for e in ESTIMATES[:2]]
    fits.append([np.nan] * len(FITS))
    coords = {"estimate": list(ESTIMATES), "fit": list(FITS)}
    return data.assign(agreement=label("agreement", np.array(fits), "estimate fit", coords))


def _agreement(estimate: np.ndarray, exact: np.ndarray) -> list[float]:
    """Rank correlation, correlation (NaN where one is constant), share of the best found, largest error."""
    sizes = [np.where(np.abs(v) > _NOTHING * np.abs(v).max(), np.abs(v), 0.0) for v in (estimate, exact)]
    best = [{int(i) for i in np.argsort(-size, kind="stable")[:10] if size[i] > 0} for size in sizes]
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants, and of a single edge
        correlations = [float(spearmanr(estimate, exact).statistic), float(np.corrcoef(estimate, exact)[0, 1])]
    return [*correlations, len(best[0] & best[1]) / max(1, len(best[1])), float(np.abs(estimate - exact).max())]


def _faithfulness(data: xr.Dataset, measured: xr.DataArray) -> xr.Dataset:
    """`kept`, `random` and the shares that they keep, of what is `measured` [chain size batch]."""
    whole = float((data["clean"] - data["corrupted"]).mean())
    share = (measured - data["corrupted"]) / (whole if abs(whole) > _LEAST else np.nan)
    found = {}
    for name, random, values in (("kept", "random", measured), ("faithfulness", "random_faithfulness", share)):
        by_order, drawn = (values.isel(chain=part) for part in (slice(None, len(ORDERS)), slice(len(ORDERS), None)))
        found[name] = by_order.rename(chain="order").assign_coords(order=list(ORDERS))
        found[random] = drawn.rename(chain="draw").assign_coords(draw=np.arange(drawn.sizes["chain"]))
    return xr.Dataset(found).transpose(..., "size", "batch").drop_attrs()
