"""How does a request become a stamped result?

`run` loads the model, resolves the pools, draws the sequences, calls the experiment, checks its dimensions and stamps
the result with its provenance. With a folder, finished work is kept there: the same call resumes after an interruption,
and returns the stored result when there is one.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from interp import budgets, cache, first_token, identities, results
from interp.arguments import takes_what_it_says
from interp.catalog import Experiment, find, parameters, parameters_of_blocks, with_values_of_today
from interp.errors import InterpError, first_line
from interp.models import bos_id, load, location, origin, token_texts
from interp.offloading import is_spread
from interp.organisms import BUNDLED, HAND_WIRED
from interp.pool_names import default_pools, ordinary_pool, pools as resolve, ranges, spec_of
from interp.prompts import check_needs, digest, needs_of, prompt_set, prompt_sets, spec_texts
from interp.request import ASKED_BY_NAME, HOW_LOADED, SHARED_NAMES, ModelRequest, Request, plain
from interp.tokens import (
    Pool,
    Prompts,
    Repeated,
    article,
    check_context,
    check_seed,
    drawn_from,
    fitting_length,
    paired,
    repeated,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from interp.first_token import FirstToken

_LEAST_FOR_SINGLES = 3  # tokens in a block: a single token is neither the first nor the last


def to_stderr(line: str) -> None:
    """Print a line to stderr, out of the way of output."""
    print(line, file=sys.stderr)


@takes_what_it_says
def run(
    experiment: Experiment | str,
    model: TransformerBridge | str = "organism",
    pools: Any = None,
    *,
    prompts: Any = None,
    answer_tokens: Literal["one", "each"] = "one",
    out: str | Path | None = None,
    fresh: bool = False,
    log: cache.Log = to_stderr,
    seed: int | None = None,
    batch: int | None = None,
    length: int | None = None,
    copies: int | None = None,
    mixed: bool = False,
    among: str | Pool | None = None,
    replacement: bool | None = None,
    bos: bool | int | str = "auto",
    protocol: Literal["default", "article"] = "default",
    budget: budgets.Budget = "auto",
    **params: Any,
) -> xr.Dataset:
    """Run an experiment over pools or prompts, and stamp the result with its provenance.

    Args:
        experiment: a function, a name (`interp experiments` lists them), or `file.py:function`.
        model: a loaded model, or the name of one.
        pools: what sequences are drawn from, see `interp.pools`; None: the model's default pools.
        prompts: sequences in place of pools, see `interp.prompts.sets`: a file, "text:FILE", "blocks:32", "ioi:32",
            dictionaries such as {"text": "...", "answer": "..."}, or a list of these.
        answer_tokens: "one": an answer is one token; "each": it may be several, read one by one.
        out: a folder for `result.nc`; the same call then resumes an interrupted run, or returns the stored result.
        fresh: run again what is stored in `out`.
        log: called with one line for each message.
        seed: decides every random draw (default: 0).
        batch: sequences per pool (default: 64, or by the budget); of prompts, windows of a text.
        length: tokens in a block (default: 25, or as many as the smallest pool has); of prompts, in a window (64).
        copies: how often the block stands in a sequence (default: 2).
        mixed: put one token of the pool among tokens of `among`.
        among: the pool that counts as ordinary (default: the model's ordinary tokens).
        replacement: whether blocks are drawn with replacement (default: only pools smaller than a requested length).
        bos: what stands first: "auto", "best" (behind which ordinary tokens are copied best), "none", "required", an id
            or the text of a token.
        protocol: "article" draws as the article's code does: seed 42, one sequence, a block of 25, by randint.
        budget: how much work: "quick", "standard", "thorough" or "auto" (`interp.budgets`).
        **params: the experiment's own parameters.

    Returns:
        What the experiment returns, with a dimension `pool` where it is run on each, and `provenance` as an attribute.

    Raises:
        InterpError: something that was requested is not available, has no effect, or contradicts something else.

    Example:
        >>> result = interp.run("repeated_tokens", "wired", "1:65", batch=4)
        >>> result["log_prob"].dims
        ('pool', 'batch', 'position')
    """
    options: dict[str, Any] = {
        "seed": seed,
        "batch": batch,
        "length": length,
        "copies": copies,
        "mixed": mixed,
        "bos": bos,
        "among": among,
        "replacement": replacement,
        "protocol": protocol,
        "budget": budget,
        "answer_tokens": answer_tokens,
    }
    function = find(experiment) if isinstance(experiment, str) else experiment
    check_signature(function, params)
    bridge = load(model) if isinstance(model, str) else model
    name = experiment if isinstance(experiment, str) else _name_in_file(function)
    return _answered(_asked(function, name, bridge, pools, prompts, params, options, log), out, fresh, log)


def _asked(
    function: Experiment,
    name: str,
    bridge: TransformerBridge,
    pools: Any,
    prompts: Any,
    params: dict[str, Any],
    options: dict[str, Any],
    log: cache.Log,
) -> Asked:
    """A run whose parts are all known; the arguments are those of `run`, `options` the ones that all runs have."""
    wants = set(inspect.signature(function).parameters)
    among, protocol, budget = options["among"], options["protocol"], options["budget"]
    params = with_values_of_today(name, params)
    options = options | {"among": spec_of(among) if isinstance(among, Pool) else among}
    given = None if prompts is None else spec_texts(prompts)
    request = Request.of(name, prompts=given, parameters=_as_json(params), **_as_loaded(bridge), **options)
    said = "" if request.experiment == "check" else identities.require_published(bridge)
    if said:
        log(said)
    level = budgets.budget_in_force(budget, bridge)
    by_budget = budgets.defaults(function, level)
    if request.prompts is not None:
        by_budget = {n: v for n, v in by_budget.items() if n not in parameters_of_blocks(function)}
    drawing = request.in_force(by_budget)
    check_seed(drawing["seed"])
    _check_use(request, wants, pools, parameters_of_blocks(function))
    if request.prompts is not None:
        front = _front(bridge, request, log)
        sets = _given(function, request, bridge, front, by_budget, drawing["seed"])
        source = Source(bridge, drawing, front, protocol, None)
        return Asked(function, request, params, sets, source, wants, said, level, by_budget)
    chosen = []
    if {"tokens", "pools"} & wants:
        chosen = resolve(default_pools(bridge) if pools is None else pools, bridge, seed=drawing["seed"])
    request = request.model_copy(update={"pools": _pool_texts(pools, chosen)})
    ordinary = _ordinary(bridge, among, drawing, wants, protocol)
    front = _front(bridge, request, log) if {"tokens", "draw"} & wants else first_token.FirstToken(None)
    source = Source(bridge, drawing, front, protocol, ordinary, tuple(chosen))
    if {"tokens", "draw"} & wants and request.drawing.length is None and protocol == "default":
        source = source.fitting(log)
    return Asked(function, request, params, chosen, source, wants, said, level, by_budget)


def _answered(asked: Asked, out: str | Path | None, fresh: bool, log: cache.Log) -> xr.Dataset:
    """The result of a fully specified run: the stored one, if there is one."""
    if out is None:
        return asked.result(cache.Parts(None, cache.Key(None, "no folder was given to keep it in")))
    request = asked.request
    with cache.locked(out, log) as folder:
        key = asked.key(log)
        whole = asked.whole(key)
        found = None if fresh else cache.get(folder, whole)
        if found is not None:
            log(f"{folder}: taken from an earlier run of the same request (--fresh runs it again)")
            return found
        if (folder / "result.nc").exists() and not fresh and whole.digest is not None:
            log(f"{folder}: the stored result belongs to another request, code or model: running again")
        parts = cache.Parts(folder, key, request.to_json())
        if fresh:
            parts.clear()
        dataset = asked.result(parts)
        cache.put(folder, whole, dataset, request.to_json())
        parts.clear()
    return dataset


def run_request(
    request: Request,
    model: TransformerBridge | None = None,
    *,
    out: str | Path | None = None,
    fresh: bool = False,
    log: cache.Log = to_stderr,
    function: Experiment | None = None,
) -> xr.Dataset:
    """Run what a request asks for.

    Args:
        request: the run, as `interp.Request` describes it.
        model: the model, where it is loaded already.
        out: a folder for the result, as for `interp.run`.
        fresh: run again what is stored in `out`.
        log: called with one line for each message.
        function: the experiment, where the request's name does not lead to it.

    Returns:
        What `interp.run` returns.

    Raises:
        InterpError: as `interp.run` does.

    Example:
        >>> request = interp.Request.of("check", model="wired")
        >>> bool(interp.run_request(request)["holds"].all())
        True
    """
    options: dict[str, Any] = {"seed": request.seed, "budget": request.budget}
    options |= {**request.drawing.model_dump(), **request.parameters}
    return run(
        function or request.experiment,
        load_as_asked(request.model.name, **request.model.model_dump(exclude={"name"})) if model is None else model,
        request.pools,
        prompts=request.prompts,
        answer_tokens=request.answer_tokens,
        out=out,
        fresh=fresh,
        log=log,
        **options,
    )


def asked_of(request: Request, model: TransformerBridge, log: cache.Log = to_stderr) -> Asked:
    """What `run_request` would run, before it is: its key, its record and the call.

    Args:
        request: what is asked.
        model: loaded as the request has it.
        log: is told what is noteworthy, in a line each.

    Returns:
        The run; `Asked.result(parts)` makes the result that `run_request` returns.

    Raises:
        InterpError: as `run`.
    """
    function = find(request.experiment)
    check_signature(function, request.parameters)
    options = {"seed": request.seed, "budget": request.budget, "answer_tokens": request.answer_tokens}
    options |= request.drawing.model_dump()
    parameters = dict(request.parameters)
    return _asked(function, request.experiment, model, request.pools, request.prompts, parameters, options, log)


def load_as_asked(name: str, **loading: Any) -> TransformerBridge:
    """Load a model by name, with its options checked as in a request.

    Args:
        name: as in `interp.load`.
        **loading: the arguments of `interp.load`; a device map may be JSON.

    Raises:
        InterpError: an option is unknown or has the wrong type, or the model is not available.
    """
    odd = next((option for option in loading if option not in ModelRequest.model_fields), None)
    if odd is not None:
        raise InterpError(f"unknown option '{odd}': use {', '.join(option.name for option in HOW_LOADED)}")
    asked = Request.of("check", model=name, **loading).model
    return load(asked.name, **asked.model_dump(exclude={"name"}))


def given_sequences(request: Request, model: TransformerBridge, log: cache.Log = to_stderr) -> list[Prompts]:
    """The sequences that a request gives instead of pools, as its run uses them.

    Raises:
        InterpError: it gives none, or the model cannot take them.
    """
    if not request.prompts:
        raise InterpError("no prompts are given: name a file, text:FILE, blocks:32, ioi:32 or greater_than:32")
    drawing = request.in_force()
    return _given(None, request, model, _front(model, request, log), {}, drawing["seed"])


# --- sequences --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Draws the sequences of a run; experiments receive it as `draw`.

    Attributes:
        model: any loaded model.
        drawing: the values in force, of a `Drawing`, and the seed.
        front: the token at the first position.
        protocol: of the drawing.
        ordinary: the pool that surrounds single tokens, if there is one.
        pools: those of the run.
        smallest: the pool for which blocks were shortened, if any.
        length_of_singles: length of the blocks that contain single tokens, beside whole blocks.
    """

    model: TransformerBridge
    drawing: Mapping[str, Any]
    front: FirstToken
    protocol: str
    ordinary: Pool | None
    pools: tuple[Pool, ...] = ()
    smallest: Pool | None = None
    length_of_singles: int | None = None

    def fitting(self, log: cache.Log) -> Source:
        """The same with blocks that every pool of the run can fill without a repeat, unless a length was given."""
        if self.drawing["replacement"]:
            return self
        sources = [drawn_from(pool, self.ordinary if self.drawing["mixed"] else None) for pool in self.pools]
        length = min(fitting_length(*sources), self.drawing["length"])  # a budget may set shorter ones
        among = [drawn_from(pool, self.ordinary) for pool in self.pools] if self.ordinary is not None else []
        singles = min(fitting_length(*among), self.drawing["length"])
        smallest = min(sources, key=len) if length < self.drawing["length"] else None
        if smallest is not None:
            log(f"blocks of {length} tokens: pool '{smallest.name}' has only {len(smallest)} (set --length for others)")
        return dataclasses.replace(
            self, drawing={**self.drawing, "length": length}, smallest=smallest, length_of_singles=singles
        )

    def __call__(self, pool: Pool, *, stream: int = 0, paired_with: Repeated | None = None, **old: Any) -> Repeated:
        """Sequences of a pool; of another `stream`, independent ones; `paired_with` others, matched one to one."""
        if old:  # names from version 0.1
            warnings.warn("draw(others=, like=) are now stream=, paired_with=", DeprecationWarning, stacklevel=2)
            stream, paired_with = old.pop("others", stream), old.pop("like", paired_with)
        if old:
            raise TypeError(f"draw has no argument '{min(old)}': it has stream and paired_with")
        if paired_with is not None:
            if paired_with.replacement:
                raise InterpError(self._needs_distinct(paired_with))
            return self._with_texts(paired(paired_with, pool, seed=self.drawing["seed"] + stream))
        return self.sequences(pool, self.drawing["mixed"], stream)

    def sequences(self, pool: Pool, single: bool, stream: int = 0) -> Repeated:
        """Whole blocks of a pool, or single tokens of it among ordinary ones."""
        seed = self.drawing["seed"] + stream
        if self.protocol == "article":
            tokens = article(pool, bos=self.front.id, seed=seed)
        else:
            sizes = {name: self.drawing[name] for name in ("batch", "length", "copies", "replacement")}
            if single and not self.drawing["mixed"] and self.length_of_singles is not None:
                sizes["length"] = self.length_of_singles
            among = self.ordinary if single else None
            if sizes["replacement"] is None and pool not in self.pools:
                self._check_size(drawn_from(pool, among), sizes["length"])
            tokens = repeated(pool, **sizes, bos=self.front.id, among=among, seed=seed)
        check_context(tokens, self.model.cfg.n_ctx)
        return self._with_texts(tokens)

    def singles(self, pool: Pool) -> Repeated | None:
        """Single tokens of a pool among ordinary ones; None if there are no ordinary ones, or no room."""
        length = self.length_of_singles or self.drawing["length"]
        room = self.ordinary is not None and length >= _LEAST_FOR_SINGLES
        return self.sequences(pool, True) if room else None

    def with_replacement(self, pool: Pool) -> bool:
        """Are blocks of this pool drawn with replacement?"""
        asked = self.drawing["replacement"]
        few = len(drawn_from(pool, self.ordinary if self.drawing["mixed"] else None)) < self.drawing["length"]
        return few if asked is None else bool(asked)

    def _needs_distinct(self, tokens: Repeated) -> str:
        """Why sequences that repeat a token within a block cannot be paired, and what to do instead."""
        among = self.ordinary if self.drawing["mixed"] else None
        most = min((len(drawn_from(pool, among)) for pool in self.pools if pool.name == tokens.pool), default=0)
        remedy = f"use a length of {most} or less, drawn without replacement" if most > 1 else "use mixed=True"
        return (
            f"pool '{tokens.pool}' is drawn with replacement in blocks of {tokens.length}, and pairs of sequences need "
            f"blocks of distinct tokens: {remedy}, or a larger pool"
        )

    @staticmethod
    def _check_size(source: Pool, length: int) -> None:
        """Raise `InterpError` for a pool that is not one of the run's and is too small for its blocks."""
        if len(source) < length:
            raise InterpError(
                f"pool '{source.name}', which the others are compared with, has {len(source)} tokens, too few for a "
                f"block of {length}: use a length of {len(source)} or less, or a larger pool"
            )

    def _with_texts(self, tokens: Repeated) -> Repeated:
        unique, inverse = np.unique(tokens.ids.cpu().numpy(), return_inverse=True)
        texts = np.array(token_texts(self.model, unique.tolist()), dtype=object)
        ids = tokens.ids.to(self.model.cfg.device)  # so that experiments run on any device without handling it
        return dataclasses.replace(tokens, ids=ids, text=texts[inverse.reshape(tokens.ids.shape)])


def _front(model: TransformerBridge, request: Request, log: cache.Log) -> FirstToken:
    """The token at the first position; the article's protocol uses the tokenizer's BOS, however well tokens are copied
    after it.
    """
    if request.drawing.protocol == "article":
        return first_token.FirstToken(bos_id(model, request.drawing.bos))
    front = first_token.first_token(model, request.drawing.bos)
    if front.said:
        log(front.said)
    return front


def _given(
    function: Experiment | None,
    request: Request,
    model: TransformerBridge,
    front: FirstToken,
    by_budget: Mapping[str, Any],
    seed: int,
) -> list[Prompts]:
    """The sequences given instead of drawn ones, which the experiment (if any) can take."""
    needs, name = frozenset() if function is None else needs_of(function), request.experiment.rpartition(":")[2]
    if needs is None:
        check_needs(name, needs, ())  # before reading anything
    length, batch = request.drawing.length, request.drawing.batch
    if batch is None and any(prompt_set(spec).kind == "text" for spec in request.prompts or ()):
        batch = by_budget.get("batch")
    sets = prompt_sets(
        request.prompts or (),
        model,
        first=front.id,
        answer_tokens=request.answer_tokens,
        length=length,
        batch=batch,
        seed=seed,
    )
    check_needs(name, needs, sets)
    return sets


def _ordinary(
    model: TransformerBridge, among: str | Pool | None, drawing: Mapping[str, Any], wants: set[str], protocol: str
) -> Pool | None:
    """The pool that surrounds single tokens; None if none are requested, or ordinary tokens are not known."""
    if not drawing["mixed"] and not ("singles" in wants and protocol == "default"):
        return None
    try:
        return ordinary_pool(model) if among is None else resolve(among, model, seed=drawing["seed"])[0]
    except InterpError as error:
        if among is not None:
            raise
        if drawing["mixed"]:
            raise InterpError(f"{error}; or give among, e.g. 0:400") from error
        return None  # a model without a tokenizer gets whole blocks only


# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """A fully specified run: it has a key and a record, and computes the result."""

    function: Experiment
    request: Request
    params: dict[str, Any]
    chosen: Sequence[Pool | Prompts]
    source: Source
    wants: set[str]
    said: str = ""
    budget: str = "standard"
    by_budget: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        defaults = {
            n: p.default for n, p in parameters(self.function).items() if p.default is not inspect.Parameter.empty
        }
        of_budget = {name: value for name, value in self.by_budget.items() if name in defaults}
        self.params = defaults | of_budget | self.params
        if "seed" in self.wants and "seed" not in self.request.parameters:
            self.params["seed"] = self.source.drawing["seed"]

    def key(self, log: cache.Log) -> cache.Key:
        """The key of the parts of this run; one without a digest, which `log` is told, where none can be kept."""
        key = cache.cache_key(self.function, self.source.model, self.decides())
        if key.digest is None or not all(map(_is_plain, self.params.values())):
            key = cache.Key(None, key.reason or "a parameter is not a plain value")
            log(f"nothing but the result of '{self.request.experiment}' is kept: {key.reason}")
        return key

    def whole(self, key: cache.Key) -> cache.Key:
        """The key of the result, where `key` is that of the parts."""
        return key.part("whole", self.request.to_json(), self.of_pools(self.chosen))

    @property
    def draws(self) -> bool:
        """Does the experiment take sequences?"""
        return bool({"tokens", "draw"} & self.wants)

    @property
    def given(self) -> list[Prompts]:
        """The sequences given instead of pools."""
        return [one for one in self.chosen if isinstance(one, Prompts)]

    @property
    def drawn_from(self) -> list[Pool]:
        """The pools that sequences are drawn from."""
        return [one for one in self.chosen if isinstance(one, Pool)]

    def of_pools(self, chosen: Sequence[Pool | Prompts]) -> dict[str, Any]:
        """Names and ids: a pool's name may later refer to other ids, and a file may later hold other prompts."""
        return {pool.name: digest(pool) if isinstance(pool, Prompts) else ranges(pool.ids) for pool in chosen}

    def decides(self) -> dict[str, Any]:
        """Everything that determines the numbers of a pool, except the pool itself, the code and the weights."""
        left_out = ("pools", "request", "versions", "source_sha256", "budget")
        record = {name: value for name, value in self.record().items() if name not in left_out}
        if "sequences" in record:  # the choice matters, not the last digits of the trial
            record["sequences"] = {n: value for n, value in record["sequences"].items() if n != "bos_tried"}
        return record

    def record(self) -> dict[str, Any]:
        """The provenance."""
        source, ordinary = self.source, self.source.ordinary
        record: dict[str, Any] = {
            "experiment": self.request.experiment,
            "request": self.request.to_json(),
            "source_sha256": cache.source_sha256(self.function),
            "module": self.function.__module__,
            "parameters": _as_json(self.params),
            "model": origin(source.model),
            "pools": {p.name: {"size": len(p), "ids": ranges(p.ids)} for p in self.chosen if isinstance(p, Pool)},
            "seed": source.drawing["seed"],
            "versions": results.versions(),
        }
        if self.said:
            record["note"] = self.said
        if decided := self.decided_by_budget():
            record["budget"] = {"name": self.budget, "decides": decided}
        if self.given:
            record["prompts"] = {
                prompts.name: _about(prompts, spec)
                for prompts, spec in zip(self.given, self.request.prompts or (), strict=True)
            }
            fewest = min(len(prompts) for prompts in self.given)
            record["sequences"] = {"batch": fewest, "bos": source.front.id, **first_token.facts_of(source.front)}
        elif self.draws:
            record["sequences"] = {**source.drawing, "bos": source.front.id, "protocol": source.protocol}
            record["sequences"] |= first_token.facts_of(source.front)
            record["sequences"].pop("among")
            if source.smallest is not None:
                record["sequences"]["fitted_to"] = source.smallest.name
            if ordinary is not None:
                record["sequences"]["among"] = ordinary.name
                record["among"] = {"size": len(ordinary), "ids": ranges(ordinary.ids)}
            for pool in self.drawn_from if "draw" in self.wants else ():
                record["pools"][pool.name]["replacement"] = source.with_replacement(pool)
        named = {name: value for name, value in self.params.items() if isinstance(value, str) and _is_file(value)}
        for name, value in self.params.items():
            if isinstance(value, list | tuple):  # of files
                named |= {f"{name}: {one}": one for one in value if isinstance(one, str) and _is_file(one)}
        if named:  # a file named by a parameter may change between an interruption and resuming
            record["files_sha256"] = {name: cache.file_sha256(value) for name, value in named.items()}
        return record

    def decided_by_budget(self) -> dict[str, Any]:
        """What the budget set in this run; empty where everything was given explicitly, or equals the defaults."""
        in_force = {**(self.source.drawing if self.draws and not self.given else {}), **self.params}
        asked = {**self.request.parameters, **self.request.drawing.model_dump(exclude_none=True)}
        found = {name: value for name, value in self.by_budget.items() if name in in_force and name not in asked}
        return {name: value for name, value in found.items() if in_force[name] == value}

    def result(self, parts: cache.Parts) -> xr.Dataset:
        """Call the experiment as often as its signature requires, and stamp its result."""
        try:
            return self._made(parts)
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(parts.kept()) from error

    def _made(self, parts: cache.Parts) -> xr.Dataset:
        record = self.record()
        if "tokens" not in self.wants:
            inputs: dict[str, Any] = {"pools": self.chosen} if "pools" in self.wants else {}
            if "draw" in self.wants:
                inputs["draw"] = self.source
            key = parts.key.part(self.of_pools(self.chosen))
            return results.stamp(self._call(parts.keeper(key), **inputs), record)
        found = []
        for pool in self.chosen:
            if isinstance(pool, Prompts):
                inputs = {"tokens": pool} | ({"singles": None} if "singles" in self.wants else {})
            else:
                drawn = {"tokens": self.source.sequences(pool, self.source.drawing["mixed"])}
                singles = self.source.singles(pool) if "singles" in self.wants else None
                replaced = any(t.replacement for t in (drawn["tokens"], singles) if t is not None)
                record["pools"][pool.name]["replacement"] = replaced
                inputs = {**drawn, **({"singles": singles} if "singles" in self.wants else {})}
            key = parts.key.part(self.of_pools([pool]))
            keep = parts.keeper(key)
            found.append(parts.get_or_compute("the whole pool", partial(self._call, keep, **inputs), key))
        names = [pool.name for pool in self.chosen]
        return results.stamp(results.joined(found, names, outer=bool(self.given)), record)

    def _call(self, keep: Callable[..., xr.Dataset], **inputs: Any) -> xr.Dataset:
        import torch

        if "keep" in self.wants:
            inputs["keep"] = keep
        try:
            with torch.inference_mode(False), torch.no_grad():
                found = self.function(self.source.model, **inputs, **self.params)
        except InterpError:
            raise
        except Exception as error:
            said = self._of_a_foreign_model(error)
            if said is None:
                raise
            raise InterpError(said) from error
        dataset = found.to_dataset() if isinstance(found, xr.DataArray) else found
        if not isinstance(dataset, xr.Dataset):
            raise InterpError(
                f"{self.request.experiment} returned a {type(found).__name__}: return label(...).to_dataset()"
            )
        results.check_dimensions(dataset)
        return dataset

    def _of_a_foreign_model(self, error: Exception) -> str | None:
        """One line about an exception caused by the model; None if it is a bug of ours or of the user's."""
        name, model = self.request.experiment, self.source.model
        if isinstance(error, NotImplementedError | RuntimeError) and is_spread(model.original_model):
            return (
                f"{name} needs weights in one place, and device_map spreads them ({first_line(error)}): "
                "leave device_map out"
            )
        if not self.function.__module__.startswith("interp.experiments.") or location(model) in (
            *BUNDLED,
            *HAND_WIRED,
        ):
            return None
        return (
            f"{name} does not run on this model ({type(error).__name__}: {first_line(error)}): 'interp check "
            f"{origin(model)['name']}' says what holds on it"
        )


# --- checks -----------------------------------------------------------------------------------------------------------


def check_signature(function: Experiment, params: Mapping[str, Any]) -> None:
    """Raise `InterpError` if an experiment needs something that runs do not provide, or gets an unknown parameter."""
    name = getattr(function, "__name__", "the experiment")
    known = parameters(function)
    given = [n for n in inspect.signature(function).parameters if n not in known][1:]
    unknown = [n for n in given if n not in ASKED_BY_NAME]
    if unknown:
        raise InterpError(
            f"{name} asks for '{unknown[0]}': after the model, name the sequences 'tokens' or the pools 'pools', and "
            "put your own parameters after a '*'"
        )
    alone = {"tokens", "pools"} <= set(given)
    if alone or ("singles" in given and "tokens" not in given) or ("draw" in given and "pools" not in given):
        raise InterpError(
            f"{name} takes {', '.join(given)}: after the model, take 'tokens' (and 'singles'), or 'pools' (and "
            "'draw'), or neither"
        )
    taken = SHARED_NAMES & set(known)
    if taken:
        raise InterpError(f"'{min(taken)}' is a parameter of run itself: rename the experiment's own")
    odd = next((n for n in params if n not in known), None)
    if odd is not None:
        raise InterpError(f"{name} has no parameter '{odd}': it has {', '.join(known) or 'none'}")
    missing = [n for n, p in known.items() if p.default is inspect.Parameter.empty and n not in params and n != "seed"]
    if missing:
        raise InterpError(f"{name} needs '{missing[0]}': give a value")


def _check_use(request: Request, wants: set[str], pools: Any, of_blocks: Sequence[str]) -> None:
    """Raise `InterpError` for options that would have no effect."""
    if request.prompts is not None:
        _check_use_of_prompts(request, wants, pools, of_blocks)
        return
    if request.answer_tokens != "one":
        raise InterpError("answer_tokens has no effect without prompts: leave it out, or give prompts")
    if not {"tokens", "draw"} & wants:
        odd = next(iter(request.drawing.model_dump(exclude_defaults=True)), None)
        if odd is not None:
            raise InterpError(f"this experiment draws no repeated sequences: leave {odd} out")
    if not {"tokens", "pools"} & wants and pools:
        raise InterpError("this experiment covers the whole vocabulary: leave pools out")
    if request.drawing.among is not None and not request.drawing.mixed and "singles" not in wants:
        raise InterpError("among has no effect without mixed: leave it out, or add mixed")
    if request.drawing.mixed and "singles" in wants:
        raise InterpError(
            "this experiment measures single tokens among ordinary ones as well as whole blocks: leave mixed out"
        )
    if request.drawing.protocol == "article" and "draw" in wants:
        raise InterpError("the article draws one sequence, and this experiment needs many: leave the protocol out")


def _check_use_of_prompts(request: Request, wants: set[str], pools: Any, of_blocks: Sequence[str]) -> None:
    """The same for given sequences, where none are drawn."""
    if not request.prompts:
        raise InterpError("no prompts are given: name a file, text:FILE, blocks:32, ioi:32 or greater_than:32")
    if pools is not None:
        raise InterpError("prompts replace pools: give only one of them")
    if not {"tokens", "pools"} & wants:
        raise InterpError("this experiment covers the whole vocabulary: leave prompts out")
    drawing = request.drawing.model_dump(exclude_defaults=True)
    odd = next((n for n in drawing if n not in ("bos", "batch", "length")), "")
    odd = odd or next((n for n in request.parameters if n in of_blocks), "")
    if odd:
        raise InterpError(f"{odd} applies to repeated blocks, and prompts are given: leave {odd} out")


def _about(prompts: Prompts, spec: str) -> dict[str, Any]:
    """The record in a result of a set of prompts."""
    asked = prompt_set(spec)
    about: dict[str, Any] = {"kind": asked.kind, "size": len(prompts), "sha256": digest(prompts)}
    about |= {"positions": int(prompts.ids.shape[1]), "named": sorted(prompts.labels)}
    about["has"] = [name for name in ("answers", "rivals", "pair") if getattr(prompts, name) is not None]
    if asked.kind in ("file", "text"):
        about |= {"file": asked.what, "file_sha256": cache.file_sha256(asked.what)}
    return about


def _name_in_file(function: Experiment) -> str:
    """An experiment as named on the command line: one of this package by name, another as file.py:function."""
    name = getattr(function, "__name__", "experiment")
    module = getattr(function, "__module__", "") or ""
    if module.startswith("interp.experiments."):
        return str(name)
    # only a path that was given: a module is named as it is imported
    file = getattr(sys.modules.get(module), "__file__", None) if module.startswith("interp_file_") else None
    return f"{file or module}:{name}"


def _as_loaded(model: TransformerBridge) -> dict[str, Any]:
    """How a model was loaded, as the fields of a request."""
    known = origin(model)
    asked = [name for name in ModelRequest.model_fields if name != "name"]
    fields = {key: known[key] for key in asked if known.get(key) is not None}
    return {"model": known["name"], **fields}


def _pool_texts(pools: Any, chosen: list[Pool]) -> tuple[str, ...] | None:
    """Pools as named on the command line: texts as they are, everything else by ids."""
    if pools is None or isinstance(pools, str):
        return None if pools is None else (pools,)
    given = [pools] if isinstance(pools, Pool) else list(pools)
    if not isinstance(pools, Mapping) and all(isinstance(pool, str | Pool) for pool in given):
        return tuple(pool if isinstance(pool, str) else spec_of(pool) for pool in given)
    return tuple(map(spec_of, chosen))


def _is_plain(value: Any) -> bool:
    """Is it JSON-serialisable, so that the request can be repeated?"""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Path | np.generic)


def _as_json(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as JSON values; what JSON cannot hold by its repr."""
    return {name: plain(value) if _is_plain(value) else repr(value) for name, value in params.items()}


def _is_file(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_file()
    except OSError:  # too long for a name
        return False
