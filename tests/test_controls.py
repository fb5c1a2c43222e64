"""Do the trained controls show what is known beforehand, and do the docs report their stored results?"""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

import interp
from interp import cache, controls, results, views
from interp.argmax import argmaxability
from interp.cli import app
from interp.controls.drawn_tables import study as tables
from interp.controls.drawn_tables.view import PROMISED
from interp.controls.factorised_unembedding import study as ranks
from interp.controls.factorised_unembedding.view import never_first
from interp.errors import InterpError
from interp.organisms import LEXINVARIANT, description, exposure, factorised, folder, is_lexinvariant
from interp.organisms.drawn_rows import drawn_table, logits_by_rows, renumbered, training_rows
from interp.organisms.recipe import RECIPES, Phase, Recipe, fresh_model
from interp.statistics import mean_interval, wilson_interval
from interp.tokens import Pool, repeated

ROOT = Path(__file__).parent.parent
STORED = {
    "lexinvariance": ROOT / "interp/controls/drawn_tables/tables.nc",
    "unembedding_ranks": ROOT / "interp/controls/factorised_unembedding/ranks.nc",
}


@pytest.fixture(scope="module")
def lexinvariant():
    return interp.load(LEXINVARIANT)


@pytest.fixture(scope="module")
def stored():
    return {name: results.load(path) for name, path in STORED.items()}


@torch.no_grad()
def copied(model, pool, batch=8):
    """Mean log-prob of the tokens that context can tell, and the share that is right."""
    tokens = repeated(pool, batch=batch, length=25, bos=2047, seed=4321)
    logits = model(tokens.ids)[:, :-1]
    scores = torch.log_softmax(logits, -1).gather(-1, tokens.ids[:, 1:, None])[..., 0]
    right = logits.argmax(-1) == tokens.ids[:, 1:]
    known = torch.as_tensor(tokens.inducible)[1:]
    return float(scores[:, known].mean()), float(right[:, known].float().mean())


# --- rows that are drawn ----------------------------------------------------------------------------------------------


def test_every_sequence_of_training_has_rows_of_its_own():
    rows = training_rows(0, 5, 3, 200, 128)
    assert torch.equal(rows, training_rows(0, 5, 3, 200, 128))
    assert not torch.equal(rows, training_rows(0, 6, 3, 200, 128))
    assert not torch.equal(rows, training_rows(1, 5, 3, 200, 128))
    cosine = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=1)
    assert cosine.abs().max() < 0.5
    assert rows.pow(2).sum(-1).mean() == pytest.approx(1, abs=0.02)
    # evaluation uses a table that training never saw
    assert torch.nn.functional.cosine_similarity(rows[0], drawn_table(5, 200, 128), dim=1).abs().max() < 0.5


def test_numbers_encode_only_which_tokens_are_equal():
    ids = np.array([[9, 4, 9, 2], [7, 7, 7, 7]])
    assert renumbered(ids).tolist() == [[2, 1, 2, 0], [0, 0, 0, 0]]


TINY = dataclasses.replace(
    RECIPES[LEXINVARIANT],
    phases=(Phase(2, 17, 4, 0.5, shortest=3, rows=20),),
    circuit=0.0,
    d_model=16,
    d_mlp=32,
    context=32,
    vocabulary=50,
)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@torch.no_grad()
def test_logits_by_rows_are_those_of_a_tied_model_with_that_table(architecture):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = fresh_model(dataclasses.replace(TINY, architecture=architecture), bos=49).eval()
    rows = training_rows(0, 0, 2, 50, 16)
    ids, position = torch.arange(20).reshape(2, 10), torch.arange(10).expand(2, 10)
    found = logits_by_rows(network, ids, position, rows)
    for sequence in (0, 1):
        network.get_input_embeddings().weight.copy_(rows[sequence])
        expected = network(ids[sequence : sequence + 1]).logits[0]
        assert torch.allclose(found[sequence], expected, atol=1e-5)


@torch.no_grad()
def test_a_begun_circuit_copies_at_full_strength_and_not_at_that_of_the_recipe():
    recipe = dataclasses.replace(RECIPES[LEXINVARIANT], context=64)
    tokens = repeated(Pool("some", tuple(range(2000))), batch=4, length=25, bos=2047)
    known = torch.as_tensor(tokens.inducible)[1:]
    right = {}
    for strength in (recipe.circuit, 1.0):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = fresh_model(dataclasses.replace(recipe, circuit=strength), bos=2047).eval()
        network.get_input_embeddings().weight.copy_(drawn_table(1, 2048, recipe.d_model))
        hits = network(tokens.ids).logits[:, :-1].argmax(-1) == tokens.ids[:, 1:]
        right[strength] = float(hits[:, known].float().mean())
    assert right[recipe.circuit] < 0.1
    assert right[1.0] > 0.9


