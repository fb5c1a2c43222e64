"""Which tokens are fed to the model, and where is each in the repeated sequence?"""

from __future__ import annotations

import html
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Self

import numpy as np

from interp.errors import InterpError

if TYPE_CHECKING:
    from torch import Generator, Tensor


LENGTH = 25  # default tokens in a block, if the pool has that many


@dataclass(frozen=True)
class Pool:
    """Hold a named set of token ids to draw sequences from.

    Args:
        name: what results and figures call it.
        ids: token ids, whole numbers from 0; repeated ones are kept once.

    Raises:
        InterpError: there are no ids, or something that is not an id.

    Example:
        >>> interp.Pool("digits", (3, 5, 5, 7))
        Pool('digits', 3 tokens: 3, 5, 7)
    """

    name: str
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ids:
            raise InterpError(f"pool '{self.name}' is empty: name at least one token")
        try:
            ids = tuple(dict.fromkeys(operator.index(i) for i in self.ids))
        except TypeError as error:
            raise InterpError(
                f"pool '{self.name}' holds {self.ids[:3]}...: token ids are whole numbers from 0"
            ) from error
        if min(ids) < 0:
            raise InterpError(f"pool '{self.name}' holds {min(ids)}: token ids are whole numbers from 0")
        object.__setattr__(self, "ids", ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        few = ", ".join(map(str, self.ids[:6]))
        return f"Pool({self.name!r}, {len(self)} tokens: {few}{', ...' if len(self) > 6 else ''})"

    def _repr_html_(self) -> str:

        few = ", ".join(map(str, self.ids[:24]))
        more = ", ..." if len(self) > 24 else ""
        return f"<b>{html.escape(self.name)}</b> · {len(self):,} tokens<br><code>{few}{more}</code>"

    def check(self, vocabulary: int) -> None:
        """Raise `InterpError` where an id lies outside a vocabulary of that many rows."""
        outside = [i for i in self.ids if i >= vocabulary]
        if outside:
            raise InterpError(
                f"pool '{self.name}' holds token id {outside[0]}, but the vocabulary ends at {vocabulary - 1}: "
                f"use ids from 0 to {vocabulary - 1}"
            )

    def without(self, ids: Sequence[int]) -> Pool:
        """The same pool less some ids."""
        gone = set(ids)
        return Pool(self.name, tuple(i for i in self.ids if i not in gone))

    def control(self, among: Pool, *, seed: int = 0) -> Pool:
        """Draw a size-matched control, none of whose ids is in this pool.

        Args:
            among: what the control is drawn from.
            seed: decides the draw.

        Raises:
            InterpError: `among` is too small.
        """
        candidates = sorted(set(among.ids) - set(self.ids))
        if len(candidates) < len(self):
            raise InterpError(
                f"a control for the {len(self)} tokens of '{self.name}' needs the same number of others, and "
                f"'{among.name}' has {len(candidates)}: give a larger pool to draw from"
            )
        chosen = _permutation(len(candidates), local_generator(seed, 0))[: len(self)].tolist()
        return Pool(f"control({self.name})", tuple(sorted(candidates[i] for i in chosen)))


class Sequences:
    """Hold sequences of ids, which of their tokens are read, what is right there, and names of positions.

    Entry [b, p] is about the token *at* p, which is predicted from p - 1: an answer stands behind its prompt. An
    experiment says what it needs by annotation: `Repeated`, `Sequences` (any), `Answered` (with right answers) or
    `Paired` (and with corrupted sequences).

    Attributes:
        ids: [batch position], shorter sequences padded at the right.
        read: [batch position], bool: the tokens that are read, by the token predicted.
        answers: [batch position choice], ids that are right where something is read, -1 for none; or None.
        rivals: the same for what an answer is compared with; or None.
        present: [batch position], bool: not padding.
        labels: by name, [batch position], bool.
        pair: corrupted sequences, position by position; or None.
        pool: the name of the set.
        text: [batch position], the text of each token, where known.

    Example:
        >>> tokens = interp.repeated(interp.load("wired"), "1:33", batch=2, length=6)
        >>> isinstance(tokens, interp.Sequences), tokens.read.sum(1).tolist()  # inducible: five of six
        (True, [5, 5])
    """

    if TYPE_CHECKING:  # subclasses have fields or properties of these names

        @property
        def ids(self) -> Tensor: ...  # noqa: D102

        @property
        def read(self) -> Tensor: ...  # noqa: D102

        @property
        def answers(self) -> Tensor | None: ...  # noqa: D102

        @property
        def rivals(self) -> Tensor | None: ...  # noqa: D102

        @property
        def present(self) -> Tensor: ...  # noqa: D102

        @property
        def labels(self) -> Mapping[str, Tensor]: ...  # noqa: D102

        @property
        def pair(self) -> Sequences | None: ...  # noqa: D102

        @property
        def pool(self) -> str: ...  # noqa: D102

        @property
        def text(self) -> np.ndarray | None: ...  # noqa: D102

        @property
        def coords(self) -> dict[str, Any]: ...  # noqa: D102

        def split(self, size: int) -> Iterator[Self]: ...  # noqa: D102

    @property
    def queries(self) -> Tensor:
        """[batch position], bool: the positions from which what is read is predicted."""
        import torch

        return torch.nn.functional.pad(self.read[:, 1:], (0, 1), value=False)

    def rows_per_pass(self, asked: int | None = None) -> int:
        """Sequences in one forward pass: as asked, or about 1,024 tokens, where a CPU is fast and memory small.

        Raises `InterpError` where what is asked is no number of sequences.
        """
        if asked is None:
            return max(1, 1024 // self.ids.shape[1])
        if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
            raise InterpError(f"batch size {asked}: use a positive integer")
        return asked


# what an experiment may require; plain `Sequences` means any
Answered = Annotated[Sequences, "answer"]
Paired = Annotated[Sequences, "answer", "pairing"]


@dataclass(frozen=True)
class Prompts(Sequences):
    """Hold prompts of your own, windows of a text, or ready-made examples; `interp.prompts.prompt_sets` makes them.

    Attributes:
        ids: [batch position]; this and the others are those of `Sequences`.
        source: [batch], which line of its file each prompt is.
        bos: the id that stands first; None where nothing was added.

    Example:
        >>> from interp.prompts import prompt_sets
        >>> prompt_sets(["blocks:4"], interp.load("wired"), first=0)
        [Prompts(4 of 'blocks', up to 51 tokens; answers, rivals, pair; named positions: key, before, last)]
    """

    ids: Tensor
    read: Tensor
    answers: Tensor | None
    rivals: Tensor | None
    present: Tensor
    labels: Mapping[str, Tensor]
    pool: str
    pair: Prompts | None = field(default=None, repr=False)
    text: np.ndarray | None = field(default=None, repr=False)
    source: np.ndarray | None = field(default=None, repr=False)
    bos: int | None = None

    def __repr__(self) -> str:
        has = [name for name in ("answers", "rivals", "pair") if getattr(self, name) is not None]
        named = f"; named positions: {', '.join(self.labels)}" if self.labels else ""
        return f"Prompts({len(self.ids)} of {self.pool!r}, up to {self.ids.shape[1]} tokens; {', '.join(has)}{named})"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        """The name of the set, as a pool has one."""
        return self.pool

    @property
    def fed(self) -> Tensor:
        """[batch position], bool: what can matter to what is read: the prompt, without the last token that is read."""
        later = self.read.flip(1).cumsum(1).flip(1) - self.read.long() > 0
        return self.present & later if bool(self.read.any()) else self.present

    @property
    def coords(self) -> dict[str, Any]:
        """Coordinates for `results.label`: token_id, read, present, the text, and a coordinate for each label."""
        coords: dict[str, Any] = {
            "batch": np.arange(len(self.ids)),
            "position": np.arange(self.ids.shape[1]),
            "token_id": (("batch", "position"), self.ids.cpu().numpy()),
            "read": (("batch", "position"), self.read.cpu().numpy()),
            "present": (("batch", "position"), self.present.cpu().numpy()),
        }
        if self.text is not None:
            coords["token_text"] = (("batch", "position"), self.text)
        if self.source is not None:
            coords["line"] = ("batch", self.source)
        return coords

    def rows(self, at: Any) -> Prompts:
        """Some of the prompts, by a slice, a mask or their numbers."""
        some: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[at]
            for name in ("ids", "read", "answers", "rivals", "present", "text", "source")
        }
        labels = {name: mask[at] for name, mask in self.labels.items()}
        return replace(self, **some, labels=labels, pair=None if self.pair is None else self.pair.rows(at))

    def split(self, size: int) -> Iterator[Self]:
        """The same prompts, `size` at a time."""
        for start in range(0, len(self.ids), size):
            yield self.rows(slice(start, start + size))  # type: ignore[misc]

    def to(self, device: Any) -> Prompts:
        """The same on a device."""
        moved: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value.to(device)
            for name in ("ids", "read", "answers", "rivals", "present", "pair")
        }
        return replace(self, **moved, labels={name: mask.to(device) for name, mask in self.labels.items()})


