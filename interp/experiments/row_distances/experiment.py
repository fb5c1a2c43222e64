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
    """The distance of each token's input row to the nearest other row of the vocabulary, and what rounding would make.

    Two rows that were the same before they were stored lie no farther apart than the two errors of storing them.

    Args:
        model: any loaded model.
        pools: the tokens; they stand in a row, the coordinate `pool` tells which.

    Returns:
        By [token], in units of the embedding: `distance` to the nearest other row, `nearest` its id; `same`, the number
        of other rows that are equal to it, digit by digit; `norm` of the row; `rounding`, the distance that two equal
        rows have when each is stored with an error of its own, as expected of errors that are uniform over a step (NaN
        where the steps are not known); `within`, the number of other rows no farther than twice that. The attribute
        `stored` says what the rows are stored as.
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