@pytest.mark.training
def test_no_row_is_trained_and_all_else_is(tmp_path):
    from interp.organisms.batches import Batches
    from interp.organisms.corpus import corpus
    from interp.organisms.training import Training
    from interp.organisms.vocabulary import train_tokenizer

    text = corpus()
    small = dataclasses.replace(text, seen=text.seen[:120:3])
    recipe = dataclasses.replace(TINY, vocabulary=700, canaries_per_dose=2, doses=(0, 1, 3), ordinary=0)
    run = Training(recipe, Batches(recipe, small, *train_tokenizer(small.seen, 700, 6, 0)), "text")
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    for step in (0, 1):
        run.advance(step)
    same = [name for name, value in run.model.state_dict().items() if torch.equal(value, before[name])]
    assert same == ["transformer.wte.weight", "lm_head.weight"]
    assert torch.equal(before["transformer.wte.weight"], drawn_table(0, 700, 16))


# --- the bundled model ------------------------------------------------------------------------------------------------


def test_the_bundled_model_is_what_its_recipe_says():
    place = folder(LEXINVARIANT)
    assert sum(file.stat().st_size for file in place.iterdir()) < 3e6
    record = json.loads((place / "training.json").read_text())
    words = dict(record["recipe"])
    phases = tuple(Phase(**phase) for phase in words.pop("phases"))
    words = {name: tuple(value) if isinstance(value, list) else value for name, value in words.items()}
    assert Recipe(phases=phases, **words) == RECIPES[LEXINVARIANT]
    assert all(record["measured"]["bars"].values())
    assert record["corpus_sha256"] in (place / "README.md").read_text()
    weights = load_file(place / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert torch.equal(weights["transformer.wte.weight"].float(), drawn_table(0, 2048, 192))
    assert is_lexinvariant(LEXINVARIANT)
    assert not is_lexinvariant("organism")
    assert not is_lexinvariant("no such folder")
    assert "drawn anew" in description(LEXINVARIANT)
    assert {len(ids) for ids in exposure(LEXINVARIANT).doses.values()} == {10}


@pytest.mark.experiment
def test_all_tokens_are_copied_alike_with_tables_that_no_training_saw(lexinvariant):
    known = exposure(LEXINVARIANT)
    often, never = (Pool(name, ids) for name, ids in (("often", known.between(200)), ("never", known.between(0, 0))))
    assert min(len(often), len(never)) >= 25
    try:
        for seed in (0, 1, 2):
            controls.redraw(lexinvariant, seed)
            for pool in (often, never):
                log_prob, right = copied(lexinvariant, pool)
                assert log_prob > -0.3, (seed, pool.name)
                assert right > 0.95
    finally:
        controls.redraw(lexinvariant, 0)


def test_another_table_is_put_in_place_and_the_first_one_comes_back(lexinvariant):
    weight = lexinvariant.original_model.get_input_embeddings().weight
    first = weight.detach().clone()
    controls.redraw(lexinvariant, 3)
    assert torch.equal(weight.detach(), drawn_table(3, *weight.shape))
    controls.redraw(lexinvariant, 0)
    assert torch.equal(weight.detach(), first)


def test_a_model_that_knows_its_tokens_needs_its_own_rows():
    """The control: claims about drawn tables hold only for a model that was trained on them."""
    model = interp.load("organism")
    often = Pool("often", exposure("organism").between(200))
    with pytest.raises(InterpError, match="is not lexinvariant"):
        controls.redraw(model, 1)
    assert copied(model, often)[1] > 0.97
    controls.redraw(model, 1, control=True)
    assert copied(model, often)[1] < 0.2  # 0.11
    with pytest.raises(InterpError, match="not tied"):
        controls.redraw(interp.load("wired"), 1, control=True)


# --- verdicts over drawn tables ---------------------------------------------------------------------------------------


def test_verdicts_map_to_outcomes():
    assert tables.outcome("no deficit: 0.01 nats (-0.02 .. 0.04)", -0.02) == "no deficit"
    assert tables.outcome("cannot tell: the deficit is 0.09", -0.1) == "cannot tell"
    assert tables.outcome("cannot tell: no share is ...", 0.2) == "deficit claimed"
    assert tables.outcome("content 0.50 of 0.60 nats", 0.5) == "stage claimed"


def test_no_pool_has_a_deficit_over_drawn_tables(stored):
    found = stored["lexinvariance"]
    assert found.sizes["table"] == 20
    claimed = 0
    for pool in found["pool"].values:
        at = found.sel(pool=pool)
        mean, low, high = mean_interval(at["deficit"].values)
        assert low <= 0 <= high, (pool, mean, low, high)
        assert at["log_prob"].min() > -0.3  # and they are copied
        claimed += int((at["outcome"] >= tables.OUTCOMES.index("deficit claimed")).sum())
    assert wilson_interval(claimed, found["outcome"].size)[0] <= PROMISED
    # and the method is not blind on this model
    said = found["planted_outcome"].values[found["planted_outcome"].values >= 0]
    assert len(said) >= 3
    assert (said >= tables.OUTCOMES.index("deficit claimed")).all()


@pytest.mark.causes
def test_one_of_the_stored_tables_is_measured_again(stored, tmp_path):
    found = controls.lexinvariance(tmp_path, tables=2, planted_tables=0, pools=["canaries"], log=lambda _: None)
    expected = stored["lexinvariance"].sel(pool="canaries")
    # the sequences of a pool do not depend on what other pools there are
    assert found["deficit"].isel(pool=0).values == pytest.approx(expected["deficit"].values[:2], abs=0.02)
    assert (found["outcome"].isel(pool=0).values == expected["outcome"].values[:2]).all()
    assert (found["planted_outcome"] == -1).all()
    said = []
    again = controls.lexinvariance(tmp_path, tables=2, planted_tables=0, pools=["canaries"], log=said.append)
    assert again["deficit"].equals(found["deficit"])
    assert len(said) == 2  # both were there


def test_invalid_numbers_of_tables_are_refused(tmp_path):
    for options in ({"tables": 1}, {"tables": 4, "planted_tables": 5}, {"planted_tables": -1}):
        with pytest.raises(InterpError, match="use at least 2 tables"):
            controls.lexinvariance(tmp_path, **options)
    with pytest.raises(InterpError, match="is not lexinvariant"):
        controls.lexinvariance(tmp_path, model="organism", tables=2, planted_tables=0)


# --- output layers of few dimensions ----------------------------------------------------------------------------------


def test_rows_in_random_directions_are_as_long_as_they_were():
    rows = np.random.default_rng(0).normal(size=(50, 4)) * np.arange(1, 51)[:, None]
    drawn = ranks.random_directions(rows, 0)
    assert np.linalg.norm(drawn, axis=1) == pytest.approx(np.linalg.norm(rows, axis=1))
    assert not np.allclose(drawn, rows)


def tiny_factorised(kind, rank=4):
    shared = dataclasses.replace(factorised.shared_recipe(), vocabulary=300)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return factorised.FactorisedModel(factorised.FactorisedRecipe(rank, kind, shared), bos=299).eval()


@torch.no_grad()
def test_logits_are_those_of_a_matrix_of_that_rank():
    ids = torch.arange(12).reshape(2, 6)
    for kind in factorised.KINDS:
        model = tiny_factorised(kind)
        logits = model(ids)
        assert logits.shape == (2, 6, 300)
        centred = logits.flatten(0, 1) - (0 if model.up.bias is None else model.up.bias)
        assert torch.linalg.matrix_rank(centred) <= 4
        assert (model.up.bias is not None) == (kind == "bias")
        lengths = model.rows.norm(dim=1)
        assert torch.allclose(lengths, torch.ones(300), atol=1e-6) == (kind == "unit")


def test_of_unit_rows_every_one_can_win_and_of_others_of_few_dimensions_hardly_any():
    counts = {}
    for kind in ("plain", "unit"):
        rows = tiny_factorised(kind).rows.detach().double().numpy()
        counts[kind] = (argmaxability(rows)["verdict"] != "argmaxable").sum()
    assert counts["unit"] == 0
    assert counts["plain"] > 200


@pytest.mark.training
def test_a_short_series_resumes_where_it_stopped(tmp_path):
    from interp.organisms.corpus import corpus

    text, out = tmp_path / "text", tmp_path / "out"
    text.mkdir()
    for i, piece in enumerate(corpus().seen[::8]):
        (text / f"{i}.py").write_text(piece)
    said = []
    options = {"ranks": (4,), "shorten": 300, "text": text, "log": said.append}
    found = controls.unembedding_ranks(out, **options)
    assert said == []
    assert dict(found.sizes) == {"kind": 3, "unembedding_rank": 1, "rows": 2, "token": 2048, "window": 256, "code": 4}
    assert not never_first(found).sel(kind="unit").any()
    (out / "rank-4-bias" / "result.nc").unlink()
    again = controls.unembedding_ranks(out, **options)
    assert [line.split(":")[0] for line in said] == ["rank-4-plain", "rank-4-unit"]
    assert again.drop_attrs().equals(found.drop_attrs())  # the same bits


def test_unit_rows_are_as_long_as_double_precision_can_tell():
    model = tiny_factorised("unit")
    assert (model.exact_rows.norm(dim=1) - 1).abs().max() < 1e-15
    assert (model.rows.double().norm(dim=1) - 1).abs().max() > 1e-9  # single precision: rounded
    assert torch.allclose(model.exact_rows, model.rows.double(), atol=1e-7)


def test_the_stored_series_has_its_known_properties(stored):
    found, never = stored["unembedding_ranks"], never_first(stored["unembedding_ranks"])
    assert found["unembedding_rank"].values.tolist() == list(factorised.RANKS)
    assert (found["verdict"] != list(found["verdicts"].values).index("undecided")).all()
    assert not never.sel(kind="unit").any()  # a row of length 1 puts its own token first
    count = never.sum("token")
    for kind in ("plain", "bias"):
        assert (np.diff(count.sel(kind=kind, rows="trained").values) <= 0).all()
        loss = found["loss"].sel(kind=kind).mean("window").values
        assert (np.diff(loss) < 0).all()
        assert loss[0] < float(found["unigram_loss"])
    assert int(found["exposure"].sum()) == 600 * 8 * 65
    assert int(found["heldout_count"].sum()) == found.sizes["window"] * 64


@pytest.mark.experiment
def test_parts_of_a_series_are_keyed_by_everything_that_determines_them():
    def digest(**changes):
        shared = dataclasses.replace(factorised.shared_recipe(shorten=300), **changes)
        asked = factorised.FactorisedRecipe(4, "plain", shared).described()
        return cache.code_key(ranks._measured, {"recipe": asked, "corpus_sha256": "x"}).digest

    assert digest() is not None
    assert digest() == digest()
    assert digest() != digest(seed=1)
    assert digest() != digest(learning_rate=1e-4)


def test_invalid_ranks_are_refused(tmp_path):
    with pytest.raises(InterpError, match="rank 65: use numbers from 1 to 64"):
        controls.unembedding_ranks(tmp_path, ranks=(4, 65))
    with pytest.raises(InterpError, match="cannot shorten the training by 0"):
        controls.unembedding_ranks(tmp_path, shorten=0)


# --- the command and the docs -----------------------------------------------------------------------------------------


def test_options_of_the_other_study_are_refused(tmp_path):
    for name, words in (("lexinvariance", ["--shorten", "3"]), ("unembedding_ranks", ["--tables", "3"])):
        done = CliRunner().invoke(app, ["organism", "study", name, "--out", str(tmp_path), *words])
        assert done.exit_code == 1
        assert f"{words[0]} is not an option of {name}: leave it out" in done.output


@pytest.mark.parametrize("name", list(STORED))
def test_a_stored_result_shows(name, stored):
    drawn = views.figures(stored[name], log=pytest.fail)
    assert list(drawn) == [figure.__name__ for figure in views.view_of(stored[name]).FIGURES]
    assert STORED[name].stat().st_size < 1e6
    assert results.provenance(stored[name])["experiment"] == name


@pytest.mark.experiment
def test_the_page_matches_the_stored_results():
    page = (ROOT / "docs/controls.md").read_text()
    shown = re.findall(r"```sh\ninterp show (\S+)\n```\n```text\n(.*?)```", page, re.S)
    assert [path for path, _ in shown] == [str(path.relative_to(ROOT)) for path in STORED.values()]
    for path, text in shown:
        console = Console(width=165, file=io.StringIO())
        for line in views.tables(results.load(ROOT / path)):
            console.print(line)
        printed = {" ".join(line.split()) for line in console.file.getvalue().splitlines()}
        missing = [line for line in text.splitlines() if " ".join(line.split()) not in printed]
        assert not missing, missing[0]
