"""Which edges of the network carry the difference between two runs?

A *writer* adds to the residual stream: the embedding, a head, an MLP. A *reader* reads from it: the query, key or value
of a head, an MLP, the logits. Every reader reads every writer before it, and each such pair is an edge. Because the
stream is a sum, each reader can be given each writer's output from this run or from another one, exactly, whatever
norms follow: that is what the runs below do. Heads that share a key or value share its reader.

TransformerLens's `attribution_patching` has edges as well. It is not used because in this release it lacks integrated
gradients, rejects grouped queries, and takes sequences one at a time. Where it runs, it gives the same first-order
estimates (tested).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.hooks import (
    Hook,
    attention_layers,
    checked,
    forget_patterns,
    ids_of,
    name_of,
    probe_ids,
    record,
    relative_error,
)
from interp.residual import head_writes

EMBEDDING, LOGITS = "embed", "logits"
_SAME, _SAME_IN_HALF = 1e-3, 0.3
# from logits [batch position vocabulary] to one number for each sequence
Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Readers that read the residual stream at the same place.

    Attributes:
        layer: the layer; the number of layers for the logits.
        what: q, k, v, mlp, "normed mlp" (one that reads the norm before the attention beside it) or logits.
        hook: where the value that is read can be replaced.
        stream: the hook that holds the residual stream there.
        readers: their names.
        before: how many of the graph's writers write before it.
    """

    layer: int
    what: str
    hook: str
    stream: str
    readers: tuple[str, ...]
    before: int


@dataclass(frozen=True)
class Graph:
    """The writers of a model, in the order of writing, and the places where they are read."""

    writers: tuple[str, ...]
    places: tuple[Place, ...]

    @classmethod
    def of(cls, model: TransformerBridge) -> Graph:
        """The graph of a model.

        Raises:
            InterpError: a layer has no attention, or its readers cannot be separated.
        """
        layers, known = range(model.cfg.n_layers), model.hook_dict
        lacking = sorted(set(layers) - set(attention_layers(model)))
        if lacking:
            raise InterpError(
                f"layer {lacking[0]} of this model has no attention, and its readers cannot be separated: use "
                "activation_patching or path_patching"
            )
        mlps = [la for la in layers if f"blocks.{la}.hook_mlp_out" in known]
        reads_attention = _mlp_reads_attention(model, mlps)
        writers, places = [EMBEDDING], list[Place]()
        for layer in layers:
            before, stream = len(writers), name_of(model, layer, "resid_pre")
            for what in "qkv":
                weight = _weight(model, layer, f"W_{what.upper()}")
                readers = _reader_names(layer, model.cfg.n_heads, len(weight), what)
                places.append(Place(layer, what, name_of(model, layer, what), stream, readers, before))
            writers += [f"L{layer}H{head}" for head in range(model.cfg.n_heads)]
            if layer in mlps:
                norm, inside = f"blocks.{layer}.ln2.hook_in", f"blocks.{layer}.mlp.hook_in"
                hooks = (norm, norm) if norm in known else (inside, stream)  # otherwise it reads the attention's norm
                what = "mlp" if norm in known else "normed mlp"
                seen = len(writers) if reads_attention[layer] else before
                places.append(Place(layer, what, *hooks, (f"MLP{layer}",), seen))
                writers.append(f"MLP{layer}")
        end = checked(model, "ln_final.hook_in")
        places.append(Place(len(layers), LOGITS, end, end, (LOGITS,), len(writers)))
        return cls(tuple(writers), tuple(places))

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """The names of the readers, in the order of reading."""
        return tuple(name for place in self.places for name in place.readers)

    @cached_property
    def edges(self) -> np.ndarray:
        """[edge 2]: the writer and the reader of each edge, by number."""
        pairs, first = [], 0
        for place in self.places:
            pairs += [(w, first + r) for r in range(len(place.readers)) for w in range(place.before)]
            first += len(place.readers)
        return np.array(pairs)

    def names(self) -> list[str]:
        """The names of the edges, e.g. `L0H2 > L1H3.k`."""
        return [f"{self.writers[w]} > {self.readers[r]}" for w, r in self.edges]

    def parse(self, names: str | Sequence[str]) -> list[int]:
        """The indices of the named edges, given as a list or a comma-separated text.

        Raises:
            InterpError: a name is not an edge of this model.
        """
        number = {name.replace(" ", "").lower(): i for i, name in enumerate(self.names())}
        found = []
        for name in names.split(",") if isinstance(names, str) else names:
            key = name.replace(" ", "").lower() if isinstance(name, str) else ""
            if key not in number:
                raise InterpError(
                    f"{name!r} is not an edge of this model: write {self.names()[0]!r}, writer before reader"
                )
            found.append(number[key])
        return found

    def _split(self, of_edges: Tensor) -> list[Tensor]:
        """Values of the edges, split by place into [reader writer]."""
        sizes = [len(place.readers) * place.before for place in self.places]
        parts = of_edges.split(sizes)
        return [part.view(len(at.readers), at.before) for part, at in zip(parts, self.places, strict=True)]


