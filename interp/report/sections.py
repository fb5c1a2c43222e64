"""The parts of a report: a question, the experiment that answers it, the figures and tables that show the answer."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Section:
    """`run` experiment with `options` on `pools` (None: the model's default pools); `shown`: names of figures, or all that fit."""

    name: str
    title: str
    words: str
    experiment: str | Callable[..., Any]
    pools: Sequence[str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    shown: Sequence[str] | None = None

    def command(self, about: dict[str, Any], seed: int = 0) -> str:
        """What a reader types to get the numbers of this section, of the model that `interp.origin` describes so."""
        model = str(about["name"])
        if self.experiment == "census":
            return shlex.join(["interp", "census", "--model", model])
        words = ["interp", "run", _named(self.experiment), "--model", model]
        usual = {"revision": None, "weights": "raw", "dtype": "float32"}
        options = {key: about[key] for key, default in usual.items() if about.get(key, default) != default}
        options |= {"seed": seed} if seed else {}
        for pool in self.pools or ():
            words += ["--pool", pool]
        for key, value in (options | self.options).items():
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
        return shlex.join(words)


def sections() -> list[Section]:
    """Those of every model."""
    return [
        Section(
            "gap", "The gap",
            "A random block of tokens, fed twice. What was seen in the first copy can be known in the second: ordinary tokens are copied almost "
            "perfectly, tokens that training never or hardly ever showed are not.",
            "repeated_tokens", options={"batch": 32}, shown=("log_prob_by_position", "halves"),
        ),
        Section(
            "census", "The vocabulary",
            "What each token is, and whether any text can produce it: with a witness, or with a proof that none can.", "census",
        ),
        Section(
            "found", "Glitch tokens found",
            "Rows of the embedding that look as if nothing had trained them, by an indicator with a false-discovery rate, and whether the model "
            "can repeat the token when asked to.",
            "undertrained", options={"verify_tokens": "called"}, shown=("indicator_against_probability", "detection"),
        ),
        Section(
            "reach", "Could they ever be said?",
            "For every token a hidden state that makes it the arg-max, or a proof that there is none; and by how much it can lead at most behind "
            "the model's last norm.",
            "argmaxability",
        ),
        Section(
            "heads", "The heads that copy",
            "Heads are called induction or previous-token heads where they look back as copying needs it, more than in sequences without a "
            "repeat; and what their weights alone would do.",
            "induction_heads", options={"batch": 16}, shown=("matching_and_copying", "head_scores"),
        ),
        Section(
            "causes", "Why are they not copied?",
            "What single tokens among ordinary ones lack of these, in nats, split into causes. Each repair is made alone and in every "
            "combination, and on ordinary tokens, too, where it must change nothing.",
            "glitch_attribution", options={"batch": 16, "mixed": True}, shown=("deficit_shares", "identity_decomposition"),
        ),
    ]  # fmt: skip


def told_apart(chosen: Sequence[Section]) -> list[Section]:
    """The same sections, those of one name numbered: a name is a folder, and an id in the page, which has some of its own."""
    taken = {"methods", "tokens", "token", "data", "search", "count"}
    found = []
    for section in chosen:
        name, i = section.name, 2
        while name in taken:
            name, i = f"{section.name}-{i}", i + 1
        taken.add(name)
        found.append(replace(section, name=name))
    return found


def _named(experiment: str | Callable[..., Any]) -> str:
    """As the command takes it: a name, or file.py:function; a function that stands in no file by its name alone."""
    import inspect

    if isinstance(experiment, str):
        return experiment
    name = str(getattr(experiment, "__name__", "experiment"))
    try:
        file = inspect.getsourcefile(experiment)
    except TypeError:
        file = None
    return f"{file}:{name}" if file and Path(file).is_file() else f"FILE.py:{name}"


def of_experiment(experiment: str | Callable[..., Any]) -> Section:
    """A section for any experiment: its module's or its own first line, and all figures that fit its result."""
    import inspect

    from interp import experiments

    function = experiments.find(experiment) if isinstance(experiment, str) else experiment
    name = str(getattr(function, "__name__", "experiment"))
    words = (inspect.getdoc(function) or "").split("\n\n")[0]
    # a file is run once, here
    found = experiment if isinstance(experiment, str) and ":" not in experiment else function
    return Section(name, name.replace("_", " ").capitalize(), words, found)


def result_of(section: Section, model: TransformerBridge, folder: Any, seed: int) -> xr.Dataset:
    """Run a section's experiment into a folder."""
    from interp import run, vocabulary

    if section.experiment == "census":
        return vocabulary.survey(model, folder)[1]
    return run(section.experiment, model, section.pools, out=folder, **{"seed": seed, **section.options})
