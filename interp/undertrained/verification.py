"""Does the model repeat this token when it is asked to? Greedy decoding, for every token, many tokens in a pass.

The published score is the largest probability given to the token over three prompts and three steps; below 0.01, the
token counts as under-trained (Land and Bartolo 2024).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr

from interp import cache, results
from interp.errors import InterpError
from interp.models import needed_tokenizer
from interp.progress import announce
from interp.results import Keep, at_once, each
from interp.undertrained.forward_passes import LARGE, Way, fastest, half_precision
from interp.undertrained.prompts import ARTICLE, HOLE, PUBLISHED, Prompt, placeholders, template
from interp.vocabulary import census

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

THRESHOLD = 0.01
STEPS = 3
CHAT = "_chat"  # suffix of the name of a prompt that is asked in the chat template
_CHUNK = 512  # tokens in a chunk at most
_WORK = 4e12  # multiplications in a chunk on a CPU, at most: a minute on one core
_TRIAL = 8  # tokens that are asked in both precisions
_FEW = 48  # tokens below which that saves nothing
_BAND = 3.0  # factor around the threshold: bfloat16 scores within it are asked again in float32
_HALVED = "computed in bfloat16, and again in float32 for each prompt that gives between 0.0033 and 0.03"
_MOVED = 1.5  # factor by which a score may change in the trial, well inside the band


def verify(
    model: TransformerBridge,
    ids: Sequence[int],
    *,
    prompts: Sequence[Prompt] = (*PUBLISHED, ARTICLE),
    chat: bool = False,
    steps: int = STEPS,
    tokens_per_pass: int | None = None,
    precision: Literal["auto", "float32"] = "auto",
    keep: Keep = at_once,
) -> xr.Dataset:
    """Ask a model to repeat tokens, greedily, with prompts that are built by id.

    Args:
        model: any loaded model with a tokenizer.
        ids: the tested tokens.
        prompts: those to ask with.
        chat: ask each a second time in the chat template of the model's tokenizer, as `NAME_chat`.
        steps: how many tokens the model generates; step 1 is the token right after the prompt, later ones follow the
            model's own output.
        tokens_per_pass: changes speed and memory only (up to rounding).
        precision: "auto" asks models of 50 million parameters or more in bfloat16 where the processor multiplies that,
            and a trial on some of the tokens decides the same; a prompt that gives a token 0.01 within a factor of 3 is
            asked again in float32. "float32": all are asked as the model is loaded.
        keep: `keep(name, make)` stores finished chunks, so that an interrupted run goes on.

    Returns:
        `probability` [token prompt new_token] of each tested token at each step, and the `generated` ids, the same
        shape. A prompt longer than the context (less `steps`) gives NaN and -1, and is named in `attrs["too_long"]`;
        so does one that the tokenizer cannot write, in `attrs["unwritable"]`, if there is any. `attrs["precision"]`
        says that bfloat16 was used, if it was.

    Raises:
        InterpError: there is nothing to ask, the model has no tokenizer or, if it is asked for, no chat template, or no
            prompt fits.
    """
    if not len(ids):
        raise InterpError("no token to ask for: name at least one")
    if steps < 1 or (tokens_per_pass is not None and tokens_per_pass < 1):
        raise InterpError(f"steps {steps}, tokens_per_pass {tokens_per_pass}: use positive integers")
    tokenizer, table = needed_tokenizer(model, "a prompt"), census(model)
    odd = next((i for i in (min(ids), max(ids)) if not 0 <= i < len(table)), None)
    if odd is not None:
        raise InterpError(f"no token {odd}: this model has ids 0 to {len(table) - 1}")
    names = [p.name for p in prompts] + [p.name + CHAT for p in prompts if chat]
    forms = _forms(prompts, tokenizer, placeholders(table), chat)
    outside = max((i for form in forms.values() for i in form), default=0)
    if outside >= len(table):
        raise InterpError(
            f"the prompts hold token {outside}, and this model embeds {len(table)} tokens: its tokenizer is another "
            "model's"
        )
    fitting = {name: form for name, form in forms.items() if len(form) + steps - 1 <= model.cfg.n_ctx}
    if not fitting:
        shortest = min(map(len, forms.values()))
        raise InterpError(
            f"the context of this model is {model.cfg.n_ctx}, and the shortest prompt with {steps} steps takes "
            f"{shortest + steps - 1}: ask for fewer steps or another prompt, or (undertrained) use --verify-tokens none"
        )
    asker = _Asker(model, fitting, names, steps, tokens_per_pass, sorted({ids[0], ids[len(ids) // 2], ids[-1]}))
    halved = precision == "auto" and asker.is_safe_in_half(list(ids))
    chunks = [list(ids[i : i + asker.chunk]) for i in range(0, len(ids), asker.chunk)]
    makes = {}
    for i, part in enumerate(chunks):
        decides = json.dumps([part, forms, steps, asker.size] + ["bfloat16"] * halved)
        name = f"verification {i} {hashlib.sha256(decides.encode()).hexdigest()[:16]}"
        make = partial(asker.asked, part, len(ids) - i * asker.chunk, halved)
        makes[name] = partial(_remembered, model, name, make)
    with torch.no_grad():
        found = each(keep, makes, "asking every token", even=False)
    whole = xr.concat([part.drop_attrs() for part in found], "token")
    whole = whole.assign_coords(token=list(ids), prompt=names, new_token=range(1, steps + 1))
    left_out = {"too_long": " ".join(name for name in forms if name not in fitting)}
    if unwritable := " ".join(name for name in names if name not in forms):
        left_out["unwritable"] = unwritable
    return whole.assign_attrs(left_out | ({"precision": _HALVED} if halved else {}))


def _remembered(model: TransformerBridge, name: str, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """A chunk of a large model, which other runs need, too: from the user's cache, or computed and put there."""
    here = Path(__file__).parent
    files = (__file__, str(here / "forward_passes.py"), str(here / "prompts.py"))
    large = sum(p.numel() for p in model.original_model.parameters()) >= LARGE
    place = cache.known_of(model, f"asked {name}", *files) if large else None
    if place is None:
        return make()
    try:
        return results.load(place)
    except InterpError:  # there is none, or it is damaged
        made = make()
    with contextlib.suppress(InterpError):
        results.save(results.stamp(made, {"part": name}), place)
    return made