def corrupted_prompts(tokens: Prompts) -> Prompts:
    """The corrupted prompts, read as the clean ones are: by the clean ones' answers."""
    assert tokens.pair is not None
    return replace(tokens, ids=tokens.pair.ids, text=tokens.pair.text, pair=None)


def refuse_with_blocks(**given: tuple[object, object]) -> None:
    """Raise `InterpError` if a parameter, given as (value, default), has no effect on repeated blocks."""
    odd = next((name for name, (value, default) in given.items() if value != default), None)
    if odd is not None:
        raise InterpError(
            f"{odd} applies to prompts, and these are repeated blocks: leave {odd} out, or give the blocks as prompts "
            "(--prompts blocks:32)"
        )


@dataclass(frozen=True)
class Repeated(Sequences):
    """Hold sequences `[BOS, A, A, ...]` of a random block A and its copies; `interp.repeated` draws them.

    Attributes:
        ids: [batch position], token ids.
        tested: [batch position], bool: the tokens that the pool is about (all of a block, or one of a mixed block).
        length: tokens in a block.
        copies: how often the block stands in a sequence.
        bos: the id that stands first, or None.
        pool: the name of the pool.
        replacement: whether blocks were drawn with replacement.
        half: [position], 0 for BOS, 1 for the first copy, 2 for the second, ...
        offset: [position], the place within a copy, from 0; -1 for BOS.

    Example:
        >>> tokens = interp.repeated(interp.load("wired"), "1:33", batch=2, length=3)
        >>> tokens.half.tolist(), tokens.offset.tolist()
        ([0, 1, 1, 1, 2, 2, 2], [-1, 0, 1, 2, 0, 1, 2])
    """

    ids: Tensor
    tested: Tensor
    length: int
    copies: int
    bos: int | None
    pool: str
    replacement: bool
    text: np.ndarray | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        front = "BOS, " if self.bos is not None else ""
        copies = ", ".join("A" * self.copies) if self.copies < 5 else f"{self.copies} times A"
        return (
            f"Repeated({len(self.ids)} sequences [{front}{copies}] of {self.ids.shape[1]} tokens; "
            f"A is a block of {self.length} from {self.pool!r}, "
            f"drawn {'with' if self.replacement else 'without'} replacement)"
        )

    @property
    def half(self) -> np.ndarray:
        """[position]: which copy each position belongs to."""
        halves = np.repeat(np.arange(1, self.copies + 1), self.length)
        return halves if self.bos is None else np.concatenate([[0], halves])

    @property
    def offset(self) -> np.ndarray:
        """[position]: place within the copy."""
        offsets = np.tile(np.arange(self.length), self.copies)
        return offsets if self.bos is None else np.concatenate([[-1], offsets])

    @property
    def inducible(self) -> np.ndarray:
        """[position], bool: tokens that can be known from context (second copy or later, offset > 0)."""
        return (self.half >= 2) & (self.offset > 0)

    @property
    def inducible_queries(self) -> np.ndarray:
        """[batch, position], bool: tested tokens from which an inducible token is predicted.

        In the second copy of `[BOS, A, A]` with period L these are the positions L + 1 .. 2L - 1.
        """
        return np.append(self.inducible[1:], False) & self.tested.cpu().numpy()

    @property
    def inducible_tested(self) -> np.ndarray:
        """[batch, position], bool: tested tokens that can be known from context, where they are predicted."""
        return self.inducible & self.tested.cpu().numpy()

    @property
    def read(self) -> Tensor:
        """[batch, position], bool: `inducible_tested`, as sequences of any kind have it."""
        import torch

        return torch.from_numpy(self.inducible_tested).to(self.ids.device)

    @property
    def answers(self) -> Tensor:
        """[batch, position, 1]: the tokens themselves are right."""
        return self.ids[..., None]

    @property
    def rivals(self) -> None:
        """None: there are no tokens that the right one is compared with."""
        return None

    @property
    def present(self) -> Tensor:
        """[batch, position], bool: nothing is padding."""
        import torch

        return torch.ones_like(self.ids, dtype=torch.bool)

    @property
    def labels(self) -> dict[str, Tensor]:
        """By name, [batch, position], bool: the first copy, the later ones, the tested tokens."""
        import torch

        halves = torch.from_numpy(self.half).to(self.ids.device).expand(self.ids.shape)
        return {"first copy": halves == 1, "later copies": halves >= 2, "tested": self.tested}

    @property
    def pair(self) -> None:
        """None: pairs are drawn (`paired`)."""
        return None

    @property
    def coords(self) -> dict[str, Any]:
        """Coordinates for `results.label`: half, offset, token_id, tested and, where known, the text."""
        coords: dict[str, Any] = {
            "batch": np.arange(len(self.ids)),
            "position": np.arange(self.ids.shape[1]),
            "half": ("position", self.half),
            "offset": ("position", self.offset),
            "token_id": (("batch", "position"), self.ids.cpu().numpy()),
            "tested": (("batch", "position"), self.tested.cpu().numpy()),
        }
        if self.text is not None:
            coords["token_text"] = (("batch", "position"), self.text)
        return coords

    def split(self, size: int) -> Iterator[Self]:
        """The same sequences, `size` at a time."""
        for start in range(0, len(self.ids), size):
            part = slice(start, start + size)
            text = None if self.text is None else self.text[part]
            yield replace(self, ids=self.ids[part], tested=self.tested[part], text=text)


