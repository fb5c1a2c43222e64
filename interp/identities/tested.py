"""Do the identities that an analysis rests on hold on this model?

Each is tested on the model at hand, in a short run, when an experiment first needs it, and remembered as long as the
weights are unchanged. An experiment refuses a model for which one fails. `interp check MODEL` tests them all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_lens

from interp import cache, models, results
from interp.arguments import takes_what_it_says
from interp.circuits import check_gains, keys_of, queries_of, rotations, taken_in, value_weights
from interp.edges import edges_error
from interp.errors import InterpError, first_line
from interp.files import replacing, user_cache, writable
from interp.hooks import attention_layers, name_of, pattern_names, probe_ids, record, relative_error, stream_error
from interp.measure import log_probs
from interp.models import LOADED, folded, location, published_network, weights_state
from interp.offloading import is_spread
from interp.residual import Readout, head_writes, write_hooks, writes
from interp.results import label
from interp.scores import scores_error
from interp.sweep import sweep


@dataclass(frozen=True)
class Identity:
    """`question` says what must hold, `otherwise` what to do if it does not; `error` measures how far it is off.

    Errors are relative to the spread of what is compared; up to `tolerance` (`half` in half precision) is rounding.
    """

    question: str
    error: Callable[[TransformerBridge], float]
    otherwise: str
    tolerance: float = 1e-3
    half: float = 0.3

    def allowed(self, model: TransformerBridge) -> float:
        """The tolerance for a model's type of numbers."""
        return self.tolerance if next(model.parameters()).dtype.itemsize >= 4 else self.half


@dataclass(frozen=True)
class Outcome:
    """How far an identity is off on a model; NaN if it could not be tested, for the reason given."""

    error: float
    holds: bool
    reason: str = ""


class NotTestedError(Exception):
    """An identity cannot be tested on a model, for the reason given; this does not count against the model."""


# warnings about models on which plain transformers' implementations of attention disagree
ATTENTION_DIFFERS: WeakKeyDictionary[TransformerBridge, str] = WeakKeyDictionary()
_OUTCOMES: WeakKeyDictionary[TransformerBridge, dict[str, tuple[int, Outcome]]] = WeakKeyDictionary()


LARGE = 300_000_000  # parameters from which on the published network is loaded a second time only on request


@takes_what_it_says
def require_published(model: TransformerBridge) -> str:
    """Raise `InterpError` if a model's predictions differ from the published network's; tested at first use.

    Models of more than `LARGE` parameters are compared only by `interp check`. A success is remembered across processes
    by the checksum of the files and the versions of the libraries.

    Returns:
        A warning to show; "" for none.
    """
    if sum(p.numel() for p in model.original_model.parameters()) > LARGE:
        return ""
    about = models.origin(model)
    known = None
    if weights_state(model) == LOADED.get(model) and ("sha256" in about or "revision" in about):
        versions = {name: results.installed(name) for name in ("torch", "transformers", "transformer-lens")}
        digest = hashlib.sha256(json.dumps([about, versions], sort_keys=True, default=str).encode()).hexdigest()
        known = user_cache() / "checked" / digest
    if known is not None and known.exists() and not cache.has_hooks(model):
        return known.read_text(encoding="utf-8")
    require(model, "log_probs")
    said = ATTENTION_DIFFERS.get(model, "")
    if known is not None and not outcome(model, "log_probs").reason:
        with contextlib.suppress(OSError), replacing(writable(known.parent) / known.name) as temporary:
            temporary.write_text(said, encoding="utf-8")
    return said


@takes_what_it_says
def require(model: TransformerBridge, *names: str) -> None:
    """Raise `InterpError` if an identity does not hold on a model: the reason, and what to use instead."""
    for name in names:
        reason = reason_against(model, name)
        if reason:
            raise InterpError(reason)


@takes_what_it_says
def reason_against(model: TransformerBridge, name: str) -> str:
    """Why an identity does not hold on a model, in one line; "" where it does."""
    found = outcome(model, name)
    return "" if found.holds else found.reason


@takes_what_it_says
def outcome(model: TransformerBridge, name: str) -> Outcome:
    """Test an identity on a model, or return what was found before with the same weights."""
    known, state = _OUTCOMES.setdefault(model, {}), weights_state(model)
    if name not in known or known[name][0] != state:
        known[name] = (state, _tested(model, IDENTITIES[name]))
    return known[name][1]


