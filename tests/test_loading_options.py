"""Is a model loaded in the same ways, whichever verb loads it?"""

import json

import pytest
from typer.testing import CliRunner

from interp import cli, runner
from interp.compare import compare
from interp.errors import InterpError
from interp.exhibits import ReportSection
from interp.report.sections import on_model
from interp.reproduce import reproduce
from interp.request import HOW_LOADED, Request

VERBS = {
    "census": [],
    "report": [],
    "compare": ["a", "b"],
    "repair": ["--out", "repaired"],
    "argmaxability": [],
    "check": ["a"],
    "reproduce": [],
}
ASKED = {"dtype": "bfloat16", "device_map": {"": "cpu"}, "allow_pickle": True, "trust_remote_code": True}
WORDS = ["--dtype", "bfloat16", "--device-map", '{"": "cpu"}', "--allow-pickle", "--trust-remote-code"]


class Loaded(Exception):
    """Raised in place of loading."""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_passes_on_loading_options(verb, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = {}

    def load(name, **how):
        seen.update(how)
        raise Loaded

    monkeypatch.setattr(runner, "load", load)
    monkeypatch.setattr("interp.compare.comparison.located", lambda name, revision: None)
    found = CliRunner().invoke(cli.app, [verb, *VERBS[verb], *WORDS])
    assert isinstance(found.exception, Loaded), found.output
    assert {name: seen[name] for name in ASKED} == ASKED
    assert seen["weights"] == "raw"


def test_every_verb_documents_loading_options_alike():
    names = {option.flag for option in HOW_LOADED}
    assert {"--weights", "--device", "--dtype", "--device-map", "--allow-pickle", "--trust-remote-code"} <= names
    for verb in VERBS:
        said = CliRunner().invoke(cli.app, [verb, "--help"], env={"COLUMNS": "200"}).output
        assert "GGUF" in said
        assert all(flag in said for flag in names - ({"--revision", "--checkpoint"} if verb == "compare" else set()))


def test_options_without_a_model_are_refused(tmp_path):
    for words, said in (
        (["census", "--tokenizer", "t.json", "--dtype", "float16"], "--tokenizer loads no model: leave --dtype out"),
        (["argmaxability", "--matrix", "m.npz", "--allow-pickle"], "--matrix loads no model: leave --allow-pickle out"),
    ):
        found = CliRunner().invoke(cli.app, words)
        assert found.exit_code == 1
        assert said in found.output


def test_how_a_model_was_loaded_goes_through_the_requests_of_a_report():
    section = ReportSection("gap", "The gap", "", Request.of("repeated_tokens"))
    asked = {"weights": "folded", **ASKED}
    request = on_model(section, {"name": "some/model", **asked}, 0).request
    assert request == Request.of("repeated_tokens", model="some/model", **asked)
    assert Request.from_argv(request.to_argv()) == request
    assert Request.from_json(json.dumps(request.to_json())) == request


def test_invalid_loading_options_are_refused_in_python(organism):
    with pytest.raises(InterpError, match="unknown option 'dtyp': use weights, revision, checkpoint, device, dtype"):
        runner.load_as_asked("organism", dtyp="float16")
    with pytest.raises(InterpError, match="loaded already: leave dtype out"):
        reproduce("gpt2", out="unused", model=organism, dtype="float16")
    with pytest.raises(InterpError, match="name it as NAME@REVISION"):
        compare(["organism", "organism-llama"], "unused", revision="main")