def repeated(
    pool: Pool,
    *,
    batch: int = 32,
    length: int | None = None,
    copies: int = 2,
    bos: int | None,
    among: Pool | None = None,
    replacement: bool | None = None,
    seed: int = 0,
) -> Repeated:
    """Draw sequences of random blocks, each repeated.

    Sequence i depends on the seed and i alone, so a larger batch only adds sequences.

    Args:
        pool: what the blocks are drawn from.
        batch: how many sequences.
        length: tokens in a block; by default 25, or as many as there are to draw from.
        copies: how often a block stands in its sequence.
        bos: the id in front, or None.
        among: makes mixed blocks: all tokens come from there but one, a token of `pool` at a random offset, neither
            first nor last.
        replacement: whether a token may come twice in a block; by default only where the pool is too small for the
            length that was asked for.
        seed: decides the draws.

    Raises:
        InterpError: the sizes make no block.
    """
    import torch

    source = drawn_from(pool, among)
    if length is None:
        length = LENGTH if replacement else fitting_length(source)
    if length < 2 or copies < 2 or batch < 1:
        raise InterpError(
            f"length {length}, copies {copies}, batch {batch}: a repeated block needs a length and copies of "
            "2 or more, and a batch of 1 or more"
        )
    if replacement is None:
        replacement = len(source) < length
    if not replacement and len(source) < length:
        raise InterpError(
            f"pool '{source.name}' of size {len(source)} has too few tokens for a block of {length} without "
            "replacement: shorten the block, or draw with replacement"
        )
    choices = torch.tensor(source.ids)
    blocks, marks = [], []
    for i in range(batch):
        generator = local_generator(seed, i)
        if replacement:
            drawn = torch.randint(len(source), (length,), generator=generator)
        else:
            drawn = _permutation(len(source), generator)[:length]
        block, mark = choices[drawn], torch.ones(length, dtype=torch.bool)
        if among is not None:
            # neither first nor last in the block: both the token and its successor can be predicted
            offset = int(torch.randint(1, max(2, length - 1), (), generator=generator))
            single = pool.ids[int(torch.randint(len(pool), (), generator=generator))]
            if single in block:  # only where `among` is within `pool`: swap, so that none occurs twice
                block[block == single] = block[offset].clone()
            block[offset] = single
            mark = torch.arange(length) == offset
        blocks.append(block)
        marks.append(mark)
    return from_blocks(torch.stack(blocks), pool.name, copies, bos, torch.stack(marks), replacement)