@dataclass(frozen=True)
class Written:
    """What every writer adds in a run, [writer batch position d_model], and the stream at each place."""

    writers: Tensor
    streams: Mapping[str, Tensor]


@takes_what_it_says
def written(model: TransformerBridge, graph: Graph, ids: Tensor) -> Written:
    """What every writer of a graph adds to the residual stream in a plain run.

    Args:
        model: any loaded model.
        graph: its graph.
        ids: [batch position].

    Raises:
        InterpError: what heads write cannot be separated.
    """
    ids, streams = ids_of(model, ids), {place.stream for place in graph.places}
    names = streams | {name for layer in range(model.cfg.n_layers) for name in _write_names(model, layer)}
    seen = record(model, ids, [*dict.fromkeys([name_of(model, 0, "resid_pre"), *sorted(names)])])
    parts = [seen[name_of(model, 0, "resid_pre")].float()[None]]
    for layer in range(model.cfg.n_layers):
        parts.append(head_writes(model, layer, seen)[0].movedim(-2, 0))
        if f"MLP{layer}" in graph.writers:
            parts.append(seen[f"blocks.{layer}.hook_mlp_out"].float()[None])
    return Written(torch.cat(parts), {name: seen[name].float() for name in streams})


@takes_what_it_says
def run_with_edges(model: TransformerBridge, graph: Graph, ids: Tensor, other: Written, kept: Tensor) -> Tensor:
    """Logits of a run in which some edges carry this run's values, and all others those of another run.

    Args:
        model: any loaded model.
        graph: its graph.
        ids: [batch position], of this run.
        other: what is written in the other run, of sequences of the same shape.
        kept: bool [edge], the edges that carry this run's values.

    Returns:
        [batch position vocabulary]. With every edge, the logits of this run; with none, those of the other.

    Source:
        Hanna, Pezzelle, Belinkov 2024, arXiv 2403.17806.
    """
    _check_edges(graph, kept)
    ids = _same_shape(model, ids, other)
    masks = dict(zip(graph.places, graph._split(kept.to(other.writers)), strict=True))
    change = torch.zeros_like(other.writers)  # for each writer so far: this run minus the other
    seen: dict[str, Tensor] = {}
    number = {name: i for i, name in enumerate(graph.writers)}

    def stream(place: Place) -> Tensor:
        """[reader batch position d_model]: what each reader of a place reads."""
        mask = masks[place]
        return other.streams[place.stream] + torch.einsum("rw,wbpd->rbpd", mask, change[: place.before])

    def embed(value: Tensor, hook: Any) -> None:
        change[0] = value.float() - other.writers[0]

    def read(value: Tensor, hook: Any, place: Place) -> Tensor:
        x = stream(place)
        if place.what in ("q", "k", "v"):
            return _projected(model, place, x).to(value)
        return _normed(model, place, x[0].to(value))

    def see(value: Tensor, hook: Any, name: str) -> None:
        seen[name] = value

    def heads(value: Tensor, hook: Any, layer: int) -> None:
        seen[name_of(model, layer, "attn_out")] = value
        first = number[f"L{layer}H0"]
        at = slice(first, first + model.cfg.n_heads)
        change[at] = head_writes(model, layer, seen)[0].movedim(-2, 0) - other.writers[at]
        seen.clear()

    def mlp(value: Tensor, hook: Any, layer: int) -> None:
        at = number[f"MLP{layer}"]
        change[at] = value.float() - other.writers[at]

    hooks: list[Hook] = [(name_of(model, 0, "resid_pre"), embed)]
    hooks += [(place.hook, partial(read, place=place)) for place in graph.places]
    for layer in range(model.cfg.n_layers):
        names = _write_names(model, layer)
        hooks += [(name, partial(see, name=name)) for name in names if name.endswith(("hook_z", "attn.hook_out"))]
        hooks.append((name_of(model, layer, "attn_out"), partial(heads, layer=layer)))
        if f"MLP{layer}" in graph.writers:
            hooks.append((f"blocks.{layer}.hook_mlp_out", partial(mlp, layer=layer)))
    with torch.no_grad():
        logits = model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False)
    forget_patterns(model)
    return logits


