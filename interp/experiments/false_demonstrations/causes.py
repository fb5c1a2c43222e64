"""Which heads attend to the labels of the query's class, and what do they do to the answer?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

from interp.baselines import mean_of_others
from interp.errors import InterpError
from interp.experiments.false_demonstrations.reading import calibrated, log_odds
from interp.hooks import (
    Head,
    Hook,
    Record,
    ablate_heads,
    ablate_mlps,
    heads_of,
    mlp_names,
    path_patch,
    record,
    z_names,
)
from interp.prompts.demonstrations import Demonstrations
from interp.results import Keep
from interp.sweep import sweep

Kind = Literal["zero", "mean"]
SKIPPED = ("attention", "MLPs")
_LEVEL = 0.95


# --- which heads ------------------------------------------------------------------------------------------------------


def class_weights(made: Demonstrations) -> np.ndarray:
    """[batch demonstration], by which attention to labels becomes the score of the query's class.

    1 for the label of a demonstration of the query's class, -1 / (classes - 1) for that of another.

    Source:
        Halawi, Denain and Steinhardt 2023, arXiv 2307.09476: the prefix-matching score on labels.
    """
    same = made.classes[:, :-1] == made.classes[:, -1:]
    return np.where(same, 1.0, -1 / (len(made.label_ids) - 1))


def head_scores(attention: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[layer head batch], attention to labels of the query's class minus the mean over each other class."""
    return np.einsum("lhbd,bd->lhb", attention, weights)


def luckiest(attention: np.ndarray, weights: np.ndarray, *, shuffles: int, seed: int) -> np.ndarray:
    """[shuffle], the largest mean score of all heads when the classes of the demonstrations are permuted.

    Args:
        attention: [layer head batch demonstration].
        weights: [batch demonstration], as `class_weights` gives them.
        shuffles: how many times.
        seed: decides the permutations.
    """
    rng = np.random.default_rng(seed)
    flat = np.nan_to_num(attention.reshape(-1, weights.size))
    found = np.empty(shuffles)
    for i in range(shuffles):
        dealt = rng.permuted(weights, axis=1)
        found[i] = (flat @ dealt.ravel()).max() / len(weights)
    return found


def called(scores: np.ndarray, null: np.ndarray, most: int) -> tuple[list[Head], float]:
    """The heads whose mean score lies above what the luckiest head has in 95% of shuffles, the largest first.

    Args:
        scores: [layer head], means over the prompts.
        null: [shuffle], as `luckiest` gives it.
        most: the maximum number of heads.

    Returns:
        The heads, and the threshold.
    """
    threshold = float(np.quantile(null, _LEVEL))
    above = [(int(la), int(h)) for la, h in np.argwhere(np.nan_to_num(scores, nan=-np.inf) > threshold)]
    return sorted(above, key=lambda at: -scores[at])[:most], threshold


def controls(model: TransformerBridge, heads: Sequence[Head], *, draws: int, seed: int) -> tuple[list[list[Head]], str]:
    """Size-matched other heads of the same layers, drawn independently each time.

    Where a layer has too few, heads of later layers stand in for them, and only then of earlier ones, which may be what
    the classified heads read.

    Args:
        model: any loaded model.
        heads: those that are classified.
        draws: how many sets.
        seed: decides the draws.

    Returns:
        The sets, which are empty where the model has too few other heads, and a line about any shortcoming.
    """
    others = [head for head in heads_of(model) if head not in heads]
    if len(others) < len(heads):
        said = f"no control: {len(heads)} heads are classified, and only {len(others)} are not"
        return [[] for _ in range(draws)], said
    rng, sets, elsewhere = np.random.default_rng(seed), [], 0
    for _ in range(draws):
        order = [others[i] for i in rng.permutation(len(others))]
        drawn: list[Head] = []
        for layer, _ in sorted(heads):
            # of its own layer, else of the nearest later one, else of the nearest earlier one
            free = [one for one in order if one not in drawn]
            drawn.append(min(free, key=lambda one: (one[0] < layer, abs(one[0] - layer))))
        elsewhere = len(heads) - sum(
            min(sum(at[0] == layer for at in drawn), sum(at[0] == layer for at in heads))
            for layer in {at[0] for at in heads}
        )
        sets.append(sorted(drawn))
    said = f"{elsewhere} of {len(heads)} control heads are in other layers, as these have no more"
    return sets, said if elsewhere else ""


