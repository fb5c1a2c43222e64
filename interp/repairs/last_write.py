"""Why is a read in the flip-flop language wrong? Repairs of the heads that attend to the last write, one at a time.

A read is predicted at its instruction. The *last-write heads* attend from there to the value of the last write, more
than to any other value. Three repairs, each applied only at the reads:

- *matching*: these heads attend to the last written value and to nothing else (`hard_attention`);
- *content*: their output is replaced by their mean output for that value, over other sequences (`Contents`);
- *read-out*: the value is decoded from the final residual stream by the nearest class mean, not by the output rows.

The values after reads since the last write equal the last written value. Together with the last write they are the
*register's places*: a head that attends there has found what it must copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InterpError
from interp.hooks import Head, Hook, by_layer_and_head, check_effect, forget_patterns, heads_of, name_of
from interp.languages.register import FIRST_VALUE, INSTRUCTIONS, FlipFlop
from interp.models import location, origin, token_texts
from interp.organisms import training_record
from interp.pool_names import vocabulary_size
from interp.progress import track
from interp.statistics import mean_interval

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

KEYS = ("last write", "read since", "earlier write", "earlier read", "ignored value", "instruction")
_LAST, _SINCE, _EARLIER, _EARLIER_READ, _IGNORED, _INSTRUCTION = range(len(KEYS))
CAUSES = ("dilution", "tie", "wrong write", "ignored value", "other key", "content", "read-out")
MATCHING = CAUSES[:5]
_TIED = 1e-3  # nats within which two scores count as equal
_EMPTY = 0.1  # share of the largest distance from value-free content within which a value's content counts as none
_ROWS = 8  # sequences of 512 tokens in a pass, where a CPU is fastest


def register_values(model: TransformerBridge) -> int:
    """The number of values of a flip-flop model's register: those that its training data drew from, without canaries.

    Raises:
        InterpError: the model does not have the flip-flop vocabulary, or its weights are in half precision.
    """
    if next(model.parameters()).dtype.itemsize < 4:
        raise InterpError("in half precision, rounding makes reads wrong: load the model in float32, without dtype")
    size = vocabulary_size(model)
    words = [*INSTRUCTIONS, *map(str, range(size - FIRST_VALUE))]
    if size < FIRST_VALUE + 2 or token_texts(model, range(size)) != words:
        raise InterpError(
            f"'{origin(model)['name']}' does not have the flip-flop vocabulary (w, r, i, 0, 1, ...): use "
            "flipflop, flipflop-sparse, flipflop-doses, wired-flipflop, or a folder of 'interp organism train flipflop'"
        )
    try:
        return int(training_record(location(model) or "")["recipe"]["values"])
    except InterpError:  # wired, or not trained by interp
        return size - FIRST_VALUE


def check_length(model: TransformerBridge, length: int) -> None:
    """Raise `InterpError` if sequences of this length do not fit into the model's context."""
    if length > int(model.cfg.n_ctx):
        raise InterpError(f"length {length}: the context of this model is {model.cfg.n_ctx} tokens; use that or less")


def probabilities(text: str) -> list[float]:
    """Parse comma-separated probabilities of an ignore instruction. Raises `InterpError` if one is not a number."""
    try:
        return [float(part) for part in str(text).split(",")]
    except ValueError as error:
        raise InterpError(f"p '{text}': give numbers from 0 to 1, separated by commas, as in 0.8,0.98,0.1") from error


@dataclass(frozen=True)
class Reads:
    """Some reads in sequences. [read] each: sequence, position of the instruction, and of the last written value."""

    row: Tensor
    query: Tensor
    last: Tensor

    @classmethod
    def of(cls, tokens: FlipFlop, where: Tensor) -> Reads:
        """The reads whose values are at the positions marked in `where` [batch position]."""
        row, position = where.nonzero(as_tuple=True)
        return cls(row, position - 1, tokens.last_write[row, position])

    def __len__(self) -> int:
        return len(self.row)