@takes_what_it_says
def edge_gradients(
    model: TransformerBridge, graph: Graph, ids: Tensor, change: Tensor, metric: Metric, shares: Sequence[float]
) -> Tensor:
    """First-order estimates of the change in a metric when a single edge carries another run's value.

    Args:
        model: any loaded model.
        graph: its graph.
        ids: [batch position], of this run.
        change: [writer batch position d_model], what each writer adds in the other run, minus what it adds in this one.
        metric: from logits to [batch].
        shares: gradients are averaged over runs whose embedding is moved these fractions of the way to the other run's;
            (0,) is attribution patching of this run, midpoints from 0 to 1 are integrated gradients.

    Returns:
        [edge batch]: a writer's change times the gradient of the metric with respect to what the reader reads. With
        integrated gradients, the embedding's edges sum to the difference of the metric between the two runs, up to the
        error of the sum over shares.

    Source:
        Syed, Rager, Conmy 2023, arXiv 2310.10348; with integrated gradients, Hanna, Pezzelle, Belinkov 2024,
        arXiv 2403.17806.
    """
    ids, total = ids_of(model, ids), list[Tensor]()
    if len(change) != len(graph.writers) or change.shape[1:3] != ids.shape or not len(shares):
        raise InterpError(
            f"change is {tuple(change.shape)}: give [writer batch position d_model] for {len(graph.writers)} writers "
            f"and ids {tuple(ids.shape)}, and at least one share"
        )
    for share in shares:
        leaves: dict[str, Tensor] = {}
        streams: dict[str, Tensor] = {}

        def start(value: Tensor, hook: Any, share: float = share, streams: dict[str, Tensor] = streams) -> Tensor:
            value = (value.detach().float() + share * change[0]).to(value).requires_grad_() * 1.0
            streams[name_of(model, 0, "resid_pre")] = value.detach()
            return value

        def see(value: Tensor, hook: Any, name: str, streams: dict[str, Tensor] = streams) -> None:
            streams[name] = value.detach()

        def lead(value: Tensor, hook: Any, name: str, leaves: dict[str, Tensor] = leaves) -> Tensor:
            leaves[name] = value * 1.0  # read here, and nowhere else
            return leaves[name]

        first = name_of(model, 0, "resid_pre")
        hooks: list[Hook] = [(first, start)]
        pre = {place.stream for place in graph.places if place.what in ("q", "normed mlp")} - {first}
        hooks += [(name, partial(see, name=name)) for name in sorted(pre)]
        hooks += [(place.hook, partial(lead, name=place.hook)) for place in graph.places]
        with torch.enable_grad():
            logits = model.run_with_hooks(ids, fwd_hooks=hooks, prepend_bos=False)
            found = torch.autograd.grad(metric(logits).sum(), [leaves[place.hook] for place in graph.places])
        forget_patterns(model)
        for i, (place, gradient) in enumerate(zip(graph.places, found, strict=True)):
            if place.what in ("q", "k", "v"):
                gradient = _through_projection(model, place, streams[place.stream], gradient)
            elif place.what == "normed mlp":
                gradient = _through_norm(model, place, streams[place.stream], gradient[None])
            else:
                gradient = gradient[None]
            part = torch.einsum("wbpd,rbpd->rwb", change[: place.before], gradient.float()) / len(shares)
            if len(total) <= i:
                total.append(part)
            else:
                total[i] += part
    return torch.cat([part.flatten(0, 1) for part in total])


