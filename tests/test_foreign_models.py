"""What happens when an experiment of the package meets a model that its authors never ran?"""

import pytest

import interp
from interp import models
from interp.errors import InterpError


def _broken(*args, **kwargs):
    raise AttributeError("'Mixer' object has no attribute 'q'\nand more")


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setattr("interp.experiments.repeated_tokens.experiment.passes", _broken)


@pytest.mark.experiment
def test_an_exception_on_a_foreign_model_is_a_one_line_message(broken, tiny_gpt2):
    with pytest.raises(InterpError) as error:
        interp.run("repeated_tokens", models.load(tiny_gpt2), ["5:40"], batch=2)
    said = str(error.value)
    assert said.startswith("repeated_tokens does not run on this model (AttributeError: 'Mixer' object has no")
    assert said.endswith(f"'interp check {tiny_gpt2}' says what holds on it")
    assert "\n" not in said
    assert isinstance(error.value.__cause__, AttributeError)


def test_an_exception_on_a_bundled_model_keeps_its_traceback(broken, organism):
    with pytest.raises(AttributeError, match="Mixer"):
        interp.run("repeated_tokens", organism, ["5:40"], batch=2)


def test_an_exception_of_a_users_experiment_stays_as_it_is(tiny_gpt2):
    def mine(model, tokens):
        """Mine."""
        raise AttributeError("my own")

    with pytest.raises(AttributeError, match="my own"):
        interp.run(mine, models.load(tiny_gpt2), ["5:40"], batch=2)