def parts(tokens: FlipFlop, where: Tensor, what: str) -> Iterator[tuple[FlipFlop, Reads]]:
    """Sequences in batches of one pass, with those of their reads that `where` [batch position] marks."""
    size = max(_ROWS, 4096 // tokens.ids.shape[1])
    pieces = zip(tokens.split(size), where.split(size), strict=True)
    for part, marked in track(pieces, what, total=-(-len(tokens) // size)):
        yield part, Reads.of(part, marked)


@torch.no_grad()
def right_reads(model: TransformerBridge, tokens: FlipFlop, reads: Reads, hooks: Sequence[Hook] = ()) -> Tensor:
    """[read], bool: is the correct value the most likely token?"""
    logits = model.run_with_hooks(
        tokens.ids.to(model.cfg.device), fwd_hooks=list(hooks), return_type="logits", prepend_bos=False
    )
    forget_patterns(model)
    found = logits[reads.row, reads.query].argmax(-1).cpu()
    return found == tokens.ids[reads.row, reads.query + 1]


def key_kinds(tokens: FlipFlop, reads: Reads) -> Tensor:
    """[read key]: which of `KEYS` is at each position before the value that is read; -1 from there on."""
    places = torch.arange(tokens.ids.shape[1])
    before = places < reads.last[:, None]
    kinds = torch.full((len(reads), len(places)), _INSTRUCTION)
    labels = {name: marked[reads.row] for name, marked in tokens.labels.items()}
    kinds[labels["written"]] = _EARLIER
    kinds[labels["ignored"]] = _IGNORED
    kinds[labels["read"]] = _SINCE
    kinds[labels["read"] & before] = _EARLIER_READ
    kinds[torch.arange(len(reads)), reads.last] = _LAST
    kinds[places > reads.query[:, None]] = -1
    return kinds


# --- which heads ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LastWriteHeads:
    """Which heads attend to the last write, and size-matched control heads.

    Attributes:
        attention: [layer head], mean attention from reads to the last written value.
        null: [layer head], the same to the value of the write before it, or to the first ignored value after it,
            whichever is larger.
        heads: those classified as last-write heads.
        controls: as many of the other heads, if there are enough: those of the same layers first.
    """

    attention: np.ndarray
    null: np.ndarray
    heads: tuple[Head, ...]
    controls: tuple[Head, ...]


def last_write_heads(model: TransformerBridge, tokens: FlipFlop, least: float = 0.05) -> LastWriteHeads:
    """The heads whose attention from reads to the last written value exceeds their attention to comparable places.

    A head is classified as one where both differences, from the value of the write before the last and from the first
    ignored value after the last write, have lower ends of their 95% intervals over sequences above `least`. Reads that
    lack either are left out.

    Args:
        model: a flip-flop model.
        tokens: sequences that are used for nothing else.
        least: the threshold, in attention.

    Returns:
        The heads; none where no head attends to the last write.
    """
    found: list[Tensor] = []  # [batch head place] each
    every = heads_of(model)
    for part, reads in parts(tokens, tokens.read, "heads that attend to the last write"):
        kinds = key_kinds(part, reads)
        places = torch.arange(kinds.shape[1])
        previous = torch.where(kinds == _EARLIER, places, -1).max(1).values
        # nearer to the read than the last write: else a head that attends to recent tokens would seem to attend to it
        near = torch.where((kinds == _IGNORED) & (places > reads.last[:, None]), places, 10**6).min(1)
        usable = (previous >= 0) & (near.values < 10**6)
        _, seen = _attention(model, part, reads, every)
        at = torch.stack([reads.last, previous.clamp(min=0), near.indices], 1)
        seen = seen.gather(2, at[:, None].expand(-1, len(every), -1))
        for row in range(len(part)):
            chosen = usable & (reads.row == row)
            if bool(chosen.any()):
                found.append(seen[chosen].mean(0))
    if not found:
        raise InterpError("no calibration read has both an earlier write and an ignored value: use longer sequences")
    attention = torch.stack(found).double().numpy()
    differences = attention[..., :1] - attention[..., 1:]  # [batch head 2]
    _, low, _ = mean_interval(differences) if len(found) > 1 else (differences[0],) * 3
    called = (low > least).all(-1)
    mean = attention.mean(0)
    heads = tuple(head for head, yes in zip(every, called, strict=True) if yes)
    layers = {layer for layer, _ in heads}
    others = [
        (head[0] not in layers, on, head) for head, on, yes in zip(every, mean[:, 0], called, strict=True) if not yes
    ]
    controls = tuple(head for *_, head in sorted(others)[: len(heads)])
    by_head = partial(by_layer_and_head, model)
    return LastWriteHeads(by_head(mean[:, 0]), by_head(mean[:, 1:].max(-1)), heads, controls)


def _of_layers(heads: Sequence[Head]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for layer, head in heads:
        found.setdefault(layer, []).append(head)
    return found


def _attention(
    model: TransformerBridge, tokens: FlipFlop, reads: Reads, heads: Sequence[Head]
) -> tuple[Tensor, Tensor]:
    """Which reads are correct [read], and attention [read head key] of some heads from them."""
    kept: dict[Head, Tensor] = {}

    def keep(pattern: Tensor, hook: Any, layer: int, at: list[int]) -> None:
        for head in at:
            kept[layer, head] = pattern[reads.row, head, reads.query].float().cpu()

    hooks: list[Hook] = [
        (name_of(model, layer, "pattern"), partial(keep, layer=layer, at=at)) for layer, at in _of_layers(heads).items()
    ]
    right = right_reads(model, tokens, reads, hooks)
    return right, torch.stack([kept[head] for head in heads], 1)


# --- repairs ----------------------------------------------------------------------------------------------------------


def hard_attention(model: TransformerBridge, heads: Sequence[Head], reads: Reads, back: int = 0) -> list[Hook]:
    """Hooks that make some heads attend, at the reads only, to nothing but the last written value.

    Args:
        model: a flip-flop model.
        heads: which heads.
        reads: at which reads.
        back: attend to the token this many positions before that value instead; 1 is its instruction.
    """
    place = reads.last - back

    def hook(pattern: Tensor, hook: Any, at: list[int]) -> Tensor:
        pattern = pattern.clone()
        for head in at:
            pattern[reads.row, head, reads.query] = 0.0
            pattern[reads.row, head, reads.query, place] = 1.0
        return pattern

    return _on_patterns(model, heads, hook)


def sharpened_attention(model: TransformerBridge, heads: Sequence[Head], temperature: float) -> list[Hook]:
    """Hooks that divide the attention scores of some heads by a temperature, at every query.

    Args:
        model: any loaded model.
        heads: which heads.
        temperature: below 1 is sharper, above 1 is flatter.

    Raises:
        InterpError: the temperature is not positive.
    """
    if not temperature > 0:
        raise InterpError(f"temperature {temperature}: use a positive number; 1 changes nothing")

    def hook(pattern: Tensor, hook: Any, at: list[int]) -> Tensor:
        pattern = pattern.clone()
        chosen = pattern[:, at]
        chosen = (chosen / chosen.amax(-1, keepdim=True)) ** (1 / temperature)  # the softmax of scores / temperature
        pattern[:, at] = chosen / chosen.sum(-1, keepdim=True)
        return pattern

    return _on_patterns(model, heads, hook)


def _on_patterns(model: TransformerBridge, heads: Sequence[Head], hook: Callable[..., Tensor]) -> list[Hook]:
    """A hook on the attention of each layer that has some of the heads, passed to it as `at`."""
    layers = _of_layers(heads)
    if layers:
        # a wired head of an early layer may attend to the same place whatever the input, and seem to have no effect
        check_effect(model, name_of(model, max(layers), "pattern"))
    return [(name_of(model, layer, "pattern"), partial(hook, at=at)) for layer, at in layers.items()]


@dataclass(frozen=True)
class Contents:
    """The mean output of last-write heads for each value, and the final residual stream that results from it.

    Attributes:
        heads: the last-write heads.
        of_value: [value head d_head], with hard attention on the last write; NaN for a value that was never read.
        final: [value d_model], the final residual stream after the last norm, with the correct value's mean output.
        empty: [value], bool: the output is within a tenth of the largest distance from the output for write
            instructions, which hold no value.
    """

    heads: tuple[Head, ...]
    of_value: Tensor
    final: Tensor
    empty: Tensor

    @classmethod
    def of(cls, model: TransformerBridge, heads: tuple[Head, ...], tokens: FlipFlop, where: Tensor) -> Contents:
        """Measured at the reads that `where` [batch position] marks, in sequences used for nothing else."""
        written, neutral, held = [], [], []
        for part, reads in parts(tokens, where, "contents of the register"):
            written.append(_read_out(model, part, reads, heads, hard_attention(model, heads, reads))[0])
            neutral.append(_read_out(model, part, reads, heads, hard_attention(model, heads, reads, back=1))[0])
            held.append(part.ids[reads.row, reads.query + 1] - FIRST_VALUE)
        values, size = torch.cat(held), vocabulary_size(model) - FIRST_VALUE
        of_value = _means(torch.cat(written), values, size)
        away = (of_value - torch.cat(neutral).mean(0)).flatten(1).norm(dim=1)
        empty = away <= _EMPTY * away.nan_to_num().max()
        found = cls(heads, of_value, torch.empty(0), empty)
        ends = [
            _read_out(model, part, reads, heads, found.put(model, part, reads))[1]
            for part, reads in parts(tokens, where, "final residuals of the register")
        ]
        return replace(found, final=_means(torch.cat(ends), values, size))

    def put(self, model: TransformerBridge, tokens: FlipFlop, reads: Reads) -> list[Hook]:
        """Hooks that replace the heads' output at the reads by their mean output for the correct value."""
        values = tokens.ids[reads.row, reads.query + 1] - FIRST_VALUE

        def hook(z: Tensor, hook: Any, layer: int) -> Tensor:
            z = z.clone()
            for i, (of, head) in enumerate(self.heads):
                if of == layer:
                    z[reads.row, reads.query, head] = self.of_value[values, i].to(z)
            return z

        return [(name_of(model, layer, "z"), partial(hook, layer=layer)) for layer in _of_layers(self.heads)]

    def nearest(self, final: Tensor) -> Tensor:
        """[read]: the value whose mean final residual stream is nearest to each of [read d_model]."""
        return torch.cdist(final, self.final.nan_to_num(nan=1e6)).argmin(1)


def _means(kept: Tensor, values: Tensor, size: int) -> Tensor:
    """Means [value ...] of [read ...]; NaN for values without reads."""
    total = torch.zeros((size, *kept.shape[1:])).index_add(0, values, kept)
    count = torch.bincount(values, minlength=size).float()
    return total / count.view(-1, *[1] * (kept.ndim - 1)).masked_fill(
        count.view(-1, *[1] * (kept.ndim - 1)) == 0, torch.nan
    )


def _read_out(
    model: TransformerBridge, tokens: FlipFlop, reads: Reads, heads: Sequence[Head], hooks: Sequence[Hook]
) -> tuple[Tensor, Tensor]:
    """The heads' outputs z at the reads [read head d_head], and the final residual stream there [read d_model]."""
    kept: dict[Any, Tensor] = {}

    def keep(z: Tensor, hook: Any, layer: int) -> None:
        kept[layer] = z[reads.row, reads.query].float().cpu()

    def end(value: Tensor, hook: Any) -> None:
        kept["final"] = value[reads.row, reads.query].float().cpu()

    more: list[Hook] = [(name_of(model, layer, "z"), partial(keep, layer=layer)) for layer in _of_layers(heads)]
    right_reads(model, tokens, reads, [*hooks, *more, ("unembed.hook_in", end)])
    return torch.stack([kept[layer][:, head] for layer, head in heads], 1), kept["final"]


# --- causes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looks:
    """Where the last-write heads attend at some reads, averaged over these heads. [read] each.

    Attributes:
        right: is the correct value the most likely token?
        on_last: attention on the last written value.
        on_register: attention on all of the register's places.
        margin: the largest score of these places minus the largest of the others, nats.
        largest: which of `KEYS` has the largest score.
    """

    right: np.ndarray
    on_last: np.ndarray
    on_register: np.ndarray
    margin: np.ndarray
    largest: np.ndarray


def looks(model: TransformerBridge, tokens: FlipFlop, where: Tensor, heads: Sequence[Head]) -> Looks:
    """Where heads attend at the reads that `where` [batch position] marks."""
    found: list[tuple[Tensor, ...]] = []
    for part, reads in parts(tokens, where, "attention of the reads"):
        if not len(reads):
            continue
        right, seen = _attention(model, part, reads, heads)
        mean = seen.mean(1)  # [read key]
        kinds = key_kinds(part, reads)
        ours = (kinds == _LAST) | (kinds == _SINCE)
        best, other = (mean.masked_fill(~chosen, 0.0).max(1).values for chosen in (ours, ~ours & (kinds >= 0)))
        largest = kinds.gather(1, mean.argmax(1, keepdim=True))[:, 0]
        on_last = mean.gather(1, reads.last[:, None])[:, 0]
        found.append((right, on_last, (mean * ours).sum(1), best.log() - other.log(), largest))
    if not found:
        return Looks(*(np.zeros(0) for _ in range(5)))
    return Looks(*(torch.cat(kept).numpy() for kept in zip(*found, strict=True)))


@dataclass(frozen=True)
class Repaired:
    """Which reads become correct with each repair, [read] each: 1 is correct, 0 wrong, NaN not tested.

    Attributes:
        matching: hard attention of the last-write heads on the last write.
        control: hard attention of the size-matched control heads on the last write.
        content: the last-write heads' output replaced by their mean output for the correct value.
        readout: with content repaired, the value is also decoded by the nearest class mean.
        empty: the heads' output for this value carries no more than that for an instruction.
    """

    matching: np.ndarray
    control: np.ndarray
    content: np.ndarray
    readout: np.ndarray
    empty: np.ndarray


def repaired(
    model: TransformerBridge, tokens: FlipFlop, where: Tensor, found: LastWriteHeads, contents: Contents
) -> Repaired:
    """Each repair at the reads that `where` [batch position] marks; all marked reads of a sequence at once."""
    kept: list[list[Tensor]] = []
    for part, reads in parts(tokens, where, "repairs of the reads"):
        if not len(reads):
            continue
        values = part.ids[reads.row, reads.query + 1] - FIRST_VALUE
        known = ~contents.of_value[values].flatten(1).isnan().any(1)
        matching = right_reads(model, part, reads, hard_attention(model, found.heads, reads)).float()
        control = torch.full_like(matching, torch.nan)
        if found.controls:
            control = right_reads(model, part, reads, hard_attention(model, found.controls, reads)).float()
        hooks = contents.put(model, part, reads)
        content = right_reads(model, part, reads, hooks).float()
        _, final = _read_out(model, part, reads, found.heads, hooks)
        readout = torch.full_like(content, torch.nan)
        readout[known] = (contents.nearest(final[known]) == values[known]).float()
        content[~known] = torch.nan
        kept.append([matching, control, content, readout, contents.empty[values].float()])
    if not kept:
        return Repaired(*(np.zeros(0) for _ in range(5)))
    return Repaired(*(torch.cat(columns).numpy() for columns in zip(*kept, strict=True)))


def causes(seen: Looks, after: Repaired) -> tuple[np.ndarray, np.ndarray]:
    """The cause of each wrong read, or why it could not be determined. [read] each; "" where the read is correct.

    Matching, if hard attention corrects the read: *dilution* (a place of the register has the largest score, but too
    little attention), *tie* (another place has the same score), otherwise named after the place with the largest score.
    Otherwise *content*, if the value's mean content corrects the read, or the value has none; otherwise *read-out*, if
    the final residual stream encodes the value and the output rows do not read it.
    """
    cause, reason = (np.full(len(seen.right), "", dtype=object) for _ in range(2))
    by_key = {
        _EARLIER: "wrong write",
        _EARLIER_READ: "wrong write",
        _IGNORED: "ignored value",
        _INSTRUCTION: "other key",
    }
    for i in np.flatnonzero(~seen.right.astype(bool)):
        if after.matching[i] == 1:
            if abs(seen.margin[i]) < _TIED:
                cause[i] = "tie"
            else:
                cause[i] = "dilution" if seen.margin[i] > 0 else by_key.get(int(seen.largest[i]), "other key")
        elif np.isnan(after.content[i]):
            reason[i] = "the value was never read in the calibration sequences"
        elif after.content[i] == 1 or after.empty[i] == 1:
            cause[i] = "content"
        elif after.readout[i] == 1:
            cause[i] = "read-out"
        else:
            reason[i] = "no repair corrects the read"
    return cause, reason