class _Asker:
    """Prompts that are asked in float32 or in bfloat16; networks and prompts' beginnings are made when they are used.

    `chunk` is the number of tokens that are asked and kept together, `size` that of the tokens in a pass.
    """

    def __init__(
        self,
        model: TransformerBridge,
        forms: dict[str, list[int]],
        names: list[str],
        steps: int,
        tokens_per_pass: int | None,
        tried: list[int],
    ):
        self.model, self.forms, self.names, self.steps = model, forms, names, steps
        self.tried = tried  # on these the ways are compared, whichever chunk comes first
        cpu = str(model.cfg.device) == "cpu"
        self.size = tokens_per_pass or (4096 if cpu else 16384)
        self.positions = {name: len(form) - form.index(HOLE) for name, form in forms.items()}
        work = sum(self.positions.values()) * sum(p.numel() for p in model.original_model.parameters())
        self.chunk = max(1, min(_CHUNK, int(_WORK / work))) if cpu else _CHUNK  # the same each time: chunks are kept
        self.passes: dict[bool, dict[str, _Passes]] = {}
        self.announced = False

    def is_safe_in_half(self, ids: list[int]) -> bool:
        """On some of the tokens, does bfloat16 decide as float32 does, without changing any score by much?"""
        if len(ids) < _FEW or (way := half_precision(self.model)) is None:
            return False
        try:
            with torch.no_grad():
                self.passes[True] = self._passes(way)
                some = ids[:: -(-len(ids) // _TRIAL)]
                one, two = (self.probabilities(some, 0, half)[0].max(2) for half in (False, True))
        except Exception:  # whatever a foreign architecture provokes in bfloat16: float32 is always right
            return False
        seen = np.maximum(one, two) > THRESHOLD / _BAND  # among the prompts that were asked
        moved = np.abs(np.log(one[seen].clip(1e-30) / two[seen].clip(1e-30))).max(initial=0.0)
        return bool(((one < THRESHOLD) == (two < THRESHOLD)).all() and moved < np.log(_MOVED))

    def asked(self, part: list[int], left: int, halved: bool) -> xr.Dataset:
        """A chunk; in bfloat16, prompts with a score near the threshold are asked again in float32."""
        probability, generated = self.probabilities(part, left, halved)
        near = np.abs(np.log(probability.max(2).clip(1e-30) / THRESHOLD)) < np.log(_BAND)
        for at, name in enumerate(self.names if halved else ()):
            if near[:, at].any():
                again = [i for i, yes in zip(part, near[:, at], strict=True) if yes]
                probability[near[:, at], at], generated[near[:, at], at] = self.passes[False][name].greedy(
                    again, self.steps
                )
        dims = ("token", "prompt", "new_token")
        return xr.Dataset({"probability": (dims, probability), "generated": (dims, generated)})

    def probabilities(self, part: list[int], left: int, halved: bool) -> tuple[np.ndarray, np.ndarray]:
        """Probability of the tested token and the arg-max, both [token prompt new_token]; `left` tokens are to come."""
        if halved not in self.passes:
            self.passes[halved] = self._passes(fastest(self.model, next(iter(self.forms.values())), self.tried))
        shape = (len(part), len(self.names), self.steps)
        probability, generated = np.full(shape, np.nan, np.float32), np.full(shape, -1, np.int64)
        for at, name in enumerate(self.names):
            if name in self.forms:
                began = time.monotonic()
                probability[:, at], generated[:, at] = self.passes[halved][name].greedy(part, self.steps)
                if left and not self.announced:
                    share = left / len(part) * sum(self.positions.values()) / self.positions[name]
                    announce("asking every token", (time.monotonic() - began) * share)
                    self.announced = True
        return probability, generated

    def _passes(self, way: Way) -> dict[str, _Passes]:
        return {name: _Passes(way, form, self.model.cfg.device, self.size) for name, form in self.forms.items()}


def _forms(prompts: Sequence[Prompt], tokenizer: Any, texts: list[str], chat: bool) -> dict[str, list[int]]:
    """The ids of each prompt that the tokenizer can encode, by name. Raises `InterpError` if it can encode none."""
    forms, problems = {}, []
    for prompt in prompts:
        try:
            forms[prompt.name] = template(prompt, tokenizer, texts)
        except InterpError as error:
            problems.append(str(error))
    if not forms:
        raise InterpError(problems[0] + ", or (undertrained) use --verify-tokens none" * (len(prompts) > 1))
    written = [p for p in prompts if chat and p.name in forms]
    return forms | {p.name + CHAT: template(p, tokenizer, texts, chat=True) for p in written}


def max_probability(probability: xr.DataArray, *, chat: bool = False) -> xr.DataArray:
    """The published score [token]: the largest probability over the three published prompts and all steps.

    With `chat`, of the same prompts in the chat template, which is not a published score.
    """
    names = [p.name + CHAT * chat for p in PUBLISHED]
    published = [name for name in names if name in probability["prompt"].values]
    return probability.sel(prompt=published).max(["prompt", "new_token"])


class _Passes:
    """One prompt, asked for many tokens: the prefix before the first of them is run once."""

    def __init__(self, way: Way, form: list[int], device: Any, size: int):
        self.way, self.device = way, device
        first = form.index(HOLE)
        self.rest = torch.tensor(form[first:], device=device)
        self.rows = max(1, size // len(self.rest))
        self.prefix = way.begins(torch.tensor([form[:first]], device=device)) if first else None

    def greedy(self, ids: list[int], steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Probability of the tested token and the arg-max, both [token new_token]."""
        shape = (len(ids), steps)
        probability, generated = np.empty(shape, np.float32), np.empty(shape, np.int64)
        for start in range(0, len(ids), self.rows):
            part = slice(start, start + self.rows)
            tested = torch.tensor(ids[part], device=self.device)
            cache = None if self.prefix is None else self.way.many(self.prefix, len(tested))
            batch = torch.where(self.rest == HOLE, tested[:, None], self.rest)
            for step in range(steps):
                logits, cache = self.way.forward(batch, cache)
                log_p = logits.float().log_softmax(-1)
                batch = log_p.argmax(-1, keepdim=True)
                probability[part, step] = log_p.gather(-1, tested[:, None])[:, 0].exp().cpu().numpy()
                generated[part, step] = batch[:, 0].cpu().numpy()
        return probability, generated