@takes_what_it_says
def edge_patches(
    model: TransformerBridge,
    graph: Graph,
    run: Written,
    other: Written,
    edge: int,
    *,
    at: Mapping[int, int] | None = None,
) -> list[Hook]:
    """Hooks for a run in which a single edge carries another run's value: direct path patching, exact.

    Args:
        model: any loaded model.
        graph: its graph.
        run: what is written in this run.
        other: what is written in the other run.
        edge: the number of the edge.
        at: the row of each writer in `writers`, for runs of which only a part was kept; by default its number.

    Source:
        Wang et al. 2022, arXiv 2211.00593; Goldowsky-Dill et al. 2023, arXiv 2304.05969.
    """
    if not 0 <= edge < len(graph.edges):
        raise InterpError(f"no edge {edge}: this model has edges 0 to {len(graph.edges) - 1}")
    writer, reader = graph.edges[edge]
    place = next(at for at in graph.places if graph.readers[reader] in at.readers)
    slot = place.readers.index(graph.readers[reader])
    row = int(writer) if at is None else at[int(writer)]
    change = other.writers[row] - run.writers[row]
    if place.what not in ("q", "k", "v"):
        read = run.streams[place.stream] + change
        return [(place.hook, lambda value, hook: _normed(model, place, read.to(value)))]
    with torch.no_grad():
        new = _projected(model, place, (run.streams[place.stream] + change)[None], only=slot)[:, :, 0]

    def put(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, :, slot] = new.to(value)
        return value

    return [(place.hook, put)]


@takes_what_it_says
def edges_error(model: TransformerBridge) -> float:
    """How far a run assembled from all edges deviates from the plain run, and one from no edges from the other run.

    The larger deviation on two short random runs, as a share of the spread of the logits.
    """
    graph = Graph.of(model)
    ids, others = (probe_ids(model, rows=1, length=12, seed=seed) for seed in (1, 2))
    errors = []
    with torch.no_grad():
        other = written(model, graph, others)
        for kept, right in ((True, ids), (False, others)):
            mask = torch.full((len(graph.edges),), kept, device=ids.device)
            own = run_with_edges(model, graph, ids, other, mask)
            errors.append(relative_error(model(right, return_type="logits", prepend_bos=False), own))
    return max(errors)


def _check_edges(graph: Graph, kept: Tensor) -> None:
    if kept.shape != (len(graph.edges),) or kept.dtype != torch.bool:
        raise InterpError(f"kept is {tuple(kept.shape)}: give truth values [edge] for {len(graph.edges)} edges")


def _same_shape(model: TransformerBridge, ids: Tensor, other: Written) -> Tensor:
    ids = ids_of(model, ids)
    if other.writers.shape[1:3] != ids.shape:
        raise InterpError(f"the other run has ids {tuple(other.writers.shape[1:3])}, and this one {tuple(ids.shape)}")
    return ids


def _reader_names(layer: int, heads: int, shared: int, what: str) -> tuple[str, ...]:
    """`L1H0.q`, or `L1H0-2.k` for a key that three heads share."""
    size = heads // shared
    ends = [(i * size, (i + 1) * size - 1) for i in range(shared)]
    return tuple(f"L{layer}H{a}.{what}" if a == b else f"L{layer}H{a}-{b}.{what}" for a, b in ends)


