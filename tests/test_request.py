"""Does a request round-trip through a command line and JSON, and is a mistake in it reported in one line?"""

import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import interp
from interp import catalog
from interp.errors import InterpError
from interp.request import Request, own_options

FILE = '''
"""Does it take what it is given?"""
import interp


def odd(model, tokens, *, word="", number=3, share=0.5, flag=False, anything=None):
    """Return nothing of interest.

    Args:
        model: any.
        tokens: repeated sequences.
        word: a text, which may look
            like a number.
        flag: on or off.
    """
    return interp.label("x", [0.0] * len(tokens.ids), "batch")
'''


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    path = tmp_path_factory.mktemp("user") / "mine.py"
    path.write_text(FILE)
    return f"{path}:odd"


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
requests = st.fixed_dictionaries(
    {},
    optional={
        "model": words.filter(bool), "weights": st.sampled_from(["raw", "folded"]), "revision": words,
        "checkpoint": st.integers(0, 10**6), "dtype": st.sampled_from(["float32", "bfloat16"]),
        "pools": st.lists(words, max_size=3), "batch": st.integers(1, 99), "length": st.integers(2, 99),
        "mixed": st.booleans(), "among": words, "replacement": st.booleans(), "seed": st.integers(0, 2**40),
        "bos": st.one_of(st.sampled_from(["auto", "none", "required"]), st.integers(0, 99)),
        "word": words, "number": st.integers(), "share": st.floats(allow_nan=False, allow_infinity=False),
        "flag": st.booleans(),
        "anything": st.one_of(
            words, st.integers(), st.booleans(), st.none(), st.sampled_from(["5", "None", "true", "[1]", '"a"', "--x"]),
            st.lists(st.one_of(words, st.integers(), st.booleans(), st.none()), max_size=3),
        ),
    },
)  # fmt: skip


@pytest.mark.experiment
@given(options=requests)
@settings(max_examples=300, deadline=None)
def test_argv_and_json_lose_nothing(odd, options):
    pools = options.pop("pools", None) or None
    request = Request.of(odd, pools=pools, **options)
    assert Request.from_argv(request.to_argv()) == request
    assert Request.from_json(request.to_json()) == request
    assert Request.from_json(json.dumps(request.to_json())) == request


def test_options_come_from_the_signature_and_their_help_from_args(odd):
    found = {option.name: option for option in own_options(catalog.find(odd))}
    assert {name: (o.kind, o.default) for name, o in found.items()} == {
        "word": (str, ""), "number": (int, 3), "share": (float, 0.5), "flag": (bool, False), "anything": (None, None),
    }  # fmt: skip
    assert found["word"].help == "a text, which may look like a number."
    assert found["number"].help == ""


def test_every_parameter_of_every_experiment_is_documented():
    for name in catalog.names():
        for option in own_options(catalog.find(name)):
            assert option.help, f"{name}: {option.name} is not in the docstring's Args"


def test_options_may_stand_before_the_experiment():
    typed = ["run", "--model", "gpt2", "--mixed", "logit_lens", "--batch=8"]
    assert Request.from_argv(typed) == Request.of("logit_lens", model="gpt2", mixed=True, batch=8)


def test_names_of_the_last_release_are_accepted():
    old = ["run", "logit_lens", "--bos", "--mixed"], ["run", "logit_lens", "--no-bos"]
    assert [Request.from_argv(typed).drawing.bos for typed in old] == ["required", "none"]
    old = ["run", "undertrained", "--verify-tokens", "called"]
    assert Request.from_argv(old) == Request.of("undertrained", verify_tokens="detected")
    for old, new in catalog.OLD_NAMES.items():
        assert Request.from_argv(["run", old, "--batch", "3"]) == Request.of(new, batch=3)
        assert new in catalog.names()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["run", "logit_lens", "--modle", "x"], "unknown option '--modle': did you mean --model?"),
        (["run", "logit_lens", "--batch", "four"], "--batch takes a whole number, and 'four' is not one"),
        (["run", "logit_lens", "--batch"], "--batch needs a value"),
        (["run", "logit_lens", "--weights", "half"], "--weights 'half': use raw, folded"),
        (["run", "head_ablation", "--kind", "half"], "--kind 'half': use "),
        (["run", "logit_lens", "8"], "unknown option '8'"),
        (["run", "nonsense"], "unknown experiment 'nonsense'"),
        (["run", "--batch", "8"], "no experiment"),
        ([], "no command"),
    ],
)
def test_a_mistake_in_a_command_gets_a_one_line_message(typed, said):
    with pytest.raises(InterpError) as error:
        Request.from_argv(typed)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"experiment": "x", "drawing": {"lenght": 3}}, "lenght"),
        ({"experiment": "x", "drawing": {"length": "long"}}, "length"),
        ({"model": {"name": "gpt2"}}, "experiment"),
        ("no json", "JSON"),
    ],
)
def test_invalid_request_json_is_refused_in_one_line(value, said):
    with pytest.raises(InterpError, match=said) as error:
        Request.from_json(value)
    assert "\n" not in str(error.value)


def test_a_protocol_contradicts_what_it_fixes():
    """Defect: `protocol="article"` ran with seed 42 and batch 1, whatever was requested."""
    assert Request.of("repeated_tokens", protocol="article").in_force()["seed"] == 42
    assert Request.of("repeated_tokens", protocol="article", seed=42, batch=1).in_force()["batch"] == 1
    for option in (
        {"seed": 7},
        {"seed": 0},
        {"batch": 8},
        {"length": 10},
        {"copies": 3},
        {"mixed": True},
        {"replacement": False},
    ):
        name = next(iter(option))
        with pytest.raises(InterpError, match=f"'article' has {name}"):
            Request.of("repeated_tokens", protocol="article", **option).in_force()


def test_numpy_numbers_are_accepted():
    request = Request.of("head_ablation", draws=np.int64(3), heads=(np.int64(1), 2))
    assert request.parameters == {"draws": 3, "heads": [1, 2]}


@pytest.mark.experiment
def test_a_result_can_be_typed_again(wired, tmp_path):
    made = interp.run("logit_lens", wired, ["a=1:30", "30:60"], batch=3, length=6, seed=5, out=tmp_path)
    request = Request.from_json(interp.provenance(made)["request"])
    assert request == Request.of("logit_lens", model="wired", pools=["a=1:30", "30:60"], batch=3, length=6, seed=5)
    again = interp.run_request(Request.from_argv(request.to_argv()))
    assert again.identical(made)
