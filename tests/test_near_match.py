"""Is a near token matched exactly where the weights of a hand-wired model say?"""

import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import models, views
from interp.errors import InterpError
from interp.experiments.near_match.experiment import names_of, verdict, written_otherwise
from interp.statistics import mean_interval

A, NEAR, OTHER = 5, 6, 7  # of the hand-wired model
UNIFORM = -math.log(65)


@contextmanager
def leaning(model, cosine):
    """NEAR's token direction leans towards that of A: their cosine is `cosine`.

    Its length stays 1 and so does its sum, by some of OTHER, so that the norm only scales, as for all other tokens. The
    score of the right key is 4,000 times the cosine, that of the first position 2,000 times sqrt(14 / 8), since nothing
    is written there and the norm divides by less: matching begins at a cosine of sqrt(7) / 4 = 0.661.
    """
    weight = model.original_model.get_input_embeddings().weight
    before = weight.detach().clone()
    with torch.no_grad():
        rest = 1 - cosine
        root = math.sqrt(rest**2 + 4 * cosine * rest)
        weight[NEAR, [A - 1, NEAR - 1, OTHER - 1]] = torch.tensor([cosine, (rest + root) / 2, (rest - root) / 2])
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def asked(model, pools, **options):
    options = {"batch": 6, "length": 12, "neighbours": 2, "reference": "10:65"} | options
    return interp.run("near_match", model, pools, **options)


@pytest.mark.parametrize(("cosine", "matched"), [(0.45, False), (0.65, False), (0.68, True), (0.95, True)])
def test_a_near_token_is_matched_beyond_the_cosine_that_the_weights_say(wired, cosine, matched):
    with leaning(wired, cosine):
        at = asked(wired, {"one": [A]}).isel(pool=0)
    nearest = at.sel(likeness="input 1")
    assert (nearest.match_id == NEAR).all()
    # each row has a 1 for its token, and a -1 that balances it
    assert nearest.cosine_in.values == pytest.approx((cosine + 1) / 2, abs=1e-5)
    assert at.log_prob.sel(likeness="exact").values == pytest.approx(0, abs=1e-5)
    assert nearest.log_prob.values == pytest.approx(0 if matched else UNIFORM, abs=1e-4)
    assert at.log_prob.sel(likeness="far").values == pytest.approx(UNIFORM, abs=1e-4)


def test_varying_log_probs_get_an_interval_and_a_verdict():
    rng = np.random.default_rng(0)
    names = names_of(1)

    def said(**levels):
        values = np.full((len(names), 40), np.nan)
        for name, level in ({"exact": -1.0, "far": -6.0, "input 1": -6.0} | levels).items():
            values[names.index(name.replace("_", "-"))] = level
        noise = 0.1 * rng.standard_normal(values.shape)
        return verdict(xr.DataArray(values + noise, dims=("likeness", "batch"), coords={"likeness": names}))

    assert "near-duplicates: there are none; nearest neighbours do not match" in said()
    assert "near-duplicates match as well as the token itself: they lose" in said(near_duplicate=-1.0)
    assert "near-duplicates match in part: they lose 1.99 nats" in said(near_duplicate=-3.0)
    assert "nearest neighbours match as well" in said(**{"input 1": -1.0})
    assert said(exact=-6.0).startswith("not testable: the exact repeat is not shown to be copied")
    assert "near-duplicates" not in said(exact=-6.0, near_duplicate=-6.0)  # nothing is matched


def test_few_equal_sequences_give_no_verdict():
    names = names_of(1)
    same = xr.DataArray(np.zeros((len(names), 4)), dims=("likeness", "batch"), coords={"likeness": names})
    assert verdict(same).startswith("not testable: the exact repeat is not shown to be copied; it gains 0.00 nats (no")


def test_near_duplicates_of_the_wired_model_match_each_other(wired):
    """Two rows that nearly coincide: each copies what followed the other."""
    with leaning(wired, 0.999):
        at = asked(wired, {"two": [A, NEAR]}, batch=8).isel(pool=0)
    assert set(at.source_id.values.tolist()) == {A, NEAR}
    twin = at.sel(likeness="near-duplicate")
    # of what stands in the sequence none is taken: there A and its twin are the only two
    assert (twin.match_id.values == np.where(at.source_id == A, NEAR, A)).all()
    assert twin.log_prob.values == pytest.approx(0, abs=1e-4)
    assert at.log_prob.sel(likeness="same pool").isnull().all()  # no other one is missing


def test_sequences_have_their_documented_layout(wired):
    """The same ordinary tokens for each pool; A once; nothing that is compared is there already."""
    from interp.experiments.near_match.experiment import _sequences
    from interp.tokens import Pool, repeated

    blocks = repeated(Pool("ordinary", tuple(range(10, 65))), batch=20, length=9, bos=0)
    one, two = (list(_sequences(Pool("p", ids), blocks, 3, 0)) for ids in ((1, 2, 3), (4, 12)))
    for (prefix, a, b), (other, c, _) in zip(one, two, strict=True):
        block, cue = prefix[1:10], prefix[10:]
        at = int((block == a).nonzero())
        assert 3 <= at <= 6
        assert int(block[at + 1]) == b
        assert cue.tolist() == block[at - 3 : at].tolist()
        assert (other[1:10] == c).sum() == 1
        same = (other == prefix) | (prefix == a) | (other == c)
        assert same.all() or c == 12  # which may be there already, and is exchanged
    assert {a for _, a, _ in one} == {1, 2, 3}  # they take turns


