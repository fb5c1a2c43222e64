"""How does an experiment become a stamped result?

`run` loads the model, resolves the pools, draws the sequences, calls the experiment, checks its
dimensions and stamps where everything came from. With `out`, each finished pool is kept, so an
interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from interp import kept, results
from interp.errors import InterpError
from interp.experiments import Experiment, find, parameters
from interp.files import writable
from interp.models import load, origin
from interp.pools import default_pools, ordinary_pool, pools as resolve, token_texts
from interp.tokens import Pool, Repeated, article, check_seed, drawn_from, paired, repeated

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_PARTS = ".parts"


def run(
    experiment: Experiment | str,
    model: TransformerBridge | str = "organism",
    pools: str | Pool | Iterable[str | Pool] | None = None,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    batch: int = 64,
    length: int = 25,
    copies: int = 2,
    mixed: bool = False,
    among: str | Pool | None = None,
    replacement: bool | None = None,
    bos: bool | int | Literal["auto"] = "auto",
    protocol: Literal["default", "article"] = "default",
    **params: Any,
) -> xr.Dataset:
    """Run an experiment over pools and return one Dataset with a `pool` dimension and its provenance.

    `experiment` is a function, a name (`interp experiments`), or `file.py:function`; `params` are its own
    keyword arguments. Sequences are `batch` random blocks of `length` tokens, `copies` times over, drawn
    from each pool with `seed`; `mixed` puts one token of the pool among tokens of `among` (default: the
    model's ordinary tokens). `bos` is "auto" (the tokenizer's, or none where it has none), False, or an id.
    `protocol="article"` draws as the article's code does: seed 42, one sequence, a block of 25, randint.
    An experiment that asks for neither sequences nor pools looks at the whole vocabulary, and takes no pools.

    With `out`, writes `out/result.nc`. Raises `InterpError` for anything asked for that cannot be had.
    """
    import torch

    function = find(experiment) if isinstance(experiment, str) else experiment
    wants = set(inspect.signature(function).parameters)
    _check_parameters(function, params)
    check_seed(seed)
    if mixed and "singles" in wants:
        raise InterpError(
            "this experiment measures single tokens among ordinary ones beside whole blocks: leave mixed out"
        )
    draws = bool({"tokens", "draw"} & wants)
    if not draws:
        _check_no_sequences(
            batch=batch, length=length, copies=copies, mixed=mixed, among=among, replacement=replacement, bos=bos,
            protocol=protocol,
        )  # fmt: skip
    if protocol not in ("default", "article"):
        raise InterpError(f"unknown protocol '{protocol}': use 'default' or 'article'")
    if protocol == "article":
        seed, batch, length, copies, mixed, replacement = 42, 1, 25, 2, False, True
    if protocol == "article" and "draw" in wants:
        raise InterpError("the article draws one sequence, and this experiment needs many: leave the protocol out")
    of_pools = bool({"tokens", "pools"} & wants)
    if not of_pools and pools:
        raise InterpError("this experiment looks at the whole vocabulary: leave pools out")
    bridge = load(model) if isinstance(model, str) else model
    chosen = resolve(default_pools(bridge) if pools is None else pools, bridge, seed=seed) if of_pools else []
    if "seed" in wants:
        params.setdefault("seed", seed)
    bos_id = _bos_id(bridge, bos)
    record: dict[str, Any] = {
        "experiment": getattr(function, "__name__", "experiment"),
        "source_sha256": kept.source_hash(function),
        "parameters": _plain(params),
        "model": origin(bridge),
        "pools": {pool.name: {"size": len(pool), "ids": _ranges(pool.ids)} for pool in chosen},
        "seed": seed,
        "versions": results.versions(),
    }  # fmt: skip
    if draws:
        record["sequences"] = {
            "seed": seed, "batch": batch, "length": length, "copies": copies, "mixed": mixed,
            "bos": bos_id, "protocol": protocol, "replacement": replacement,
        }  # fmt: skip
    files = {name: _file_hash(value) for name, value in params.items() if isinstance(value, str) and _is_file(value)}
    if files:  # a file named by a parameter may change between an interruption and its resumption
        record["files_sha256"] = files
    healthy = None
    if mixed or ("singles" in wants and protocol == "default"):
        try:
            healthy = ordinary_pool(bridge) if among is None else resolve(among, bridge, seed=seed)[0]
            record["sequences"]["among"] = healthy.name
            record["among"] = {"size": len(healthy), "ids": _ranges(healthy.ids)}
        except InterpError:
            if mixed or among is not None:  # else nobody asked: a model without a tokenizer has whole blocks only
                raise

    if "draw" in wants:  # said before anything is drawn: parts are kept by it
        for pool in chosen:
            few = len(drawn_from(pool, healthy if mixed else None)) < length
            record["pools"][pool.name]["replacement"] = few if replacement is None else replacement

    folder = writable(out) if out is not None else None  # not before all that was asked for is known to be there

    def drawn(pool: Pool, single: bool, others: int = 0) -> Repeated:
        if protocol == "article":
            tokens = article(pool, bos=bos_id, seed=seed + others)
        else:
            tokens = repeated(
                pool, batch=batch, length=length, copies=copies, bos=bos_id, among=healthy if single else None,
                replacement=replacement, seed=seed + others,
            )  # fmt: skip
        _check_context(bridge, tokens)
        return _ready(bridge, tokens)

    def draw(pool: Pool, *, others: int = 0, like: Repeated | None = None) -> Repeated:
        if like is not None:
            return _ready(bridge, paired(like, pool, seed=seed + others))
        return drawn(pool, mixed, others)

    parts = _Parts(folder, record, function, bridge)
    if "draw" in wants:
        params["draw"] = draw
    if "keep" in wants:
        params["keep"] = parts.get

    def call(**inputs: Any) -> xr.Dataset:
        gradients = getattr(function, "gradients", False)
        with torch.inference_mode(not gradients), torch.set_grad_enabled(gradients):
            found = function(bridge, **inputs, **params)
        dataset = found.to_dataset() if isinstance(found, xr.DataArray) else found
        if not isinstance(dataset, xr.Dataset):
            raise InterpError(
                f"{record['experiment']} returned a {type(found).__name__}: return label(...).to_dataset()"
            )
        results.check_dimensions(dataset, inspect.getdoc(function) or "")
        return dataset

    if "tokens" not in wants:
        dataset = call(pools=chosen) if "pools" in wants else call()
    else:
        found = []
        for pool in chosen:
            inputs = {"tokens": drawn(pool, mixed)}
            if "singles" in wants and healthy is not None and _room_for_singles(length):
                inputs["singles"] = drawn(pool, True)
            record["pools"][pool.name]["replacement"] = any(t.replacement for t in inputs.values())
            if "keep" in wants:
                params["keep"] = partial(parts.of_pool, pool.name)
            found.append(parts.get(pool.name, lambda inputs=inputs: call(**inputs)))
        dataset = _joined(found, chosen)
    dataset = results.stamp(dataset, record)
    if folder is not None:
        results.save(dataset, folder / "result.nc")
        parts.clear()
    return dataset


class _Parts:
    """Finished pools of a run that may be interrupted, each in a file named for all that decides it."""

    def __init__(self, folder: Path | None, record: dict[str, Any], function: Experiment, model: TransformerBridge):
        self.folder = folder / _PARTS if folder is not None else None
        self.record = json.dumps({k: v for k, v in record.items() if k != "pools"}, sort_keys=True, default=str)
        self.pools = record["pools"]
        # of code that cannot be told apart, and of a model with hooks, keep nothing
        does = kept.doing(function)
        self.unsure = does == kept.UNKNOWN or kept.hooked(model)
        if self.folder is not None and not self.unsure:
            # the package's code, and weights, as they are now: both may have been edited
            self.record += does + kept.code() + kept.checksum(model)

    def of_pool(self, pool: str, name: str, make: Any) -> xr.Dataset:
        """A part that an experiment keeps while it is about one pool."""
        return self.get(f"{pool}: {name}", make)

    def get(self, name: str, make: Any) -> xr.Dataset:
        """The stored part of that name (a pool's, or one an experiment gives), or a new one, which is then stored."""
        if self.folder is None or self.unsure:
            return make()
        # a pool's own part does not depend on the other pools
        decides = self.pools.get(name, self.pools)
        key = hashlib.sha256(f"{self.record}{name}{decides}".encode()).hexdigest()[:16]
        path = self.folder / f"{key}.nc"
        if path.exists():
            try:
                return results.load(path)
            except InterpError:
                path.unlink()  # damaged: make it anew
        part: xr.Dataset = make()
        results.save(results.stamp(part, {"part": name}), path)
        return part

    def clear(self) -> None:
        """Remove the parts once the whole result is written."""
        if self.folder is not None and self.folder.is_dir():
            for file in self.folder.iterdir():
                file.unlink()
            self.folder.rmdir()


def _joined(found: list[xr.Dataset], chosen: list[Pool]) -> xr.Dataset:
    """One dataset over pools; coordinates of single sequences vary by pool, the others must agree."""
    found = [part.drop_attrs(deep=False) for part in found]
    varying = [name for name, c in found[0].coords.items() if "batch" in c.dims and name != "batch"]
    index = xr.DataArray([pool.name for pool in chosen], dims="pool", name="pool")
    try:
        return xr.concat(found, index, data_vars="all", coords=varying, compat="equals", join="exact")
    except ValueError as error:
        raise InterpError(
            f"the pools' results differ in shape ({error}): return the same dimensions for each"
        ) from error


def _check_parameters(function: Experiment, params: dict[str, Any]) -> None:
    known = parameters(function)
    given = [n for n in inspect.signature(function).parameters if n not in known][1:]
    unknown = [n for n in given if n not in ("tokens", "singles", "pools", "draw", "keep")]
    if unknown:
        raise InterpError(
            f"{getattr(function, '__name__', 'the experiment')} asks for '{unknown[0]}': after the model, name the "
            "sequences 'tokens' or the pools 'pools', and put parameters of your own behind a '*'"
        )
    alone = {"tokens", "pools"} <= set(given)
    if alone or ("singles" in given and "tokens" not in given) or ("draw" in given and "pools" not in given):
        raise InterpError(
            f"{getattr(function, '__name__', 'the experiment')} takes {', '.join(given)}: after the model, take "
            "'tokens' (and 'singles'), or 'pools' (and 'draw'), or neither"
        )
    taken = (set(inspect.signature(run).parameters) - {"params", "seed"}) & set(known)
    if taken:
        raise InterpError(f"'{min(taken)}' is a parameter of run itself: call the experiment's own something else")
    for name in params:
        if name not in known:
            raise InterpError(
                f"{getattr(function, '__name__', 'the experiment')} has no parameter '{name}': "
                f"it has {', '.join(known) or 'none'}"
            )
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in params]
    if missing:
        raise InterpError(f"{getattr(function, '__name__', 'the experiment')} needs '{missing[0]}': give a value")