# --- what they do -----------------------------------------------------------------------------------------------------


def replacement(model: TransformerBridge, true: Demonstrations, kind: Kind) -> Record | None:
    """What replaces heads' outputs: None for zero, or their mean over the other true demonstrations.

    After false demonstrations, too: their own mean would still tell that these are false.
    """
    if kind not in get_args(Kind):
        raise InterpError(f"unknown ablation '{kind}': use zero or mean")
    return None if kind == "zero" else mean_of_others(record(model, true.tokens, z_names(model)), true.tokens)[0]


def answers_without(
    model: TransformerBridge,
    made: Demonstrations,
    sets: Iterable[Sequence[Head]],
    from_layer: int,
    *,
    means: Record | None,
    keep: Keep,
) -> np.ndarray:
    """Log-odds of each label after the last item, without sets of heads, and with late layers skipped.

    Args:
        model: any loaded model.
        made: the prompts.
        sets: heads that are ablated together, at all positions; none of them is the clean run.
        from_layer: the first layer whose attention, and whose MLPs, write nothing in the last two.
        means: what replaces heads' outputs, prompt by prompt; None: zero.
        keep: stores finished parts.

    Returns:
        [intervention batch label], nats: of each set, then without the attention, then without the MLPs of late layers.
    """
    way: Literal["zero", "resample"] = "zero" if means is None else "resample"
    plans: list[list[Hook]] = [
        ablate_heads(model, list(heads), kind=way, record=means) if heads else [] for heads in sets
    ]
    late = [head for head in heads_of(model) if head[0] >= from_layer]
    plans.append(ablate_heads(model, late, kind="zero") if late else [])
    having = [layer for layer in range(from_layer, model.cfg.n_layers) if _has_mlp(model, layer)]
    plans.append(ablate_mlps(model, having, kind="zero") if having else [])
    return _answers(model, made, plans, keep, f"ablation: {made.tokens.pool}")


def _has_mlp(model: TransformerBridge, layer: int) -> bool:
    return f"blocks.{layer}.hook_mlp_out" in mlp_names(model)


def answers_by_path(
    model: TransformerBridge, false: Demonstrations, true: Demonstrations, heads: Sequence[Head], *, keep: Keep
) -> np.ndarray:
    """Log-odds of each label after false demonstrations, where the given heads write what they write after true ones.

    All other heads are frozen, so that it reaches the logits by no other head; MLPs are recomputed.

    Returns:
        [intervention batch label], nats: the clean run and the patched one.
    """
    other, base = (record(model, one.tokens, z_names(model)) for one in (true, false))
    hooks = path_patch(model, false.tokens, other, list(heads), base=base)
    before = tuple(f"blocks.{layer}." for layer in range(min(heads)[0]))  # where nothing differs
    plan = [hook for hook in hooks if not hook[0].startswith(before)] if before else hooks
    return _answers(model, false, [[], plan], keep, f"path: {false.tokens.pool}")


def _answers(
    model: TransformerBridge, made: Demonstrations, plans: Sequence[list[Hook]], keep: Keep, what: str
) -> np.ndarray:
    tokens = made.tokens
    labels = torch.from_numpy(made.label_ids).to(tokens.ids.device)
    targets = labels[:, None, None].expand(-1, *tokens.ids.shape)
    found = sweep(model, tokens, plans, tokens.read, targets=targets, what=what, keep=keep)
    own = found.masked_fill(~tokens.read.to(found.device), 0.0).sum(-1)  # one place of each prompt is read
    return log_odds(own.transpose(1, 2).cpu()).numpy()


def right_and_margin(odds: np.ndarray, made: Demonstrations, false: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[... batch] whether the true label is given, calibrated; and its log-odds minus those of the false one, in nats.

    Args:
        odds: [... batch label].
        made: the prompts.
        false: [batch], the label that permuted demonstrations have for the query's class.
    """
    true = made.classes[:, -1]
    row = np.arange(len(true))
    return calibrated(odds, true), odds[..., row, true] - odds[..., row, false]