@pytest.mark.experiment
@pytest.mark.parametrize("bos", ["auto", "none"])
def test_numbers_are_those_of_plain_forward_passes(organism, bos):
    found = interp.run("near_match", organism, ["ordinary"], batch=3, length=8, neighbours=1, bos=bos, cue=2)
    again = interp.run("near_match", organism, ["ordinary"], batch=2, length=8, neighbours=1, bos=bos, cue=2)
    xr.testing.assert_allclose(found.isel(batch=slice(2)), again, atol=1e-5)  # sequence i depends on i alone
    from interp.blocks import repeated
    from interp.experiments.near_match.experiment import _sequences
    from interp.pool_names import pools

    pool = pools("ordinary", organism)[0]
    blocks = repeated(organism, pool, batch=3, length=8, bos=bos)
    for i, (prefix, a, b) in enumerate(_sequences(pool, blocks, 2, 0)):
        at = found.isel(pool=0, batch=i)
        assert (int(at.source_id), int(at.answer_id)) == (a, b)
        for name in found.likeness.values:
            token = int(at.match_id.sel(likeness=name))
            value = float(at.log_prob.sel(likeness=name))
            if token < 0:
                assert math.isnan(value)
                continue
            assert name == "exact" or token not in prefix
            ids = torch.cat([prefix, torch.tensor([token])])[None]
            with torch.no_grad():
                logits = organism(ids, return_type="logits", prepend_bos=False)[0, -1]
            assert value == pytest.approx(float(logits.log_softmax(-1)[b]), abs=1e-3)


def test_neighbours_are_in_order(organism):
    at = interp.run("near_match", organism, ["ordinary"], batch=4, length=8, neighbours=8).isel(pool=0)
    assert at.likeness.values.tolist() == names_of(8)
    assert at.neighbour.values.tolist() == [0, 1, 2, 4, 8, 1, 2, 4, 8, 0, 0, 0, 0, 0]
    for space, cosine in (("input", at.cosine_in), ("output", at.cosine_out)):
        values = cosine.sel(likeness=[f"{space} {k}" for k in (1, 2, 4, 8)]).transpose("likeness", "batch").values
        assert (np.diff(values, axis=0) <= 1e-6).all()
    assert (at.cosine_in.sel(likeness="far") < at.cosine_in.sel(likeness="input 8")).all()


@pytest.mark.parametrize(
    ("text", "case", "space"), [(" the", " The", "the"), ("the", "The", " the"), (" return", " Return", None)]
)
def test_tokens_have_variants_in_case_and_space(organism, text, case, space):
    tokenizer = models.published_tokenizer(organism)
    found = written_otherwise(tokenizer, models.single_token(tokenizer, text))
    assert {kind: models.token_text(tokenizer, i) for kind, i in found.items()} == {
        kind: other for kind, other in (("case", case), ("space", space)) if other is not None
    }


def test_tokens_without_text_have_no_variants(organism):
    tokenizer = models.published_tokenizer(organism)
    assert written_otherwise(tokenizer, tokenizer.get_vocab()["Ġ"]) == {}


@pytest.mark.experiment
def test_unexposed_tokens_do_not_match_themselves_and_ordinary_ones_do(organism):
    """The embedding that text never moved is not matched even by itself: there is no verdict on its neighbours."""
    found = interp.run("near_match", organism, ["unexposed", "ordinary"], batch=16, neighbours=1)
    unexposed, ordinary = found.attrs["verdict"].splitlines()
    assert unexposed.startswith("unexposed: not testable: the exact repeat is not shown to be copied")
    assert ordinary.startswith("ordinary: the exact repeat gains")
    gain = found.log_prob.sel(likeness="exact") - found.log_prob.sel(likeness="far")
    assert mean_interval(gain.sel(pool="ordinary").values)[1] > 3
    assert abs(float(gain.sel(pool="unexposed").mean())) < 0.3
    said = " ".join(" ".join(str(line) for line in views.tables(found)).split())
    assert "4 of those before A are repeated before A'" in said
    drawn = views.figures(found)
    assert list(drawn) == ["by_likeness", "against_cosine"]
    assert drawn["by_likeness"].data[1].y[0] == pytest.approx(
        float(found.log_prob.sel(pool="ordinary", likeness="exact").mean()), abs=1e-5
    )


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cue": -1}, "cue -1, neighbours 2: use 0 or more, and a positive integer"),
        ({"neighbours": 0}, "cue 4, neighbours 0: use 0 or more"),
        ({"length": 3}, "blocks of 3 have no room for a token and what follows it: use a length of 4 or more"),
        ({"mixed": True, "among": "10:65"}, "near_match puts single tokens among ordinary ones by itself"),
    ],
)
def test_invalid_requests_are_refused(wired, options, line):
    with pytest.raises(InterpError, match=line) as error:
        asked(wired, ["1:9"], **options)
    assert "\n" not in str(error.value)


def test_short_blocks_repeat_less_and_record_it(wired):
    found = asked(wired, ["1:9"], length=5)
    assert found.attrs["cue"] == 2


@pytest.mark.resumption
def test_finished_pools_are_kept(wired, tmp_path, monkeypatch):
    from interp.experiments.near_match import experiment

    first = asked(wired, ["1:5", "5:9"], out=tmp_path / "whole")
    made, of_pool = [], experiment._of_pool

    def interrupted(model, pool, *rest):
        made.append(pool.name)
        if made == ["1:5", "5:9"]:
            raise KeyboardInterrupt
        return of_pool(model, pool, *rest)

    monkeypatch.setattr(experiment, "_of_pool", interrupted)
    with pytest.raises(KeyboardInterrupt):
        asked(wired, ["1:5", "5:9"], out=tmp_path / "part")
    second = asked(wired, ["1:5", "5:9"], out=tmp_path / "part")
    assert made == ["1:5", "5:9", "5:9"]
    xr.testing.assert_identical(first.drop_attrs(), second.drop_attrs())