def _bos_id(model: TransformerBridge, bos: bool | int | str) -> int | None:
    if bos is False:
        return None
    if isinstance(bos, int) and bos is not True:
        Pool("bos", (bos,)).check(model.cfg.d_vocab)
        return bos
    found = getattr(model.tokenizer, "bos_token_id", None)
    if found is None and bos is True:
        raise InterpError("this model's tokenizer has no BOS token: give an id, or leave BOS out")
    return found


def _check_context(model: TransformerBridge, tokens: Repeated) -> None:
    size, context = tokens.ids.shape[1], model.cfg.n_ctx
    if size > context:
        most = (context - (tokens.bos is not None)) // tokens.copies
        raise InterpError(
            f"{tokens.copies} copies of a block of {tokens.length} make {size} tokens with BOS, and the "
            f"context of this model is {context}: use a length of {most} or less"
        )


def _check_no_sequences(**given: Any) -> None:
    """Raise `InterpError` where a way to draw sequences is asked for that an experiment has no use for."""
    defaults = inspect.signature(run).parameters
    odd = next((name for name, value in given.items() if value != defaults[name].default), None)
    if odd is not None:
        raise InterpError(f"this experiment draws no repeated sequences: leave {odd} out")


def _room_for_singles(length: int) -> bool:
    return length >= 3


def _ready(model: TransformerBridge, tokens: Repeated) -> Repeated:
    import dataclasses

    import numpy as np

    unique, inverse = np.unique(tokens.ids.numpy(), return_inverse=True)
    texts = np.array(token_texts(model, unique.tolist()), dtype=object)
    ids = tokens.ids.to(model.cfg.device)  # so that experiments run on any device without saying so
    return dataclasses.replace(tokens, ids=ids, text=texts[inverse.reshape(tokens.ids.shape)])


def _ranges(ids: Iterable[int], most: int = 8000) -> str:
    """Ids as `0:5,7,9:12`; cut short (and said so) where that is long, since files keep attributes small."""
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][1]:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1])
    text = ",".join(str(a) if b == a + 1 else f"{a}:{b}" for a, b in runs)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return text if len(text) <= most else f"{text[:200]}... sha256 {digest}"


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_file()
    except OSError:  # too long for a name
        return False


def _file_hash(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:  # whoever needs it will say so
        return "unreadable"


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, str | int | float | bool | list | None) else repr(v) for k, v in params.items()}
