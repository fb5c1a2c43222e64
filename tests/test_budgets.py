"""Does a budget change only the amount of work, and does a result record what it set?"""

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import budgets, results, views
from interp.catalog import find, names, parameters
from interp.errors import InterpError
from interp.report.sections import sections
from interp.request import Drawing, Request

QUIET = {"log": lambda line: None}


def test_every_budget_names_options_that_exist():
    for name in names():
        for budget in ("quick", "thorough"):
            found = budgets.defaults(find(name), budget)
            assert set(found) <= {*parameters(find(name)), *Drawing.model_fields}, name
    assert budgets.defaults(find("induction_heads"), "standard") == {}


def test_small_models_have_the_standard_budget(organism):
    assert budgets.budget_in_force("auto", organism) == "standard"
    assert budgets.budget_in_force("quick", organism) == "quick"


def test_a_large_model_on_a_cpu_has_the_quick_budget(organism, monkeypatch):
    monkeypatch.setattr(budgets, "LARGE", 1000)
    assert budgets.budget_in_force("auto", organism) == "quick"
    found = interp.run("repeated_tokens", organism, ["ordinary"], **QUIET)
    record = results.provenance(found)
    assert record["budget"] == {"name": "quick", "decides": {"batch": 16}}
    assert found.sizes["batch"] == record["sequences"]["batch"] == 16
    said = "\n".join(str(line) for line in views.tables(found))
    assert "Budget 'quick': batch 16 (--budget asks for another)." in said


def test_explicit_options_override_the_budget(organism):
    found = interp.run("head_ablation", organism, ["ordinary"], budget="quick", batch=5, **QUIET)
    record = results.provenance(found)
    assert (record["sequences"]["batch"], record["parameters"]["draws"]) == (5, 2)
    assert record["budget"]["decides"] == {"draws": 2}
    assert "budget" not in results.provenance(interp.run("logit_lens", organism, ["ordinary"], batch=2, **QUIET))


def test_a_budget_of_fewer_sequences_takes_the_first_of_more(organism):
    quick, standard = (
        interp.run("repeated_tokens", organism, ["ordinary"], budget=budget, **QUIET)["log_prob"]
        for budget in ("quick", "standard")
    )
    assert standard.sizes["batch"] == 64
    np.testing.assert_allclose(quick, standard.isel(batch=slice(0, 16)), atol=1e-4)


def test_a_budget_may_have_shorter_blocks(organism):
    found = interp.run("activation_patching", organism, ["ordinary"], budget="quick", batch=2, sequences=1, **QUIET)
    assert results.provenance(found)["sequences"]["length"] == 10
    assert "fitted_to" not in results.provenance(found)["sequences"]


def test_the_article_protocol_keeps_its_single_sequence(organism):
    found = interp.run("repeated_tokens", organism, ["400:500"], protocol="article", budget="thorough", **QUIET)
    assert found.sizes["batch"] == 1


def test_a_budget_is_part_of_a_request():
    request = Request.of("logit_lens", budget="thorough")
    assert Request.from_argv(request.to_argv()) == Request.from_json(request.to_json()) == request
    with pytest.raises(InterpError, match="budget 'huge': use 'auto', 'quick', 'standard' or 'thorough'"):
        Request.of("logit_lens", budget="huge")


def test_a_quick_report_attributes_whole_blocks():
    (causes,) = [section for section in sections() if section.name == "causes"]
    assert causes.request.drawing.mixed
    assert not causes.quick.drawing.mixed
    assert causes.quick.experiment == causes.request.experiment


def test_budgets_of_a_users_file(tmp_path, organism):
    path = tmp_path / "mine.py"
    path.write_text(
        "import interp, torch\n"
        'BUDGETS = {"quick": {"batch": 3, "draws": 2}}\n'
        "def mine(model, tokens, *, draws=7):\n"
        '    return interp.label("draws", torch.full((len(tokens.ids),), float(draws)), "batch")\n'
    )
    found = interp.run(f"{path}:mine", organism, ["ordinary"], budget="quick", **QUIET)
    assert found["draws"].values.tolist() == [[2.0, 2.0, 2.0]]
    path.write_text(path.read_text().replace('{"quick": {"batch": 3, "draws": 2}}', '{"quick": 3}'))
    with pytest.raises(InterpError, match="give a mapping from quick and thorough to options"):
        interp.run(f"{path}:mine", organism, ["ordinary"], budget="quick", **QUIET)


