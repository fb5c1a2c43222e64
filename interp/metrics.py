"""How well are the read tokens of a sequence predicted? One number per sequence, by the chosen metric.

| metric | what it is | unit |
|---|---|---|
| `log_prob` | of all answers together | nats |
| `logit_difference` | mean logit of the answers minus that of the rivals | nats |
| `probability` | of all answers together | 0..1 |
| `rank` | number of tokens ranked above the best answer, ties count half | tokens |
| `kl` | divergence of the prediction from the clean run's | nats |

Each is the mean over the read tokens of a sequence. Lower is better for `rank` and `kl`; what a change *loses* is
always positive where it does harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.hooks import Hook
from interp.results import Keep, at_once
from interp.sweep import divergence, sweep
from interp.tokens import Sequences

Metric = Literal["log_prob", "logit_difference", "probability", "rank", "kl"]
UNITS = {"log_prob": "nats", "logit_difference": "nats", "probability": "probability", "rank": "tokens", "kl": "nats"}
_LESS_IS_BETTER = ("rank", "kl")


def check_metric(metric: str, tokens: Sequences, *, without: Sequence[str] = (), why: str = "") -> None:
    """Raise `InterpError` where a metric is unknown, unsupported here, or needs what the sequences lack.

    Args:
        metric: its name.
        tokens: the sequences.
        without: metrics that the experiment does not support.
        why: the reason.
    """
    if metric not in get_args(Metric):
        raise InterpError(f"unknown metric '{metric}': use {', '.join(get_args(Metric))}")
    if metric in without:
        others = ", ".join(name for name in get_args(Metric) if name not in without)
        raise InterpError(f"metric '{metric}' {why}: use {others}")
    if metric != "kl" and tokens.answers is None:
        raise InterpError(f"metric '{metric}' needs answers, and '{tokens.pool}' has none: give them, or use kl")
    if metric == "logit_difference" and tokens.rivals is None:
        raise InterpError(
            f"metric 'logit_difference' needs rivals, and not every line of '{tokens.pool}' has some: give them, or "
            "use log_prob"
        )


def worse(metric: str, clean: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """How much worse a metric is than in the clean run; positive where the change does harm."""
    return changed - clean if metric in _LESS_IS_BETTER else clean - changed


def scores(
    model: TransformerBridge,
    tokens: Sequences,
    interventions: Sequence[Sequence[Hook]],
    metric: Metric = "log_prob",
    *,
    clean: Sequences | None = None,
    what: str = "interventions",
    keep: Keep = at_once,
) -> np.ndarray:
    """A metric of each sequence under each of many interventions.

    Args:
        model: any loaded model.
        tokens: the sequences that are run, with the tokens read and the right answers.
        interventions: lists of hooks; an empty list is the clean run.
        metric: the metric.
        clean: the sequences whose clean run is the reference of `kl`; by default those that are run.
        what: label of the progress bar and of the parts that are kept.
        keep: stores finished chunks.

    Returns:
        [intervention batch]; NaN for a sequence without read tokens.

    Raises:
        InterpError: the metric needs what the sequences lack.
    """
    check_metric(metric, tokens)
    if metric == "kl":
        if clean is not None and clean is not tokens:
            return _divergence_from(model, tokens, clean, interventions)
        found = sweep(
            model, tokens, interventions, tokens.read, targets=tokens.ids[None], statistic="kl", what=what, keep=keep
        )
        return _by_sequence(found[:, 0], tokens.read)
    places, count = _targets(tokens, rivals=metric == "logit_difference")
    statistic: Literal["log_prob", "rank"] = "rank" if metric == "rank" else "log_prob"
    found = sweep(
        model,
        tokens,
        interventions,
        tokens.read,
        targets=places.clamp_min(0),
        statistic=statistic,
        what=what,
        keep=keep,
    )
    return _by_sequence(_combined(found, places >= 0, count, metric), tokens.read)


def of_logits(logits: Tensor, tokens: Sequences, metric: Metric, clean: Tensor | None = None) -> Tensor:
    """A metric of each sequence, from the logits of a pass over them.

    Args:
        logits: [batch position vocabulary].
        tokens: the sequences.
        metric: the metric.
        clean: the logits of the clean run, for `kl`.

    Returns:
        [batch]; differentiable, except `rank`.
    """
    sequence, position = tokens.read.to(logits.device).nonzero(as_tuple=True)
    at = (sequence, position - 1)
    return of_rows(logits[at], tokens, metric, None if clean is None else clean[at])


def of_rows(rows: Tensor, tokens: Sequences, metric: Metric, clean: Tensor | None = None) -> Tensor:
    """A metric of each sequence, from the logits at the read tokens only.

    Args:
        rows: [place vocabulary], in the order of `tokens.read.nonzero()`.
        tokens: the sequences.
        metric: the metric.
        clean: the same for the clean run, for `kl`.

    Returns:
        [batch].
    """
    check_metric(metric, tokens)
    rows, read = rows.float(), tokens.read.to(rows.device)
    sequence, position = read.nonzero(as_tuple=True)
    if metric == "kl":
        if clean is None:
            raise InterpError("metric 'kl' is the distance from a clean run: give its logits")
        values = divergence(clean, rows)
    else:
        places, count = _targets(tokens, rivals=metric == "logit_difference")
        places = places.to(rows.device)[:, sequence, position]
        right = rows.gather(1, places.clamp_min(0).T).T  # [target row]
        if metric == "rank":
            found = torch.stack([(rows > r[:, None]).sum(-1) + ((rows == r[:, None]).sum(-1) - 1) / 2 for r in right])
        else:
            found = right - rows.logsumexp(-1)
        values = _combined(found, places >= 0, count, metric)
    total = torch.zeros(len(read), device=rows.device, dtype=values.dtype).index_add(0, sequence, values)
    return total / read.sum(1)


def _targets(tokens: Sequences, *, rivals: bool) -> tuple[Tensor, int]:
    """[target batch position] the answers, followed by the rivals, -1 for none; and the number of answers."""
    assert tokens.answers is not None
    parts = [tokens.answers.movedim(-1, 0)]
    if rivals and tokens.rivals is not None:
        parts.append(tokens.rivals.movedim(-1, 0))
    return torch.cat(parts), len(parts[0])


def _combined(found: Tensor, known: Tensor, answers: int, metric: str) -> Tensor:
    """Combine the values of several targets, [... target (rest)], into one; the target axis is `known`'s first."""
    axis = found.ndim - known.ndim
    known = known.expand(found.shape)
    right, others = found.narrow(axis, 0, answers), found.narrow(axis, answers, found.shape[axis] - answers)
    own, other = known.narrow(axis, 0, answers), known.narrow(axis, answers, found.shape[axis] - answers)
    if metric == "logit_difference":  # within one softmax, differences of log-probs are those of logits
        return _mean(right, own, axis) - _mean(others, other, axis)
    if metric == "rank":
        return right.masked_fill(~own, torch.inf).amin(axis)
    single = answers == 1
    together = right.squeeze(axis) if single else right.masked_fill(~own, -torch.inf).logsumexp(axis)
    return together.exp() if metric == "probability" else together


def _mean(values: Tensor, known: Tensor, axis: int) -> Tensor:
    return values.masked_fill(~known, 0.0).sum(axis) / known.sum(axis)


def _by_sequence(values: Tensor, read: Tensor) -> np.ndarray:
    """[intervention batch], the mean over the read tokens."""
    return values.masked_fill(~read.to(values.device), torch.nan).nanmean(-1).cpu().numpy()


def _divergence_from(
    model: TransformerBridge, tokens: Sequences, clean: Sequences, interventions: Sequence[Sequence[Hook]]
) -> np.ndarray:
    """`kl` from the clean run of other sequences, with plain passes."""
    with torch.no_grad():
        right = model(clean.ids, return_type="logits", prepend_bos=False)
        rows = [
            of_logits(model.run_with_hooks(tokens.ids, fwd_hooks=list(hooks), prepend_bos=False), tokens, "kl", right)
            for hooks in interventions
        ]
    return torch.stack(rows).cpu().numpy()
