"""Can the model repeat this token after being shown how twenty times? The article's prompt, for any pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr

from interp.errors import InterpError
from interp.models import eos_id, needed_tokenizer, plain_network, token_texts
from interp.progress import track
from interp.results import Keep, at_once
from interp.sampling import ARTICLE_SAMPLING
from interp.tokens import Pool
from interp.undertrained.prompts import ARTICLE, HOLE, PUBLISHED, Prompt, placeholders, template
from interp.undertrained.verification import CHAT, verify
from interp.vocabulary import census

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUDGETS = {"quick": {"most": 20}, "thorough": {"most": 500}}


def repeat_prompt(
    model: TransformerBridge,
    pools: list[Pool],
    keep: Keep = at_once,
    *,
    prompt: Literal["article", "input_output", "assistant_explain", "repeats"] = "article",
    steps: int = 10,
    most: int = 50,
    sampling: bool = False,
    chat: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Ask the model to repeat a token after twenty examples, and record what it says at each greedy step.

    The prompt is `Input: T, Output: T` twenty times and one open `Input: T, Output: `, built from ids.

    Args:
        model: any loaded model with a tokenizer.
        pools: the tokens to ask for, one after another; the coordinate `pool` names each one's pool.
        keep: stores finished chunks, so that an interrupted run resumes.
        prompt: "article", or one of the published ones: "input_output", "assistant_explain" or "repeats".
        steps: how many tokens the model generates.
        most: how many tokens of a larger pool are drawn.
        sampling: also sample as the article does (top_k 50, top_p 0.95, no_repeat_ngram_size 2); the last setting
            forbids the right answer's pairs, so that healthy tokens fail as well: compare with a control.
        chat: ask a second time, in the model's chat template.
        seed: decides which tokens of a large pool are asked, and what is sampled.

    Returns:
        `probability` [token new_token] of T at each greedy step, 0 to 1; `generated` [token new_token], ids; `correct`
        [token], whether the first generated token is T; `answer` [token], text. With `sampling` also `sampled`,
        `sampled_correct` and `sampled_answer`; with `chat` also `chat_probability`, `chat_generated`, `chat_correct`
        and `chat_answer`, of the same dimensions.

    Raises:
        InterpError: the prompt is unknown, does not fit the context or cannot be written by the tokenizer, or the model
            has no tokenizer or, for `chat`, no chat template.

    Source:
        S. Xiang 2024, Under-trained and Unused tokens in LLMs; Land and Bartolo 2024, arXiv 2405.05417.

    Example:
        >>> result = interp.run("repeat_prompt", "organism", "unexposed", most=2, steps=1)
        >>> result["correct"].values.tolist()  # tokens that were never trained on
        [False, False]
    """
    forms = {p.name: p for p in (ARTICLE, *PUBLISHED)}
    if prompt not in forms:
        raise InterpError(f"unknown prompt '{prompt}': use {', '.join(forms)}")
    if steps < 1 or most < 1:
        raise InterpError(f"steps {steps}, most {most}: use positive integers")
    tokenizer = needed_tokenizer(model, "a prompt")
    chosen = [(p.name, i) for p in pools for i in _some(p, most, seed)]
    ids = [i for _, i in chosen]
    names = np.array([name for name, _ in chosen], dtype=object)
    unique = sorted(set(ids))  # an id may be in several pools, and is tested once
    answers = verify(
        model, unique, prompts=[forms[prompt]], chat=chat, steps=steps, precision="float32", keep=keep
    ).sel(token=ids)
    found = answers.sel(prompt=prompt, drop=True)
    if chat:
        inside = answers.sel(prompt=prompt + CHAT, drop=True)
        found = found.assign({f"chat_{name}": array for name, array in inside.data_vars.items()})
    texts = np.array(token_texts(model, ids), dtype=object)
    found = found.assign_coords(pool=("token", names), text=("token", texts)).assign_attrs(prompt=prompt)
    if sampling:
        drawn = _sampled(model, unique, forms[prompt], steps, seed)
        found["sampled"] = (("token", "new_token"), np.stack([drawn[i] for i in ids]))
    for rows, prefix in (("generated", ""), ("sampled", "sampled_"), ("chat_generated", "chat_")):
        if rows in found:
            said = [tokenizer.decode([i for i in row if i >= 0]) for row in found[rows].values.tolist()]
            found[f"{prefix}correct"] = found[rows].isel(new_token=0) == found["token"]
            found[f"{prefix}answer"] = ("token", np.array(said, dtype=object))
    return found


def _some(pool: Pool, most: int, seed: int) -> list[int]:
    """The pool's tokens, or a number of them, independent of the other pools."""
    if len(pool) <= most:
        return list(pool.ids)
    return sorted(map(int, np.random.default_rng(seed).choice(pool.ids, most, replace=False)))


def _sampled(model: TransformerBridge, ids: list[int], prompt: Prompt, steps: int, seed: int) -> dict[int, np.ndarray]:
    """One sample for each token, each from a seed of its own, so that it does not depend on its neighbours."""
    tokenizer = needed_tokenizer(model, "a prompt")
    form = template(prompt, tokenizer, placeholders(census(model)))
    network: Any = plain_network(model)
    drawn = {}
    for i in track(ids, "sampling as the article does", total=len(ids)):
        batch = torch.tensor([[i if x == HOLE else x for x in form]], device=model.cfg.device)
        devices = [batch.device] if batch.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(int(np.random.SeedSequence((seed, i)).generate_state(1)[0]))
            output = network.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=steps,
                do_sample=True,
                **ARTICLE_SAMPLING,
                pad_token_id=eos_id(model) or 0,  # one sequence at a time: nothing is padded
            )
        said = output[0, len(form) :].cpu().numpy()
        drawn[i] = np.pad(said, (0, steps - len(said)), constant_values=-1)
    return drawn
