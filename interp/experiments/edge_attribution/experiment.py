"""Through which edges between heads, MLPs and the logits does copying run, and how few of them suffice?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

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
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.sweep import paired_scores
from interp.tokens import Draw, Pool, Repeated

ESTIMATES = ("gradient", "integrated", "exact")
ORDERS = ("integrated", "exact")  # by which edges are kept
FITS = ("spearman", "pearson", "found", "error")
Measure = Literal["logit_difference", "log_prob"]
BUDGETS = {
    "quick": {"batch": 6, "exact": 32, "others": 16, "sizes": 8, "draws": 2},
    "thorough": {"batch": 128, "exact": 512, "others": 128, "draws": 8},
}
_NOTHING = 1e-4  # of the largest effect, below which an edge carries nothing
_LEAST = 1e-3  # nats between the two runs, below which there is nothing to keep a share of


def edge_attribution(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    steps: int = 8,
    exact: int = 128,
    others: int = 32,
    sizes: int = 14,
    draws: int = 4,
    measure: Measure = "logit_difference",
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Estimate what every edge carries by integrated gradients (EAP-IG), patch the top ones exactly, and keep the best.

    The clean run is on the pool's sequences, the corrupted one on paired sequences of ordinary tokens, exchanged one to
    one, as in `activation_patching`. An edge leads from a writer (embedding, head, MLP) to a reader (a head's query,
    key or value, an MLP, the logits).

    Args:
        model: any loaded model whose layers all attend.
        pools: the tokens to copy.
        draw: draws sequences of a pool, and paired ones.
        keep: stores finished parts.
        steps: number of midpoints, between the two runs' embeddings, that gradients are averaged over.
        exact: number of edges, those of the largest estimate, that are patched exactly.
        others: number of other edges, drawn at random, that are patched exactly, too.
        sizes: number of sizes, evenly spaced on a logarithmic scale, of the circuits that are tried.
        draws: number of random orders of the edges that the circuits are compared with.
        measure: what edges act on: "logit_difference", the logit of the clean run's token less that of the corrupted
            run's, or "log_prob", the log-prob of the clean run's.
        reference: the pool of the ordinary tokens; by default the model's.
        seed: decides the random edges.

    Returns:
        In nats, means over the tested inducible tokens. `effect` [pool estimate edge batch], the change where that edge
        alone carries the corrupted run's value (negative: the edge was needed): `gradient`, attribution patching at the
        clean run; `integrated`, EAP-IG; `exact`, path patching, NaN where it was not done. `writer` and `reader` [edge]
        name the ends. `agreement` [pool estimate fit], of the estimates with the exact effects of all edges that have
        one: Spearman's and Pearson's correlation, the share of the ten largest that is among the estimate's ten
        largest, the largest error. `accounted` [pool], the sum of the integrated estimates of the embedding's edges as
        a share of the difference between the runs, which would be 1 with enough steps.

        `kept` [pool order size batch], the measure in a run that keeps the `size` edges of the largest modulus at their
        clean values and has the corrupted ones on all others: by the order of the `integrated` estimates, and by the
        `exact` effects, behind which come those that were not patched; `random` [pool draw size batch] keeps as many
        edges drawn at random. `clean` and `corrupted` [pool batch]. `faithfulness` [pool order size batch] and
        `random_faithfulness` [pool draw size batch] are the share of the mean difference between clean and corrupted
        that is kept; NaN where there is none.

    Raises:
        InterpError: for numbers below these, an unknown measure, or a model whose edges cannot be told apart.

    Source:
        Hanna, Pezzelle, Belinkov 2024, Have Faith in Faithfulness, arXiv 2403.17806.
    """
    if min(steps, exact, draws) < 1 or sizes < 2 or others < 0:
        raise InterpError(
            f"steps {steps}, exact {exact}, others {others}, sizes {sizes}, draws {draws}: use positive integers, 2 "
            "sizes or more, and 0 or more others"
        )
    if measure not in get_args(Measure):
        raise InterpError(f"unknown measure '{measure}': use {' or '.join(get_args(Measure))}")
    require(model, "edges")
    healthy, graph = reference_pool(model, reference, seed=seed), Graph.of(model)
    orders = np.random.default_rng(seed)
    random = np.stack([orders.permutation(len(graph.edges)) for _ in range(draws)])
    spaced = np.unique(np.geomspace(1, len(graph.edges), sizes).round().astype(int))
    parts = []
    for pool in pools:
        tokens = draw(pool)
        if not tokens.inducible_tested.any(1).all():
            raise InterpError("a sequence tests no inducible token: use longer blocks")
        pair = _Pair(model, graph, tokens, draw(healthy, paired_with=tokens), measure)
        estimates = keep(f"gradients {pool.name}", partial(pair.estimates, steps)).drop_attrs()
        chosen = _chosen(estimates, exact, others, random[0])
        patched = pair.patched(chosen, keep)
        effect = xr.concat([estimates["effect"], patched["effect"]], "estimate")
        data = _with_agreement(estimates.drop_vars(["effect", "estimate"]).assign(effect=effect))
        ranked = np.stack([_ranked(data, order) for order in ORDERS])
        curves = keep(f"circuits {pool.name}", partial(pair.curves, np.concatenate([ranked, random]), spaced))
        parts.append(xr.merge([data, _faithfulness(data, curves["measured"].assign_coords(size=spaced))]))
    data = xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool"))
    ends = {
        "edge": graph.names(),
        "writer": ("edge", [graph.writers[w] for w, _ in graph.edges]),
        "reader": ("edge", [graph.readers[r] for _, r in graph.edges]),
    }
    return data.assign_coords(ends).assign_attrs(among=healthy.name, measure=measure)