def _mlp_reads_attention(model: TransformerBridge, layers: list[int]) -> dict[int, bool]:
    """By layer: does its MLP read what the attention beside it writes? In parallel blocks it does not."""
    known = model.hook_dict
    names = [f"blocks.{la}.{what}" for la in layers for what in ("ln2.hook_in", "hook_resid_pre", "hook_attn_out")]
    beside = {la for la in layers if _beside_attention(la, known)}
    names = [name for name in names if not (name.endswith("ln2.hook_in") and int(name.split(".")[1]) in beside)]
    missing = next((name for name in names if name not in known), None)
    if missing is not None:
        raise InterpError(
            f"this model has no '{missing}', where its MLP reads: its edges cannot be separated; use "
            "activation_patching or path_patching"
        )
    seen = record(model, probe_ids(model, rows=1, length=8), names)
    found = dict.fromkeys(beside, False)
    for layer in sorted(set(layers) - beside):
        read, before, added = (seen[f"blocks.{layer}.{w}"] for w in ("ln2.hook_in", "hook_resid_pre", "hook_attn_out"))
        found[layer] = relative_error(read, before + added) < relative_error(read, before)
    return found


def _beside_attention(layer: int, known: Mapping[str, Any]) -> bool:
    """Does the MLP of a layer read the norm of the attention beside it instead of its own?"""
    inside = (f"blocks.{layer}.mlp.hook_in", f"blocks.{layer}.ln1.hook_in")
    return f"blocks.{layer}.ln2.hook_in" not in known and all(name in known for name in inside)


def _write_names(model: TransformerBridge, layer: int) -> list[str]:
    wanted = [f"blocks.{layer}.{what}" for what in ("attn.hook_z", "attn.hook_out", "hook_attn_out", "hook_mlp_out")]
    return [name for name in wanted if name in model.hook_dict]


def _weight(model: TransformerBridge, layer: int, name: str) -> Tensor:
    """[reader d_model d_head]."""
    try:
        weight = getattr(model.blocks[layer].attn, name, None)
    except NotImplementedError:  # latent attention
        weight = None
    if weight is None or weight.ndim != 3:
        raise InterpError(
            f"layer {layer} has no single matrix {name} (latent attention): its edges cannot be separated; use "
            "activation_patching"
        )
    return weight


def _projected(model: TransformerBridge, place: Place, stream: Tensor, only: int | None = None) -> Tensor:
    """[batch position reader d_head]: queries, keys or values of streams [reader batch position d_model]."""
    block = model.blocks[place.layer]
    weight = _weight(model, place.layer, f"W_{place.what.upper()}")
    bias = getattr(block.attn, f"b_{place.what.upper()}", None)
    bias = None if bias is None else bias.view(len(weight), -1)
    if only is not None:
        weight, bias = weight[only : only + 1], None if bias is None else bias[only : only + 1]
    norm = getattr(block, "ln1", None)
    seen = stream.to(weight) if norm is None else norm(stream.to(weight))
    found = torch.einsum("rbpd,rde->bpre", seen, weight)
    return found if bias is None else found + bias


def _through_projection(model: TransformerBridge, place: Place, stream: Tensor, gradient: Tensor) -> Tensor:
    """[reader batch position d_model]: gradients with respect to what is read, from those with respect to queries, keys
    or values.
    """
    weight = _weight(model, place.layer, f"W_{place.what.upper()}").detach()
    return _through_norm(model, place, stream, torch.einsum("bpre,rde->rbpd", gradient, weight))


def _normed(model: TransformerBridge, place: Place, stream: Tensor) -> Tensor:
    """The input of a reader that is not a head."""
    return model.blocks[place.layer].ln1(stream) if place.what == "normed mlp" else stream


def _through_norm(model: TransformerBridge, place: Place, stream: Tensor, gradient: Tensor) -> Tensor:
    """[reader batch position d_model]: gradients with respect to the stream, from those with respect to the norm's
    output.
    """
    norm = getattr(model.blocks[place.layer], "ln1", None)
    if norm is None:
        return gradient
    with torch.enable_grad():
        read = stream.expand(len(gradient), *stream.shape).clone().requires_grad_()
        return torch.autograd.grad(norm(read), read, gradient)[0]