def fitting_length(*pools: Pool) -> int:
    """The block length that all of these pools can fill without a repeat: 25, or fewer; at least 2."""
    return max(2, min([LENGTH, *map(len, pools)]))


_PAIRED = 1 << 32  # streams from here on draw pairs


class Draw(Protocol):
    """How `run` draws sequences for an experiment that takes `draw`, with the options of the call."""

    def __call__(self, pool: Pool, *, stream: int = 0, paired_with: Repeated | None = None) -> Repeated:
        """Draw sequences of a pool.

        Args:
            pool: what the tested tokens come from.
            stream: different numbers give independent sequences.
            paired_with: sequences of another pool, returned with their tested tokens exchanged for those of `pool`; the
                stream determines which.
        """
        ...  # pragma: no cover


def other_sequences(draw: Draw, pool: Pool, *, least: int = 64) -> Repeated:
    """Independent sequences of a pool, drawn from streams 1, 2, ... until there are enough for a mean.

    A mean over few sequences is noisy, and every sequence compared with it shares that noise.

    Args:
        draw: draws sequences.
        pool: the pool that they are drawn from.
        least: the minimum number of sequences.
    """
    import torch

    parts = [draw(pool, stream=1)]
    while sum(len(part.ids) for part in parts) < least:
        parts.append(draw(pool, stream=1 + len(parts)))
    texts = [part.text for part in parts if part.text is not None]
    return replace(
        parts[0],
        ids=torch.cat([part.ids for part in parts]),
        tested=torch.cat([part.tested for part in parts]),
        text=np.concatenate(texts) if len(texts) == len(parts) else None,
    )