@takes_what_it_says
def check(model: TransformerBridge) -> xr.Dataset:
    """Test every identity on a model.

    Returns:
        `error` [identity], relative to the spread of what is compared, `holds` [identity], and the coordinates
        `question` and `reason` [identity].
    """
    found = {name: outcome(model, name) for name in IDENTITIES}
    coords = {
        "identity": list(found),
        "question": ("identity", [IDENTITIES[name].question for name in found]),
        "reason": ("identity", [o.reason for o in found.values()]),
    }
    return xr.Dataset(
        {
            "error": label("error", np.array([o.error for o in found.values()]), "identity", coords),
            "holds": label("holds", np.array([o.holds for o in found.values()]), "identity", coords),
        }
    )


def _tested(model: TransformerBridge, identity: Identity) -> Outcome:
    try:
        with torch.no_grad():
            error = identity.error(model)
    except NotTestedError as reason:
        return Outcome(float("nan"), True, f"not tested: {reason}")
    except InterpError as refusal:
        return Outcome(float("nan"), False, str(refusal))
    except Exception as problem:  # whatever a foreign architecture provokes
        if is_spread(model.original_model):
            return Outcome(
                float("nan"),
                False,
                f"device_map spreads the weights, and that {identity.question} "
                "is tested on weights in one place: load the model on one device",
            )
        text = (
            f"this model fails the test '{identity.question}' ({type(problem).__name__}: {first_line(problem)[:200]})"
        )
        return Outcome(float("nan"), False, f"{text}: {identity.otherwise}")
    if error <= identity.allowed(model):
        return Outcome(error, True)
    return Outcome(
        error,
        False,
        f"on this model it does not hold that {identity.question} (off by {error:.2g} of the spread): "
        f"{identity.otherwise}",
    )


# --- the identities ---------------------------------------------------------------------------------------------------


def _log_probs(model: TransformerBridge) -> float:
    """Log-probs are those of the published network, loaded independently from the files."""
    if cache.has_hooks(model):
        raise NotTestedError("the model carries hooks")
    if location(model) is None:
        raise NotTestedError("the model was not loaded from files by interp.load")
    if weights_state(model) != LOADED.get(model):
        raise NotTestedError("its weights were changed after it was loaded")
    if is_spread(model.original_model):
        raise NotTestedError("its weights are spread over devices")
    ids = probe_ids(model)
    own = model(ids, return_type="logits", prepend_bos=False).float().log_softmax(-1)

    def error(attention: str | None) -> tuple[str, float]:
        network: Any = published_network(model, attention)
        logits = network(ids, use_cache=False).logits
        kind = str(getattr(network.config, "_attn_implementation", "default"))
        return kind, relative_error(logits.float().log_softmax(-1), own)

    ATTENTION_DIFFERS.pop(model, None)
    (kind, chosen), allowed = error(None), IDENTITIES["log_probs"].allowed(model)
    if chosen <= allowed or kind == "eager":
        return chosen
    eager = error("eager")[1]  # as in the loader, which needs attention patterns
    if eager <= allowed:
        ATTENTION_DIFFERS[model] = (
            f"plain transformers disagrees with itself on this model: with attention '{kind}', its choice, log-probs "
            f"are {chosen:.2g} of their spread away from those with 'eager', which is used here"
        )
    return min(chosen, eager)


def _residual(model: TransformerBridge) -> float:
    """Embedding and layers sum to the residual stream, layer by layer and at the end."""
    seen = record(model, probe_ids(model), write_hooks(model))
    components, errors = writes(model, seen), []
    total = torch.zeros_like(components["embed"])
    for name, value in components.items():
        total, layer = total + value, name.partition("_")[0]
        if layer.isdigit() and name == [n for n in components if n.startswith(f"{layer}_")][-1]:
            errors.append(relative_error(seen[f"blocks.{layer}.hook_resid_post"], total))
    return max(*errors, relative_error(seen["ln_final.hook_in"], total))


def _heads(model: TransformerBridge) -> float:
    """Heads and biases sum to what the attention of their layer writes."""
    seen = record(model, probe_ids(model), write_hooks(model, heads=True))
    errors = []
    for layer in attention_layers(model):
        _, rest = head_writes(model, layer, seen)
        if f"blocks.{layer}.ln1_post.hook_out" in model.hook_dict:  # the biases include each place's norm scale
            attention, z = model.blocks[layer].attn, seen[name_of(model, layer, "z")].float()
            total = torch.einsum("bphe,hed->bpd", z, attention.W_O.detach().float())
            bias = getattr(attention, "b_O", None)
            total = total if bias is None else total + bias.detach().float()
            errors.append(relative_error(seen[f"blocks.{layer}.attn.hook_out"], total))
            continue
        # they sum by construction; the biases must not depend on the tokens
        errors.append(float(rest.std((0, 1)).max() / seen[name_of(model, layer, "attn_out")].float().std()))
    return max(errors)


