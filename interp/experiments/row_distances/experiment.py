"""Are embedding rows that look identical the same, or made so by rounding? Distances, beside the storing error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from interp.models import row_rounding, token_texts
from interp.progress import track
from interp.results import label
from interp.tokens import Pool

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def row_distances(model: TransformerBridge, pools: list[Pool]) -> xr.Dataset:
    """Measure the distance from each token's input row to the nearest other row, and compare it with rounding error.

    Rows that were equal before they were stored lie no farther apart than the errors of storing them.

    Args:
        model: any loaded model.
        pools: the tokens, one after another; the coordinate `pool` names each one's pool.

    Returns:
        By [token], in units of the embedding: `distance` to the `nearest` other row (an id); `same`, how many other
        rows are exactly equal; `norm` of the row; `rounding`, the expected distance of two equal rows, each stored with
        an error that is uniform over a step (NaN where the steps are unknown); `within`, how many other rows lie within
        twice that. The attribute `stored` names the format.

    Example:
        >>> result = interp.run("row_distances", "organism", "ordinary")
        >>> result["same"].max().item(), bool((result["distance"] > result["rounding"]).all())
        (0, True)
    """
    weight = model.original_model.get_input_embeddings().weight.detach().float()
    error, stored = row_rounding(model)
    ids = torch.tensor([i for pool in pools for i in pool.ids], device=weight.device)
    squares = torch.from_numpy(error).square().to(weight)  # mean square error of a number
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("distance", "nearest", "same", "rounding", "within")}
    size = max(1, 2**28 // weight.numel())
    for part in track(ids.split(size), "distances of rows", total=-(-len(ids) // size)):
        # differences and not products: of rows that are nearly equal, products leave rounding alone
        apart = torch.stack([(weight - weight[i]).square().sum(-1).sqrt() for i in part])
        expected = (weight.shape[1] * (squares[part, None] + squares)).sqrt()  # [token vocabulary]
        own = torch.arange(len(part), device=part.device)
        others = apart.index_put((own, part), torch.tensor(torch.inf, device=apart.device))
        distance, nearest = others.min(-1)
        found = {
            "distance": distance,
            "nearest": nearest,
            "same": (others == 0).sum(-1),
            "rounding": expected[own, nearest],
            "within": (others <= 2 * expected).sum(-1),
        }
        for name, values in found.items():
            columns[name].append(values.cpu().numpy())
    data: dict[str, Any] = {name: np.concatenate(parts) for name, parts in columns.items()}
    data["norm"] = weight[ids].norm(dim=-1)
    coords = {
        "token": ids.cpu().numpy(),
        "pool": ("token", np.array([pool.name for pool in pools for _ in pool.ids], dtype=object)),
        "text": ("token", np.array(token_texts(model, ids.tolist()), dtype=object)),
    }
    named = {name: label(name, values, "token", coords) for name, values in data.items()}
    return xr.Dataset(named).assign_attrs(stored=stored)