# the variable of each experiment's intervals, and the dimension of its samples
SAMPLED = {
    "repeated_tokens": ("log_prob", "batch"),
    "attention_scores": ("score", "batch"),
    "induction_heads": ("score", "batch"),
    "head_ablation": ("lost", "batch"),
    "head_attribution": ("lost", "batch"),
    "logit_attribution": ("by_head", "batch"),
    "logit_lens": ("log_prob_after", "batch"),
    "path_patching": ("clean", "batch"),
    "edge_attribution": ("clean", "batch"),
    "score_attribution": ("score", "batch"),
    "embedding_repair": ("log_prob", "batch"),
}

# slow options that do not affect the compared numbers
LESS = {
    "edge_attribution": {"steps": 2, "sizes": 3, "draws": 1},
    "induction_heads": {"windows": 20, "baseline_draws": 20},
}


@pytest.mark.comparison
@pytest.mark.parametrize(
    "experiment",
    [  # the two that take ten seconds and more by hand
        pytest.param(name, marks=[pytest.mark.everything] if name in ("edge_attribution", "embedding_repair") else [])
        for name in SAMPLED
    ],
)
def test_quick_and_thorough_agree_within_their_intervals(organism, experiment):
    """Of 95% intervals of the quick budget, nearly all cover what four times as many sequences say."""
    name, dim = SAMPLED[experiment]
    # other sequences: those of the quick run would be among the first of the larger one
    trained = experiment == "embedding_repair"  # what rows become depends on how long they are trained
    pools, more = (["unexposed"], {"steps": 20}) if trained else (["ordinary"], LESS.get(experiment, {}))
    quick = interp.run(experiment, organism, pools, budget="quick", batch=16, seed=3, **QUIET)[name]
    thorough = interp.run(experiment, organism, pools, budget="thorough", batch=64, **more, **QUIET)[name]
    if trained:
        quick, thorough = (x.sel(repair=["none", "mean"]) for x in (quick, thorough))
    quick, thorough = xr.align(quick, thorough, join="inner", exclude={dim})  # budgets may ask for fewer heads
    quick, thorough = (x.transpose(dim, ...).values.reshape(x.sizes[dim], -1) for x in (quick, thorough))
    kept = np.isfinite(quick).all(0) & np.isfinite(thorough).all(0) & (thorough.std(0) > 1e-6)
    apart = quick[:, kept].mean(0) - thorough[:, kept].mean(0)
    error = np.sqrt(quick[:, kept].var(0, ddof=1) / len(quick) + thorough[:, kept].var(0, ddof=1) / len(thorough))
    assert kept.sum()
    assert (np.abs(apart) < 2.13 * error + 1e-5).mean() > 0.85


@pytest.mark.experiment
def test_in_context_windows_of_a_budget_are_among_the_others(organism):
    from interp.texts import text_windows

    few, many = (text_windows(organism, "", 50, n) for n in (3, 5))
    assert torch.equal(few[0], many[0])
    assert torch.equal(few[-1], many[-1])


@pytest.mark.experiment
def test_a_text_is_tokenized_once_for_a_tokenizer_and_anew_for_another_or_when_it_changes(
    organism, tiny_gpt2, tmp_path
):
    from tokenizers.normalizers import Lowercase

    from interp import models, texts

    path = tmp_path / "text.txt"
    path.write_text("def First(a, b):\n    return a + b\n" * 20)
    one = texts.text_windows(organism, str(path), 8, 2)
    known = len(texts._known)
    assert torch.equal(
        texts.text_windows(models.load(tiny_gpt2), str(path), 8, 2)[:, 1:], one[:, 1:]
    )  # the same tokenizer
    assert len(texts._known) == known
    lower = models.load("organism")
    for tokenizer in (models.published_tokenizer(lower), lower.tokenizer):
        tokenizer.backend_tokenizer.normalizer = Lowercase()
    assert not torch.equal(texts.text_windows(lower, str(path), 8, 2), one)
    path.write_text("class Second:\n    pass\n" * 20)
    assert not torch.equal(texts.text_windows(organism, str(path), 8, 2), one)
