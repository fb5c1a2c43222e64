"""Has every public docstring its sections, and do its examples run as written?"""

import ast
import doctest
import inspect
import re
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest

import interp
from interp import catalog, models, runner
from interp.exhibits import NO_COUNTERPART

LINES = 2  # of an option, as the help shows it
LONGEST = 1200  # characters, besides the options
TIERS = {  # of the examples that take seconds; the others take a tenth of a second
    "dose_response": pytest.mark.experiment,
    "embedding_repair": pytest.mark.experiment,
    "flip_flop_doses": pytest.mark.experiment,
    "glitch_attribution": pytest.mark.causes,
    "glitch_heads": pytest.mark.causes,
}


def view_of(name):
    return import_module(f"interp.experiments.{name}.view")


def shown_by(name):
    view = view_of(name)
    return {f"{name}.{function.__name__}": function for function in (view.table, *view.FIGURES)}


def without_aliases(found):
    """Each once; `Answered` and `Paired` are annotations, and have no docstring of their own."""
    kinds = FunctionType | type | ModuleType
    return {name: thing for name, thing in found.items() if isinstance(inspect.unwrap(thing), kinds)}


PUBLIC = without_aliases({f"interp.{name}": getattr(interp, name) for name in interp.__all__})
EXPERIMENTS = {name: catalog.find(name) for name in catalog.names()}
SHOWN = {key: function for name in EXPERIMENTS for key, function in shown_by(name).items()}
ALL = PUBLIC | EXPERIMENTS | SHOWN


def sections(text):
    """The text above all sections, by "", and each section's, by its heading."""
    parts = re.split(r"^(\w+):\n(?=    )", text, flags=re.MULTILINE)
    return {"": parts[0].strip(), **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text):
    """A section of names as a dictionary, in order."""
    parts = re.split(r"^(\*{0,2}\w+): ", textwrap.dedent(text), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def has_published_figure(name):
    """The figures of an experiment to which a published one corresponds, as the gallery's captions say."""
    captions = [c for entry in getattr(view_of(name), "GALLERY", ()) for c in entry.captions]
    return {c.name for c in captions if not c.published.startswith(NO_COUNTERPART)}


def raises(function):
    """Does the module of a function raise an error of this package?"""
    file = inspect.getfile(inspect.unwrap(function))
    tree = ast.parse(Path(file).read_text())
    calls = (node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return any("InterpError" in ast.unparse(call) for call in calls if call is not None)


def wanted(name, thing):
    """The sections that a docstring needs, by what the thing is."""
    found = {"Example"}
    if isinstance(thing, FunctionType):
        signature = inspect.signature(thing)
        found |= {"Args"} if signature.parameters else set()
        found |= {"Returns"} if signature.return_annotation not in (None, "None") else set()
        found |= {"Raises"} if raises(thing) and name not in SHOWN else set()
    experiment, _, figure = name.partition(".")
    if experiment in EXPERIMENTS:
        published = has_published_figure(experiment)
        found |= {"Source"} if published and (not figure or figure in published) else set()
    return found


def faults(name, thing, text):
    """What a docstring lacks, in words."""
    found = sections(text)
    lacking = [f"no {heading}" for heading in sorted(wanted(name, thing) - set(found))]
    first = found[""].split("\n")[0]
    if not re.fullmatch(r".+[.?]", first):
        lacking.append("no first sentence")
    if isinstance(thing, FunctionType) and "Args" in found:
        names = [p.name for p in inspect.signature(thing).parameters.values()]
        said = entries(found["Args"])
        if [name.lstrip("*") for name in said] != names:
            lacking.append(f"Args of {list(said)}")
        lacking += [f"long text of {key}" for key, words in said.items() if len(words.splitlines()) > LINES]
    if "Source" in found and not re.search(r"\b(19|20)\d\d\b", found["Source"]):
        lacking.append("Source without a year")
    if len(text) - len(found.get("Args", "")) > LONGEST:
        lacking.append(f"more than {LONGEST} characters beside its Args")
    if "Example" in found and not any(e.want for e in doctest.DocTestParser().get_examples(text)):
        lacking.append("Example without an answer")
    return lacking


def test_all_public_names_are_found():
    assert len(EXPERIMENTS) >= 32
    assert {"interp.run", "interp.Pool", "interp.undertrained"} <= set(PUBLIC)
    assert {"head_ablation.table", "head_ablation.head_losses", "check.table"} <= set(SHOWN)


@pytest.mark.parametrize("name", ALL)
def test_a_docstring_has_its_sections(name):
    assert faults(name, ALL[name], inspect.getdoc(ALL[name]) or "") == []


ONE = "logit_attribution"  # an experiment that needs all of the sections


@pytest.mark.parametrize("heading", ["Args", "Returns", "Raises", "Source", "Example"])
def test_a_missing_section_is_noticed(heading):
    text = inspect.getdoc(EXPERIMENTS[ONE])
    start = text.index(f"{heading}:\n")
    end = text.find("\n\n", start)
    cut = text[:start] + (text[end + 2 :] if end > 0 else "")
    assert faults(ONE, EXPERIMENTS[ONE], cut) == [f"no {heading}"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    batch_size:", "    size:", "Args of ['model', 'tokens', 'against', 'size']"),
        ("any loaded model", "word\n    word\n    word", "long text of model"),
        ("Measure how much", "long " * 300, f"more than {LONGEST} characters beside its Args"),
        ("(direct logit attribution).", "(direct", "no first sentence"),
        ("2021", "some day", "Source without a year"),
        ("\n    True", "", "Example without an answer"),
    ],
)
def test_other_docstring_faults_are_noticed(old, new, said):
    text = inspect.getdoc(EXPERIMENTS[ONE])
    assert old in text
    assert faults(ONE, EXPERIMENTS[ONE], text.replace(old, new)) == [said]


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_runs():
    """Examples load a model once, and make a result once: those of a view use the result of their experiment's example."""
    loaded, made = {}, {}

    def load(name="organism", **options):
        key = name, repr(options)
        if key not in loaded:
            loaded[key] = models.load(name, **options)
        return loaded[key]

    def run(experiment, model="organism", *pools, **options):
        key = repr((experiment, model, pools, sorted(options.items())))
        if key not in made:
            made[key] = runner.run(experiment, load(model), *pools, **options)
        return made[key].copy()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interp, "load", load)
        patched.setattr(interp, "run", run)
        yield


def check_examples(name, thing):
    """Run a docstring's examples, where `interp` and `np` are imported, and what the module of the thing has."""
    inner = inspect.unwrap(thing)
    module = inner if isinstance(inner, ModuleType) else sys.modules[inner.__module__]
    names = {**vars(module), "interp": interp, "np": np}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(thing), names, name, module.__file__, 0)
    said = []
    doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert test.examples
    assert not said, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_of_public_names(name, shared_runs):
    check_examples(name, PUBLIC[name])


@pytest.mark.parametrize("name", [pytest.param(name, marks=TIERS.get(name, ())) for name in EXPERIMENTS])
def test_examples_of_an_experiment_and_its_view(name, shared_runs):
    for key, thing in {name: EXPERIMENTS[name], **shown_by(name)}.items():
        check_examples(key, thing)


def test_a_wrong_answer_in_an_example_is_noticed(shared_runs):
    def wrong():
        """
        >>> 1 + 1
        3
        """

    with pytest.raises(AssertionError, match="Expected"):
        check_examples("wrong", wrong)