def _readout(model: TransformerBridge) -> float:
    """Last norm, unembedding and a factor make the logits."""
    return Readout.of(model).error  # raises if they do not


def _patterns(model: TransformerBridge) -> float:
    """Each query's attention sums to one; a sink may take part of it."""
    seen = record(model, probe_ids(model), pattern_names(model))
    errors = []
    for layer, pattern in zip(attention_layers(model), seen.values(), strict=True):
        total = pattern.float().sum(-1)
        sink = getattr(model.blocks[layer].attn.original_component, "sinks", None) is not None
        errors.append(float((total - 1).clamp_min(0).max() if sink else (total - 1).abs().max()))
        errors.append(float(-pattern.float().min().clamp_max(0)))
        errors.append(float(pattern.float().triu(1).abs().max()))  # no attention to later positions
    return max(errors)


def _sweep(model: TransformerBridge) -> float:
    """The sweep engine agrees with plain passes; if it does not, plain passes are used."""
    ids, name = probe_ids(model), name_of(model, model.cfg.n_layers - 1, "resid_pre")
    hooks: list[Any] = [(name, lambda value, hook: value / 2)]
    fast = sweep(model, ids, [hooks], torch.ones_like(ids, dtype=torch.bool))[0]
    plain = log_probs(model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False), ids)
    return relative_error(plain[:, 1:], fast[:, 1:])


def _folded(model: TransformerBridge) -> float:
    """A copy with folded weights predicts what the model predicts, and has no gain left before its attention."""
    ids, plain = probe_ids(model), folded(model)
    check_gains(plain)
    own, other = (m(ids, return_type="logits", prepend_bos=False).float().log_softmax(-1) for m in (model, plain))
    return relative_error(own, other)


def _values(model: TransformerBridge) -> float:
    """Values are rows times value weights, up to a row's length, and heads read out values as they attend to them."""
    weights, errors = value_weights(model), []
    for layer in attention_layers(model):
        rows, seen = _rows_alone(model, layer, ["v", "pattern", "z"])
        _, biases = _rows_alone(model, layer, ["v"], scale=0.0)
        shared = model.cfg.n_heads // seen["v"].shape[2]
        values, bias = (x["v"].float().repeat_interleave(shared, dim=2) for x in (seen, biases))
        errors.append(relative_error(seen["z"], torch.einsum("bhqk,bkhe->bqhe", seen["pattern"].float(), values)))
        own, values = torch.einsum("bpd,hde->bphe", taken_in(model, layer, rows), weights[layer]), values - bias
        length = (own * values).sum((2, 3), keepdim=True) / own.square().sum((2, 3), keepdim=True).clamp_min(1e-30)
        errors.append(relative_error(values, length * own))
    return max(errors)


def _matching(model: TransformerBridge) -> float:
    """Scores of queries and keys by weights are the model's own, up to a factor and what keys or texts share."""
    errors = []
    for layer, turn in rotations(model, 0).items():
        rows, seen = _rows_alone(model, layer, ["attn_scores", "pattern"])
        row = taken_in(model, layer, rows, scaled=True)
        query = queries_of(model, layer, row.flatten(0, 1)).unflatten(0, row.shape[:2])
        key = keys_of(model, layer, row.flatten(0, 1)).unflatten(0, row.shape[:2])
        scores = seen["attn_scores"].float()
        if turn is not None:  # a query at the key's position
            own = torch.einsum("bphe,bphe->bhp", query @ turn, key)
            scores = scores.diagonal(dim1=-2, dim2=-1)
        else:
            own = torch.einsum("bqhe,bkhe->bhqk", query, key)
            earlier = torch.ones(own.shape[-2:]).tril().to(own)
            told = torch.ones_like(scores[0, ..., :1])
            if torch.equal(seen["attn_scores"], seen["pattern"]):
                # some bridges expose the pattern twice; its logarithm is the scores, minus a constant for each query
                told = ((scores > 1e-30) | (earlier == 0)).all(0).all(-1, keepdim=True).float()  # by [head query]
                scores = scores.clamp_min(1e-30).log()
            own, scores = (
                (x - (x * earlier).sum(-1, keepdim=True) / earlier.sum(-1, keepdim=True)) * earlier * told
                for x in (own, scores.masked_fill(earlier == 0, 0.0))
            )
        cap = getattr(model.blocks[layer].attn.original_component, "attn_logit_softcapping", None)
        if cap:
            scores = cap * torch.atanh((scores / cap).clamp(-1 + 1e-7, 1 - 1e-7))
        # terms that depend only on positions (ALiBi) are the same in every text
        own, scores = own - own.mean(0), scores - scores.mean(0)
        other = tuple(i for i in range(own.ndim) if i != 1)
        factor = (own * scores).sum(other, keepdim=True) / own.square().sum(other, keepdim=True).clamp_min(1e-30)
        errors.append(relative_error(scores, factor.clamp_min(0) * own))
    return max(errors)


