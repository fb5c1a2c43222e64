"""Is count lost where repeats are made to look like a first position, by which cause, and nowhere else?"""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

import interp
from interp import models, views
from interp.errors import InterpError
from interp.experiments.repeated_token import experiment
from interp.experiments.repeated_token.experiment import fall_of, log_grid
from interp.experiments.repeated_token.runs import _seen
from interp.measure import log_probs
from interp.results import at_once

QUIET = {"log": lambda line: None}
CODE, MASSIVE = 16, 40


@pytest.fixture(scope="module")
def sinks(tmp_path_factory):
    """A Llama whose first positions and repeats are sinks by hand: dimension 40 is 200 there, and small elsewhere.

    The first layer copies the mean of all tokens' codes so far; the second multiplies it by the token's own code. Both
    are the same when only the token itself came before.
    """
    import transformers

    sizes = {"hidden_size": 48, "intermediate_size": CODE, "num_hidden_layers": 2, "num_attention_heads": 1}
    config = transformers.LlamaConfig(
        vocab_size=64, max_position_embeddings=96, head_dim=48, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None, **sizes,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.LlamaForCausalLM(config)
        codes = torch.randn(64, CODE).sign()
    with torch.no_grad():
        for weight in network.parameters():
            weight.fill_(1.0) if weight.ndim == 1 else weight.zero_()
        network.model.embed_tokens.weight[:, :CODE] = codes
        network.lm_head.weight[:, :CODE] = codes
        first, second = network.model.layers
        first.self_attn.v_proj.weight.copy_(torch.eye(48))
        own = torch.arange(CODE)
        first.self_attn.o_proj.weight[CODE + own, own] = 3**-0.5  # what the norm multiplied by
        second.mlp.gate_proj.weight[own, own] = 2.0
        second.mlp.up_proj.weight[own, CODE + own] = 1.0
        second.mlp.down_proj.weight[MASSIVE] = 200 / (8 * 2 * 1.5)
    path = tmp_path_factory.mktemp("sinks") / "model"
    network.save_pretrained(path)
    return models.load(path)


@pytest.fixture(scope="module")
def found(sinks):
    return interp.run("repeated_token", sinks, {"some": [1, 2, 3, 4]}, reference="8:64", longest=48, **QUIET)


@pytest.mark.experiment
def test_planted_sinks_are_found_with_their_cause(found):
    at = found.isel(pool=0).sel(front="nothing")
    assert found["front"].values.tolist() == ["nothing"]  # there is no BOS
    assert int(at["sink_layer"]) == 1
    assert at["special"].values[1] > 5
    assert found.attrs["massive_dimensions"] == f"after nothing: {MASSIVE}"
    share = at["share"].mean("member").to_series()
    assert share["none"] == pytest.approx(1, abs=1e-5)
    assert share["lone first layer"] == pytest.approx(1, abs=1e-5)  # it is the same
    assert share["repeated first layer"] == pytest.approx(1, abs=0.3)  # decided in the first layer
    assert share["control dimensions"] == pytest.approx(1, abs=0.1)
    assert share["ordinary first layer"] < 0.4
    assert share["massive dimensions"] < 0.4
    gained = at["log_prob"].isel(repeats=-1).mean("member")
    assert gained.sel(change="massive dimensions") - gained.sel(change="none") > 0.5
    assert abs(gained.sel(change="control dimensions") - gained.sel(change="none")) < 0.1
    assert "the last repeat is like a first position (norm 1.00" in found.attrs["verdict"]


@pytest.mark.experiment
def test_with_nothing_in_front_rotary_positions_cannot_count(found, sinks):
    """Every key holds the same value: each repeat is what the first is, exactly."""
    at = found.isel(pool=0).sel(front="nothing")
    assert np.ptp(at["log_prob"].sel(change="none").values, axis=-1).max() < 1e-5
    np.testing.assert_allclose(at["norm"], at["first_norm"].expand_dims(repeats=at["repeats"], axis=-1), rtol=1e-5)
    np.testing.assert_allclose(at["cosine"], 1, atol=1e-6)
    assert (at["other_cosine"] < 0.9).all()
    assert "it does not fall" in found.attrs["verdict"]
    np.testing.assert_allclose(at["attention_first"].sel(layer=0), 1 / np.tile(at["repeats"], (4, 1)), rtol=1e-5)


@pytest.mark.experiment
def test_learned_positions_count_and_a_first_position_that_is_not_special_is_not_testable(tiny_gpt2):
    model = models.load(tiny_gpt2)
    made = interp.run("repeated_token", model, ["3:6"], reference="8:1000", longest=12, **QUIET)
    at = made.isel(pool=0).sel(front="nothing")
    assert np.ptp(at["log_prob"].sel(change="none").values, axis=-1).min() > 1e-3
    assert np.isnan(made["share"]).all()
    assert "whether repeats are sinks is not testable: the first position is not special" in made.attrs["verdict"]
    assert set(views.figures(made)) == {"log_prob_by_repeats", "norm_by_repeats"}


def test_places_alone_give_the_log_probs_of_a_whole_run(organism):
    ids = torch.arange(5, 47).reshape(2, 21)
    at = torch.tensor([3, 9, 19])
    seen = _seen(organism, ids, at, ids[:, at + 1])
    whole = log_probs(organism(ids, return_type="logits", prepend_bos=False), ids)[:, at + 1]
    np.testing.assert_allclose(seen["log_prob"], whole.detach(), atol=1e-5)


def test_a_fall_is_found_only_where_it_is_planted():
    grid = log_grid(64)
    assert grid.tolist() == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    rng = np.random.default_rng(0)
    planted = np.where(grid <= 8, -6 / grid, -6 / 8 - 4.0 * (grid > 16))  # rises, then four nats lower after 16
    values = (planted + 0.1 * rng.normal(size=(8, len(grid))))[None, None]
    fall = fall_of(values)
    assert fall.mean() == pytest.approx(4, abs=0.15)
    assert experiment._lost_from(values, fall, grid) == 24
    # without one, the peak of the other half is no peak of its own: the mean is 0 over many draws
    none = rng.normal(size=(2000, 1, 4, 12))
    assert abs(fall_of(none).mean()) < 0.03
    assert np.isnan(fall_of(values[:, :, :1])).all()


@pytest.mark.experiment
def test_blocks_are_copied_and_parts_are_kept(wired, monkeypatch):
    """wired copies blocks, and is certain; what was measured is not measured again."""
    kept = {}

    def keep(name, make):
        return kept.setdefault(name, make())

    pools = [interp.Pool("some", tuple(range(4, 12)))]
    options = {"reference": "1:65", "longest": 16, "block": 4}
    first = experiment.repeated_token(wired, pools, keep, **options)
    at = first.sel(front="BOS").isel(pool=0)
    np.testing.assert_allclose(at["log_prob"].sel(change="none", repeats=1), -np.log(65), atol=1e-3)
    ids = torch.tensor([[wired.tokenizer.bos_token_id, *[token] * 16] for token in at["token_id"].values])
    plain = log_probs(wired(ids, return_type="logits", prepend_bos=False), ids).detach()
    np.testing.assert_allclose(at["log_prob"].sel(change="none", repeats=12), plain[:, 13], atol=1e-5)
    np.testing.assert_allclose(at["block_log_prob"].sel(repeats=slice(6, None)), 0, atol=1e-3)
    assert np.isnan(at["block_log_prob"].sel(repeats=slice(None, 3))).all()
    assert set(kept) == {
        f"{what} after {front}" for what in ("ordinary tokens", "some") for front in ("nothing", "BOS")
    }

    def none(*_):
        raise AssertionError("is measured again")

    monkeypatch.setattr(experiment, "measured", none)
    again = experiment.repeated_token(wired, pools, lambda name, make: kept[name], **options)
    assert again.identical(first)
    with pytest.raises(AssertionError, match="measured again"):
        experiment.repeated_token(wired, pools, at_once, **options)


@pytest.mark.experiment
def test_the_table_reports_the_verdict(found):
    said = io.StringIO()
    for line in views.tables(found):
        Console(file=said, width=160).print(line)
    assert "some after nothing: log-prob" in said.getvalue()
    assert set(views.figures(found)) == {"log_prob_by_repeats", "norm_by_repeats", "changes_at_repeats"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"longest": 600}, "600 repeats .* do not fit the context of 512: use a longest of 511 or less"),
        ({"members": 0}, "members 0, .* use a positive integer"),
        ({"block": 1}, "block 1"),
        ({"longest": 1}, "longest 1: use"),
        ({"batch": 4}, "draws no repeated sequences: leave batch out"),
    ],
)
def test_invalid_requests_are_refused_in_one_line(organism, options, said):
    with pytest.raises(InterpError, match=said):
        interp.run("repeated_token", organism, ["ordinary"], **options, **QUIET)