@dataclass(frozen=True)
class _Pair:
    """Clean and corrupted sequences, and what is measured on them."""

    model: TransformerBridge
    graph: Graph
    clean: Repeated
    corrupted: Repeated
    measure: str

    def passes(self, what: str, most: int = 2) -> Iterator[tuple[Repeated, Repeated]]:
        """A few sequences of both at a time: every writer's output is held of each."""
        size = max(1, self.clean.rows_per_pass() // most)
        parts = zip(self.clean.split(size), self.corrupted.split(size), strict=True)
        yield from track(parts, f"{what}: {self.clean.pool}", total=-(-len(self.clean.ids) // size))

    def metric(self, clean: Repeated, corrupted: Repeated) -> Callable[[Tensor], Tensor]:
        """From logits to the measure's mean over the tested inducible tokens of each sequence, [batch]."""
        read = torch.from_numpy(clean.inducible_tested).to(clean.ids.device)

        def measured(logits: Tensor) -> Tensor:
            found = log_probs(logits, clean.ids)
            if self.measure == "logit_difference":  # what the softmax divides by is the same for both
                found = found - log_probs(logits, corrupted.ids)
            return found.masked_fill(~read, 0.0).sum(1) / read.sum(1)

        return measured

    def estimates(self, steps: int) -> xr.Dataset:
        """`effect` [estimate edge batch] by gradients, and `clean` and `corrupted` [batch]."""
        model, midpoints = self.model, [(i + 0.5) / steps for i in range(steps)]
        effects, ends = [], []
        for clean, corrupted in self.passes("gradients"):
            metric = self.metric(clean, corrupted)
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
        # of the writers that are asked for alone: all of them would not fit into memory for a whole batch
        run, other = (self._written(part, list(needed)) for part in (self.clean, self.corrupted))
        plans = [edge_patches(self.model, self.graph, run, other, int(e), at=needed) for e in chosen]
        what, read = f"edges: {self.clean.pool}", self.clean.inducible_tested
        found = paired_scores(self.model, self.clean, self.corrupted, plans, read, what=what, keep=keep)
        scores = found[:, 0] - found[:, 1] if self.measure == "logit_difference" else found[:, 0]
        values = np.full((1, len(self.graph.edges), scores.shape[-1]), np.nan, dtype=np.float32)
        values[0, chosen] = scores[1:] - scores[0]
        coords = {"batch": np.arange(scores.shape[-1]), "estimate": [ESTIMATES[2]]}
        return label("effect", values, "estimate edge batch", coords).to_dataset()

    def _written(self, tokens: Repeated, writers: list[int]) -> Written:
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
            metric, rows = self.metric(clean, corrupted), []
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
    """Edges, the largest modulus first; those that were not patched exactly come last there, by their estimates."""
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