def _rows_alone(
    model: TransformerBridge, layer: int, what: list[str], *, scale: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token rows [batch position d_model] as a layer's input, and the attention that results."""
    ids = probe_ids(model, rows=4, length=12)
    rows = model.original_model.get_input_embeddings().weight.detach()[ids].float()
    # long enough for a norm's epsilon not to matter
    rows = 10 * scale * rows / rows.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)

    def put(value: Tensor, hook: Any) -> Tensor:
        return rows.to(value)

    names = {name: name_of(model, layer, name) for name in what}
    seen = record(model, ids, names.values(), hooks=[(name_of(model, layer, "resid_pre"), put)])
    return rows, {name: seen[at] for name, at in names.items()}


def _lens(model: TransformerBridge) -> float:
    """The last depth of the logit lens is the model's output."""
    ids = probe_ids(model)
    found = logit_lens(model, ids, positions=None, return_type="log_probs").values[-1]
    return relative_error(model(ids, return_type="logits", prepend_bos=False).float().log_softmax(-1), found)


def _streams(model: TransformerBridge) -> float:
    """The residual stream before and after each layer carries everything that later layers use."""
    last = model.cfg.n_layers - 1
    places = ((0, "resid_pre"), (last, "resid_pre"), (last, "resid_post"))
    return max(stream_error(model, name_of(model, *at)) for at in places)


IDENTITIES: dict[str, Identity] = {
    "log_probs": Identity(
        "its log-probs are those of the published network, loaded independently from the files",
        _log_probs,
        "no number of it can be trusted; 'interp check' shows what else holds",
    ),
    "folded": Identity(
        "folded weights give the log-probs of raw ones",
        _folded,
        "circuits cannot be read off its weights; attention_scores needs patterns alone",
    ),
    "values": Identity(
        "heads write what their value weights compute from a row",
        _values,
        "copying cannot be read off its weights; attention_scores needs patterns alone",
    ),
    "matching": Identity(
        "scores of queries and keys computed from weights are those of its attention",
        _matching,
        "matching cannot be read off its weights; attention_scores needs patterns alone",
    ),
    "lens": Identity(
        "the last depth of the logit lens is the output", _lens, "its depths cannot be read by the logit lens"
    ),
    "residual": Identity(
        "the outputs of its components sum to the residual stream",
        _residual,
        "its residual stream cannot be decomposed; logit_lens and activation_patching may run",
    ),
    "heads": Identity(
        "heads and biases sum to the attention output of their layer",
        _heads,
        "single heads cannot be ablated; attention_scores and attention_pattern need patterns alone",
    ),
    "readout": Identity(
        "its logits are the unembedding of the last norm's output", _readout, "use repeated_tokens or head_ablation"
    ),
    "patterns": Identity(
        "the attention of each query sums to one, and none goes to later positions",
        _patterns,
        "its attention cannot be scored; use repeated_tokens",
    ),
    "streams": Identity(
        "patching in another run's residual stream gives that run's logits",
        _streams,
        "patch attn_out, mlp_out or heads",
    ),
    "scores": Identity(
        "attention scores are the sum of the contributions of pairs of components",
        scores_error,
        "its attention scores cannot be decomposed; attention_scores needs patterns alone",
        tolerance=1e-4,
    ),
    "edges": Identity(
        "a run assembled from all edges is the plain run, and one from none the other run",
        edges_error,
        "single edges cannot be patched; use activation_patching or path_patching",
    ),
    "sweep": Identity("many interventions in one pass equal plain passes", _sweep, ""),
}
