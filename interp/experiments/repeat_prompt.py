"""Can the model repeat this token when shown twenty times how? The article's prompt, for the tokens of any pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.models import plain_network
from interp.pools import token_texts
from interp.progress import track
from interp.results import Keep, at_once
from interp.tokens import Pool
from interp.undertrained.prompts import ARTICLE, HOLE, PUBLISHED, Prompt, placeholders, template
from interp.undertrained.verification import verify
from interp.vocabulary import census, own_tokenizer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def repeat_prompt(
    model: TransformerBridge,
    pools: list[Pool],
    keep: Keep = at_once,
    *,
    prompt: str = "article",
    steps: int = 10,
    most: int = 50,
    sampling: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """What is said after `Input: T, Output: T` twenty times and one open `Input: T, Output: ` (S. Xiang 2024), by id.

    `probability` [token new_token] of T at each greedy step and `generated` [token new_token]; `correct` [token]: is the first
    token said T? `said` [token] as text. Tokens of all pools stand in a row, the coordinate `pool` tells which; of
    a pool of more than `most`, as many are drawn with `seed`. `prompt` is article, or one of the three published ones
    (input_output, assistant_explain, repeats).

    `sampling` adds `sampled` [token new_token], drawn as the article draws: top_k 50, top_p 0.95, no_repeat_ngram_size 2. That last
    setting forbids pairs of tokens that the prompt holds already, the right answer's among them, so it fails on
    healthy tokens too: `sampled_correct` is no measure of the token without the control beside it.
    """
    forms = {p.name: p for p in (ARTICLE, *PUBLISHED)}
    if prompt not in forms:
        raise InterpError(f"unknown prompt '{prompt}': use {', '.join(forms)}")
    if steps < 1 or most < 1:
        raise InterpError(f"steps {steps}, most {most}: use whole numbers from 1 up")
    chosen = [(p.name, i) for p in pools for i in _some(p, most, seed)]
    names, ids = [name for name, _ in chosen], [i for _, i in chosen]
    form = forms[prompt]
    # an id may stand in several pools, and is asked once
    unique = sorted(set(ids))
    found = verify(model, unique, prompts=[form], steps=steps, keep=keep).isel(prompt=0, drop=True).sel(token=ids)
    found["correct"] = found["generated"].isel(new_token=0) == found["token"]
    found["said"] = ("token", _said(model, found["generated"].to_numpy()))
    if sampling:
        drawn = _sampled(model, unique, form, steps, seed)
        found["sampled"] = (("token", "new_token"), np.stack([drawn[i] for i in ids]))
        found["sampled_correct"] = found["sampled"].isel(new_token=0) == found["token"]
        found["sampled_said"] = ("token", _said(model, found["sampled"].to_numpy()))
    texts = np.array(token_texts(model, ids), dtype=object)
    return found.assign_coords(pool=("token", np.array(names, dtype=object)), text=("token", texts)).assign_attrs(
        prompt=prompt
    )


def _some(pool: Pool, most: int, seed: int) -> list[int]:
    """The pool's tokens, or as many of them, whatever other pools are asked."""
    if len(pool) <= most:
        return list(pool.ids)
    return sorted(map(int, np.random.default_rng(seed).choice(pool.ids, most, replace=False)))


def _said(model: TransformerBridge, rows: np.ndarray) -> np.ndarray:
    return np.array([model.tokenizer.decode([i for i in row if i >= 0]) for row in rows.tolist()], dtype=object)


def _sampled(model: TransformerBridge, ids: list[int], prompt: Prompt, steps: int, seed: int) -> dict[int, np.ndarray]:
    """One sample for each token, each from a seed of its own, so that it does not depend on its neighbours."""
    import torch

    tokenizer = own_tokenizer(model)
    form = template(prompt, tokenizer, placeholders(census(model)))
    network: Any = plain_network(model)
    drawn = {}
    for i in track(ids, "sampling as the article does", total=len(ids)):
        batch = torch.tensor([[i if x == HOLE else x for x in form]], device=model.cfg.device)
        devices = [batch.device] if batch.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(int(np.random.SeedSequence((seed, i)).generate_state(1)[0]))
            output = network.generate(
                batch, attention_mask=torch.ones_like(batch), max_new_tokens=steps, do_sample=True, top_k=50, top_p=0.95,
                no_repeat_ngram_size=2, pad_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        said = output[0, len(form) :].cpu().numpy()
        drawn[i] = np.pad(said, (0, steps - len(said)), constant_values=-1)
    return drawn