def paired(tokens: Repeated, pool: Pool, *, seed: int = 0) -> Repeated:
    """Exchange every tested token for one of another pool, one to one within each sequence.

    Positions and repeats are kept, so attention patterns and residual streams can be patched across.

    Args:
        tokens: the sequences.
        pool: where the new tokens come from; those already in a sequence are not used in it.
        seed: determines which token becomes which.

    Raises:
        InterpError: the pool has too few tokens.
    """
    import torch

    ids = tokens.ids.cpu().clone()
    for i, row in enumerate(ids):
        tested = tokens.tested[i].cpu()
        old, places = row[tested].unique(return_inverse=True)
        present = set(row.tolist())
        candidates = torch.tensor([t for t in pool.ids if t not in present], dtype=row.dtype)
        if len(candidates) < len(old):
            raise InterpError(
                f"pool '{pool.name}' has {len(candidates)} tokens that are not in a sequence, too few to pair its "
                f"{len(old)} with: shorten the block, or give a larger pool"
            )
        # a separate stream: with that of the blocks, pools of one size would be paired index by index
        new = candidates[_permutation(len(candidates), local_generator(seed, _PAIRED + i))[: len(old)]]
        row[tested] = new[places]
    return replace(tokens, ids=ids.to(tokens.ids.device), pool=pool.name, text=None)


def drawn_from(pool: Pool, among: Pool | None) -> Pool:
    """What a block is drawn from: the pool itself or, for single tokens, the pool around them."""
    if among is None:
        return pool
    return among.without(pool.ids) if set(among.ids) - set(pool.ids) else among


def from_blocks(
    blocks: Tensor, pool: str, copies: int, bos: int | None, marks: Tensor | None, replacement: bool
) -> Repeated:
    """Sequences of given blocks [batch, length], each repeated, after BOS."""
    import torch

    marks = torch.ones_like(blocks, dtype=torch.bool) if marks is None else marks
    ids, tested = blocks.repeat(1, copies), marks.repeat(1, copies)
    if bos is not None:
        ids = torch.nn.functional.pad(ids, (1, 0), value=bos)
        tested = torch.nn.functional.pad(tested, (1, 0), value=False)
    return Repeated(ids, tested, blocks.shape[1], copies, bos, pool, replacement)


def article(pool: Pool, *, bos: int | None, seed: int = 42) -> Repeated:
    """One sequence with a block of 25, as the article draws it: `torch.randint(low, high, (1, 25))`.

    S. Xiang, "Under-trained and Unused tokens in LLMs" (2024). The generator is reseeded for each pool. Raises
    `InterpError` for a pool that is not a range of ids.
    """
    import torch

    low, high = min(pool.ids), max(pool.ids) + 1
    if len(pool) != high - low:
        raise InterpError(f"the article draws from a range of ids, and '{pool.name}' is not one: use e.g. 177:188")
    blocks = torch.randint(low, high, (1, LENGTH), generator=torch.Generator().manual_seed(seed))
    return from_blocks(blocks, pool.name, 2, bos, None, replacement=True)


def check_seed(seed: int) -> None:
    """Raise `InterpError` for a seed below 0."""
    if seed < 0:
        raise InterpError(f"seed {seed}: use 0 or a positive integer")


def check_context(tokens: Repeated, context: int) -> None:
    """Raise `InterpError` for sequences that do not fit a context of this many tokens."""
    size = tokens.ids.shape[1]
    if size > context:
        most = (context - (tokens.bos is not None)) // tokens.copies
        raise InterpError(
            f"{tokens.copies} copies of a block of {tokens.length} make {size} tokens with BOS, and the "
            f"context of this model is {context}: use a length of {most} or less"
        )


def local_generator(seed: int, stream: int) -> Generator:
    """A local generator for one stream of a seed; neighbouring seeds do not share streams."""
    import torch

    check_seed(seed)
    state = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def _permutation(n: int, generator: Generator) -> Tensor:
    import torch

    return torch.randperm(n, generator=generator)
