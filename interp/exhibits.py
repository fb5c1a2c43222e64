"""What does an experiment declare beside its table and figures? Entries of the gallery, a section of the report.

A view (`interp/experiments/NAME/view.py`) may define `GALLERY`, a sequence of `GalleryEntry`, and `SECTION`, a
`ReportSection`. Nothing is registered: the gallery and the report look there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from interp.request import Request

# publications, as captions and the gallery's page name them
ELHAGE, OLSSON, WANG = "Elhage et al. (2021)", "Olsson et al. (2022)", "Wang et al. (2022)"
ZHANG, LOGIT_LENS, XIANG = "Zhang and Nanda (2023)", "nostalgebraist (2020)", "S. Xiang (2024)"
LAND, GRIVAS, LIU = "Land and Bartolo (2024)", "Grivas et al. (2022)", "Liu et al. (2023)"
DEMETER, HUANG = "Demeter et al. (2020)", "Huang et al. (2023)"
HALAWI, SUN, YONA = "Halawi et al. (2023)", "Sun et al. (2024)", "Yona et al. (2025)"
SOURCES = {
    ELHAGE: "A Mathematical Framework for Transformer Circuits, "
    "https://transformer-circuits.pub/2021/framework/index.html",
    OLSSON: "In-context Learning and Induction Heads, https://arxiv.org/abs/2209.11895",
    WANG: "Interpretability in the Wild, https://arxiv.org/abs/2211.00593",
    ZHANG: "Towards Best Practices of Activation Patching, https://arxiv.org/abs/2309.16042",
    LOGIT_LENS: "interpreting GPT: the logit lens",
    XIANG: "Under-trained and Unused tokens in LLMs",
    LAND: "Fishing for Magikarp, https://arxiv.org/abs/2405.05417",
    GRIVAS: "Low-Rank Softmax Can Have Unargmaxable Classes in Theory but Rarely in Practice, "
    "https://arxiv.org/abs/2203.06462",
    DEMETER: "Stolen Probability: A Structural Weakness of Neural Language Models, https://arxiv.org/abs/2005.02433",
    HUANG: "Lexinvariant Language Models, https://arxiv.org/abs/2305.16349",
    LIU: "Exposing Attention Glitches with Flip-Flop Language Modeling, https://arxiv.org/abs/2306.00946",
    HALAWI: "Overthinking the Truth, https://arxiv.org/abs/2307.09476",
    SUN: "Massive Activations in Large Language Models, https://arxiv.org/abs/2402.17762",
    YONA: "Interpreting the Repeated Token Phenomenon in Large Language Models, https://arxiv.org/abs/2503.08908",
}
NO_COUNTERPART = "no published counterpart"
# the metrics of prompts, in the words of tables and axes
METRICS = {
    "log_prob": "log-prob of the answer (nats)",
    "logit_difference": "logit of the answer less its rivals'",
    "probability": "probability of the answer",
    "rank": "rank of the answer (0: arg-max)",
    "kl": "divergence from the clean run (nats)",
}
CHAPTERS = (
    "copying",
    "the vocabulary",
    "the copying circuit",
    "causes and repairs",
    "the output layer",
    "attention glitches",
    "a public model",
)


def metric_of(result: xr.Dataset) -> str:
    """The metric that a result on prompts is measured by, in words; "" for one on repeated blocks."""
    name = str(result.attrs.get("metric", ""))
    return METRICS.get(name, name)


@dataclass(frozen=True)
class Caption:
    """A figure of a result: its function's name in the view, what it shows, and which published figure it corresponds
    to.
    """

    name: str
    shows: str
    published: str = NO_COUNTERPART


@dataclass(frozen=True)
class Tolerance:
    """How far regenerated numbers may differ from committed ones, at most `atol` + `rtol` * |committed|, and why.

    `ties` is the share of a variable's ranks, arg-maxes and truth values that may differ: ties within rounding are
    decided by the last bit. `outliers` is the share of its other numbers that may differ by more: where a model is
    trained, rounding may decide whether a single token is copied.
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    ties: float = 0.0
    outliers: float = 0.0
    why: str = "processors and numbers of threads add in different orders"


USUAL = Tolerance()
PUBLIC_MODEL = Tolerance(
    rtol=0.02,
    atol=0.05,
    ties=0.02,
    why="thirty layers add up what processors round otherwise, and some multiply bfloat16 where tokens are asked",
)
RANKED = Tolerance(
    ties=0.005, why="tokens that are as likely as each other within rounding change ranks with the last bit"
)


@dataclass(frozen=True)
class GalleryEntry:
    """A folder of the gallery: the source of its result, and the figures shown from it.

    The result comes from `request` or, where it ships with the package, from the file `stored` (a path in the
    repository). `left_out` names figures of the result that the gallery does not show. `chapter` is one of `CHAPTERS`,
    in which entries are sorted by `order`.
    """

    folder: str
    request: Request | None
    captions: tuple[Caption, ...]
    chapter: str
    left_out: tuple[str, ...] = ()
    tolerance: Tolerance = USUAL
    stored: str = ""
    order: int = 1000

    @property
    def command(self) -> str:
        """The command that shows the same result."""
        return f"interp show {self.stored}" if self.request is None else self.request.command()


def of_public_model(
    entry: GalleryEntry,
    *,
    without: Sequence[str] = (),
    left_out: Sequence[str] = (),
    suffix: str = "",
    model: str = "smollm2",
    **options: Any,
) -> GalleryEntry:
    """The same entry for a public model, which must be fetched first; its pools come from detection.

    Args:
        entry: the entry of a bundled model.
        without: figures that its result does not have.
        left_out: figures of its result that the gallery does not show.
        suffix: of the folder, where the same experiment appears several times.
        model: the public model.
        **options: of the request.

    Returns:
        An entry in the last chapter.
    """
    if entry.request is None:
        raise ValueError(f"{entry.folder} comes with the package: there is nothing to run on another model")
    name = entry.request.experiment
    return GalleryEntry(
        f"{model}_{name}{suffix}",
        Request.of(name, model=model, **options),
        tuple(caption for caption in entry.captions if caption.name not in (*without, *left_out)),
        CHAPTERS[-1],
        left_out=(*(name for name in entry.left_out if name not in without), *left_out),
        tolerance=PUBLIC_MODEL,
        order=100 * CHAPTERS.index(entry.chapter) + entry.order,
    )


@dataclass(frozen=True)
class ReportSection:
    """A part of a report: a question, the request that answers it, the figures that show the answer.

    The request's model and seed are the report's. `figures` names functions of the view; None: all that the result has.
    Sections are sorted by `order`. `function` is the experiment where it is not given by name. `quick` replaces
    `request` under the quick budget. `title` and `words` open the section.
    """

    name: str
    title: str
    words: str
    request: Request
    figures: Sequence[str] | None = None
    order: int = 1000
    function: Callable[..., Any] | None = field(default=None, compare=False)
    quick: Request | None = None
