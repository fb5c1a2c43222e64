"""Does the attribution of a deficit name what was broken on purpose, and do its repairs do what they document?"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import interp
from interp import heads as calling, models, repairs, results, views
from interp.defects import DEFECTS, planted, related
from interp.errors import InterpError
from interp.experiments.glitch_attribution.experiment import STAGES
from interp.hooks import freeze_patterns, pattern_names, record
from interp.measure import log_probs
from interp.pool_names import ordinary_pool
from interp.repairs import REPAIRS, ROW_REPAIRS, combination_name, subsets
from interp.repairs.health import HEALTHY, safe_repairs
from interp.repairs.minimal_study import PARTS
from interp.tokens import Pool, local_generator, paired, repeated
from interp.verdicts import verdict

SIZE = 30
BOS = 2047


def chosen(model, seed=0, *, near=False, size=SIZE):
    """Ordinary tokens to break, and the others."""
    ordinary = ordinary_pool(model)
    if near:
        ids = related(model, ordinary.ids, size, seed=seed)
    else:
        order = torch.randperm(len(ordinary), generator=local_generator(seed, 99)).tolist()
        ids = sorted(ordinary.ids[i] for i in order[:size])
    return Pool("broken", tuple(ids)), ordinary.without(ids)


@pytest.fixture(scope="module")
def healthy_heads(organism):
    with torch.no_grad():
        return calling.classify_heads(organism, repeated(ordinary_pool(organism), batch=16, bos=BOS))


def asked(model, pool, others, **options):
    reference = ",".join(map(str, others.ids))
    options = {"batch": 16, "fits": 3, "reference": reference} | options
    return interp.run("glitch_attribution", model, [pool], **options).isel(pool=0)


def snapshot(model):
    """Weights and outputs, to the bit."""
    ids = torch.arange(1, 61).reshape(2, 30)
    with torch.no_grad():
        return [p.clone() for p in model.original_model.parameters()], model(ids, prepend_bos=False)


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True)) and torch.equal(one[1], two[1])


# --- planted defects --------------------------------------------------------------------------------------------------


# by transplants, the option used for the older findings: one in CI, the others by hand
REPAIRED = [
    pytest.param(defect, repairs, marks=[pytest.mark.everything] if by_hand else [])
    for defect in DEFECTS
    if not defect.endswith("rows")
    for repairs, by_hand in (("minimal", False), ("transplant", defect != "blind-keys"))
]


@pytest.mark.causes
@pytest.mark.parametrize(("defect", "repairs"), REPAIRED)
def test_the_planted_stage_is_named(organism, healthy_heads, defect, repairs):
    pool, others = chosen(organism, near=defect == "suppressed")
    before = snapshot(organism)
    with planted(organism, pool.ids, [defect], heads=healthy_heads):
        found = asked(organism, pool, others, repairs=repairs)
    assert same(before, snapshot(organism))
    share = found.share
    stage = DEFECTS[defect]
    assert float(found.deficit) > 3
    assert str(share.idxmax("stage").values) == stage, found.verdict
    assert float(share.sel(stage=stage)) > 0.5 * float(found.deficit)
    assert f"broken: {stage}" in found.verdict
    assert float(share.sum()) == pytest.approx(float(found.deficit), abs=1e-4)
    assert float(found.largest.sel(stage=stage)) > 0.99
    known = found.share_low.notnull()  # a repair that is not used gains exactly nothing, which has no interval
    assert bool(known.sel(stage=stage)) or defect == "collapsed"  # whose share is the log of a count, in every sequence
    assert (found.share_low <= found.share + 1e-6).where(known, True).all()
    assert (found.share <= found.share_high + 1e-6).where(known, True).all()
    tokens = found.token_share.sum("stage")
    assert tokens.values == pytest.approx(found.token_deficit.values, abs=1e-4)
    assert set(found.member_id.values.ravel()) <= set(pool.ids)
    if repairs == "minimal" and stage == "matching":
        _parts_of_matching_are_distinguished(found, defect)


def _parts_of_matching_are_distinguished(found, defect):
    """Blind previous-token heads are repaired by these, and blind induction keys are not."""
    value = found.value.sel(quantity="cluster")
    gained = [float(value.sel(combination=part) - value.sel(combination="none")) for part in PARTS]
    assert float(value.sel(combination="matching")) > -0.2
    if defect == "blind-keys":
        assert gained[0] > 3 > 0.1 > gained[1]
    else:
        assert gained[0] > 3


@pytest.mark.causes
@pytest.mark.parametrize("defect", [d for d in DEFECTS if d != "shrunk-rows"])
def test_the_stage_planted_in_the_wired_model_is_named(wired, defect):
    """Its margins are so wide that shrunk rows are no defect."""
    pool, others = chosen(wired, near=defect == "suppressed", size=12)
    with torch.no_grad():
        heads = calling.classify_heads(wired, repeated(ordinary_pool(wired), batch=16, length=20, bos=0))
    with planted(wired, pool.ids, [defect], heads=heads):
        found = asked(wired, pool, others, length=10)
    share, stage = found.share, DEFECTS[defect]
    assert str(share.idxmax("stage").values) == stage, found.verdict
    if stage in ("matching", "content"):  # nothing else is touched, and the repair undoes it
        assert float(share.sel(stage=stage)) == pytest.approx(float(found.deficit), abs=1e-5)
    if stage == "suppression":  # what is written against a token also hides what is carried of it
        assert float(share.sel(stage=stage)) > 0.8 * float(found.deficit)
    if defect == "collapsed":  # twelve identical rows: nothing distinguishes them
        assert float(share.sel(stage="identity")) == pytest.approx(math.log(12), abs=1e-3)


@pytest.mark.causes
def test_the_wired_model_has_no_deficit(wired):
    """Every repair leaves its tokens as they are, and every share is zero, to 1e-5."""
    pool, others = chosen(wired, size=12)
    found = asked(wired, pool, others, length=10)
    assert float(abs(found.share).max()) < 1e-5
    assert found.used.all()
    moved = found.health.sel(quantity="log_prob", combination=[combination_name(s) for s in subsets(REPAIRS)])
    assert float(abs(moved).max()) < 1e-5
    assert found.control_health.values[0] < -1 < -1e-5 < found.control_health.values[1]


@pytest.mark.causes
@pytest.mark.parametrize("defect", ["random-rows", "shrunk-rows"])
def test_rows_that_do_not_read_are_named(defect):
    """They need an output matrix of their own."""
    model = models.load("organism-untied")
    pool, others = chosen(model, seed=1)
    with torch.no_grad():
        heads = calling.classify_heads(model, repeated(ordinary_pool(model), batch=16, bos=BOS))
    with planted(model, pool.ids, [defect], heads=heads, seed=1):
        found = asked(model, pool, others, seed=1)
    assert str(found.share.idxmax("stage").values) == "readout", found.verdict
    assert bool(found.fitted.item())
    assert "readout" in found.verdict


def test_blocks_with_repeats_are_not_attributed(organism):
    with pytest.raises(InterpError, match="pairs of sequences need blocks of distinct tokens: use a length of 16 or"):
        interp.run("glitch_attribution", organism, ["300:316"], batch=2, length=25)
    with pytest.raises(InterpError, match=r"pool '400:410', .* has 10 tokens, too few .*: use a length of 10 or less"):
        interp.run("glitch_attribution", organism, ["300:340"], batch=2, reference="400:410")


@pytest.mark.causes
@pytest.mark.parametrize(
    ("defects", "stages"),
    [
        (("blind-values", "blind-keys"), {"content", "matching"}),
        (("blind-keys", "suppressed"), {"matching", "suppression"}),
    ],
)
def test_two_planted_stages_are_both_named(organism, healthy_heads, defects, stages):
    """Neither repair does anything without the other: not ranked."""
    pool, others = chosen(organism, near="suppressed" in defects)
    with planted(organism, pool.ids, defects, heads=healthy_heads):
        found = asked(organism, pool, others)
    share = found.share
    assert set(share.stage.values[np.argsort(-share.values)[:2]]) == stages, found.verdict
    assert "both, jointly; not ranked" in found.verdict
    assert all(stage in found.verdict for stage in stages)


@pytest.mark.causes
def test_single_tokens_among_ordinary_ones(organism, healthy_heads):
    pool, others = chosen(organism)
    with planted(organism, pool.ids, ["blind-values"], heads=healthy_heads):
        found = asked(organism, pool, others, mixed=True, among=others, batch=24)
    assert str(found.share.idxmax("stage").values) == "content", found.verdict
    assert float(found.share.sel(stage="content")) > 5


@pytest.mark.causes
def test_undamaged_tokens_have_no_shares(organism):
    """And the repairs are used: they leave ordinary tokens as they are."""
    pool, others = chosen(organism)
    found = asked(organism, pool, others, batch=32)
    assert abs(found.share).max() < HEALTHY
    assert found.used.all()
    assert "no deficit" in found.verdict
    whole = found.health.sel(quantity="log_prob", combination=[combination_name(s) for s in subsets(REPAIRS)])
    assert abs(whole).max() <= HEALTHY
    assert abs(whole).max() > 0


@pytest.mark.causes
def test_the_deficit_of_unexposed_tokens_is_identity(organism):
    """Blocks of them: the model knows that one of them comes, but not which of 300; the source position encodes it."""
    found = interp.run("glitch_attribution", organism, ["unexposed"], batch=16, fits=3).isel(pool=0)
    assert str(found.share.idxmax("stage").values) == "identity"
    assert float(found.share.sel(stage="identity")) > 0.9 * float(found.deficit)
    assert float(found.near_duplicates) > 200
    at = found.retrieval.sel(way="fitted")
    assert float(at.sel(role="pool", place="prediction").max()) < 0.1
    assert float(at.sel(role="pool", place="source", depth="embedding")) > 0.9
    assert float(at.sel(role="ordinary", place="prediction", depth="layer 1")) > 0.8
    identity = found.identity_in
    assert float(identity.sel(combination="none")) == pytest.approx(float(found.share.sel(stage="identity")), abs=1e-4)
    value = found.value
    lost = value.sel(quantity="cluster") - value.sel(quantity="log_prob")
    assert identity.values == pytest.approx((lost - lost.sel(combination="paired")).values, abs=1e-4)


def test_impossible_defects_are_refused_with_a_reason(organism, healthy_heads, wired):
    with (
        pytest.raises(InterpError, match="unknown defect 'rot': use one of collapsed"),
        planted(organism, [5], ["rot"], heads=healthy_heads),
    ):
        pass
    with (
        pytest.raises(InterpError, match="ties them: use an untied model"),
        planted(organism, [5], ["shrunk-rows"], heads=healthy_heads),
    ):
        pass
    nothing = healthy_heads.assign(classified=healthy_heads.classified & False)
    with (
        pytest.raises(InterpError, match="needs a head that is classified as induction"),
        planted(organism, [5], ["blind-keys"], heads=nothing),
    ):
        pass


def test_tokens_are_broken_in_part():
    model = models.load("organism-untied")
    found = calling.classify_heads(model, repeated(ordinary_pool(model), batch=16, bos=BOS))
    own = model.original_model.get_output_embeddings().weight.detach()[[300, 500]].clone()
    with planted(model, [300, 500], ["shrunk-rows"], heads=found, part=0.5):
        now = model.original_model.get_output_embeddings().weight.detach()[[300, 500]]
        assert now == pytest.approx(0.7 * own, abs=1e-6)  # wholly: 0.4 of it
    with (
        pytest.raises(InterpError, match="part 0: use a number above 0, up to 1"),
        planted(model, [300], ["shrunk-rows"], heads=found, part=0),
    ):
        pass


def test_damage_is_undone_after_an_exception(organism, healthy_heads):
    before = snapshot(organism)

    def interrupted():
        with planted(organism, range(5, 40), ["collapsed", "blind-keys"], heads=healthy_heads):
            assert not same(before, snapshot(organism))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same(before, snapshot(organism))


# --- the repairs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["organism", "organism-llama"])
def end(request):
    """A model, its unembedding, sequences, sites and the final residual of a run."""
    model = models.load(request.param)
    unembedding = repairs.Unembedding(model)
    tokens = repeated(ordinary_pool(model), batch=5, length=9, bos=BOS)
    at = repairs.PredictionSites.of(tokens)
    with torch.no_grad():
        yield (
            model,
            unembedding,
            tokens,
            at,
            repairs.final_residuals(model, tokens, at, writes=torch.ones_like(at.query, dtype=torch.bool)),
        )


def test_the_final_residual_gives_the_logits(end):
    model, unembedding, tokens, at, run = end
    logits = model(tokens.ids, prepend_bos=False)
    assert torch.equal(at.token, tokens.ids[:, 11:].flatten())
    expected = logits[at.sequence, at.query]
    assert run.x @ unembedding.rows.T + unembedding.bias == pytest.approx(expected, abs=1e-3)
    one, together, odds = repairs.readout_scores(run.x, at.token, {int(t): t.reshape(1) for t in at.token}, unembedding)
    right = log_probs(logits, tokens.ids)[:, 11:].flatten()
    assert one == pytest.approx(right, abs=1e-3)
    assert together == pytest.approx(one, abs=1e-4)
    assert odds == pytest.approx(right - torch.log1p(-right.exp()), abs=2e-2)
    near = {int(t): torch.tensor(sorted({5, 6, 7, int(t)})) for t in at.token}
    _, together, _ = repairs.readout_scores(run.x, at.token, near, unembedding)
    probability = logits.softmax(-1)
    expected = [
        probability[s, q, near[int(t)]].sum().log() for s, q, t in zip(at.sequence, at.query, at.token, strict=True)
    ]
    assert together == pytest.approx(torch.stack(expected), abs=1e-3)


def test_components_sum_to_the_stream(end):
    model, unembedding, _, _, run = end
    assert len(repairs.component_names(model)) == len(run.writes)
    assert run.writes.sum(0) == pytest.approx(run.resid.mean(0), abs=1e-4)
    by = 0.3 * torch.randn(len(run.resid[0]), generator=torch.Generator().manual_seed(1))
    moved = unembedding.shifted(run.x, run.resid, by)
    assert moved == pytest.approx(model.ln_final((run.resid + by)[None])[0], abs=2e-3)
    assert float((moved - run.x).abs().max()) > 0.05


def test_attention_is_carried_over(end):
    model, _, tokens, at, run = end
    pair = paired(tokens, ordinary_pool(model), seed=3)
    other = record(model, pair.ids, pattern_names(model))
    carried = repairs.final_residuals(model, tokens, at, patterns=other)
    seen = record(model, tokens.ids, ["unembed.hook_in"], hooks=freeze_patterns(model, other))["unembed.hook_in"]
    assert carried.x == pytest.approx(seen[at.sequence, at.query], abs=1e-4)
    own = repairs.final_residuals(model, tokens, at, patterns=record(model, tokens.ids, pattern_names(model)))
    assert own.x == pytest.approx(run.x, abs=1e-4)
    some = repairs.final_residuals(model, tokens, at, patterns=other, heads=[(0, 1), (1, 2), (1, 3)])
    assert min(float((some.x - one.x).abs().max()) for one in (carried, run)) > 1e-3


def test_swapping_exchanges_what_two_rows_read(end):
    _, unembedding, _, _, run = end
    rows = unembedding.rows - unembedding.mean
    source, target = rows[5 : 5 + len(run.x)], rows[300 : 300 + len(run.x)]
    moved = repairs.swap_token_directions(run.x, source, target, unembedding)
    ratio = target.norm(dim=-1) / source.norm(dim=-1)
    assert (moved * target).sum(-1) == pytest.approx(ratio * (run.x * source).sum(-1), abs=1e-2)
    assert (moved * source).sum(-1) == pytest.approx((run.x * target).sum(-1) / ratio, abs=1e-2)
    assert repairs.swap_token_directions(moved, source, target, unembedding) == pytest.approx(run.x, abs=1e-2)
    assert torch.equal(repairs.swap_token_directions(run.x, source, source, unembedding), run.x)


def test_near_duplicates_are_those_that_were_made(organism, healthy_heads):
    pool, others = chosen(organism, seed=2)
    unembedding = repairs.Unembedding(organism)
    alone = repairs.near_duplicates(organism, pool.ids, others.ids, unembedding)
    assert sum(len(near) > 1 for near in alone.values()) <= 1
    with planted(organism, pool.ids, ["nearly-collapsed"], heads=healthy_heads):
        near = repairs.near_duplicates(organism, pool.ids, others.ids, repairs.Unembedding(organism))
    assert all(near[t].tolist() == list(pool.ids) for t in pool.ids)
    # of the ordinary tokens, one in a thousand at most
    every = repairs.near_duplicates(organism, others.ids, others.ids, unembedding)
    assert np.mean([len(near) > 1 for near in every.values()]) < 0.005


def test_shapley_values():
    names = ("a", "b", "c")
    worth = {"a": 2.0, "b": -1.0, "c": 0.5}
    every = [frozenset(s) for s in subsets(names)]
    additive = {s: np.array([sum(worth[n] for n in s)]) for s in every}
    assert {n: v.item() for n, v in repairs.shapley(additive, names).items()} == pytest.approx(worth)
    joint = {s: np.array([6.0 * ({"a", "b"} <= s)]) for s in every}
    assert {n: v.item() for n, v in repairs.shapley(joint, names).items()} == pytest.approx({"a": 3, "b": 3, "c": 0})
    uneven = {s: np.array([4.0 * ("a" in s) + 2.0 * ({"a", "c"} <= s)]) for s in every}
    assert {n: v.item() for n, v in repairs.shapley(uneven, names).items()} == pytest.approx({"a": 5, "b": 0, "c": 1})


def test_repairs_that_move_ordinary_tokens_are_dropped():
    import xarray as xr

    def health(**moved):
        names = [combination_name(s) for s in subsets(REPAIRS)]
        return xr.DataArray(
            [moved.get(n.replace(" + ", "_"), 0.01) for n in names], dims="combination", coords={"combination": names}
        )

    assert safe_repairs(health(), HEALTHY) == REPAIRS
    assert safe_repairs(health(content=-0.06), HEALTHY) == ("matching", "readout", "suppression")
    assert safe_repairs(health(content=0.06, matching=-0.07), HEALTHY) == ("readout", "suppression")
    together = {
        n.replace(" + ", "_"): 0.08
        for s in subsets(REPAIRS)
        if {"content", "readout"} <= set(s)
        for n in [combination_name(s)]
    }
    assert len(safe_repairs(health(**together), HEALTHY)) == 3
    assert set(safe_repairs(health(**together), HEALTHY)) >= {"matching", "suppression"}


def test_verdicts_name_what_is_significant_and_rank_nothing_else():
    rng = np.random.default_rng(0)
    noise = lambda mean, n=40: mean + 0.2 * rng.standard_normal(n)  # noqa: E731
    gains = {frozenset(s): 0.0 for s in subsets(REPAIRS)}

    def say(n=40, gains=gains, **means):
        shares = np.stack([noise(means.get(s, 0.0), n) for s in STAGES], 1)
        return verdict(shares, shares.sum(1), gains, STAGES, REPAIRS)[0]

    assert say(content=5).startswith("content ")
    assert "the largest in 100% of samples" in say(content=5, identity=1)
    assert say(content=5, identity=3).startswith("content ")
    assert "identity" in say(content=5, identity=3)
    assert say(identity=3, content=3.0001).endswith("not ranked")
    both = gains | {frozenset({"matching", "content"}): 6.0}
    assert say(matching=3, content=3, gains=both).endswith("both, jointly; not ranked")
    assert not say(matching=3, content=3, gains=both | {frozenset({"content"}): 4.0}).endswith("jointly; not ranked")
    assert say(unexplained=4).startswith("unexplained")
    assert say(content=0.02).startswith(("no deficit", "cannot tell"))
    assert say(n=7, content=5).startswith("cannot tell: 7 sequences")
    assert say().startswith(("no deficit", "cannot tell"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pairings": 0}, "pairings 0, fits 4: use positive integers"),
        ({"fits": 0}, "pairings 2, fits 0"),
        ({"reference": "58:64"}, "no sequences without a repeat can be drawn from '58:64'"),
        ({"reference": "nonsense"}, "unknown pool 'nonsense'"),
    ],
)
def test_invalid_attribution_requests_are_refused(wired, options, said):
    with pytest.raises(InterpError, match=said) as error:
        interp.run("glitch_attribution", wired, ["1:30"], **{"batch": 4, "length": 6} | options)
    assert "\n" not in str(error.value)


# --- rewriting rows ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewritten(organism, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "repaired"
    before = snapshot(organism)
    options = {"batch": 16, "length": 12, "steps": 60}
    found = interp.run("embedding_repair", organism, ["unexposed", "ordinary"], windows=5, **options)
    assert repairs.save_repaired(organism, interp.pools("unexposed", organism)[0], folder, **options) == folder
    assert same(before, snapshot(organism))
    return found, folder


@pytest.mark.causes
def test_rows_are_rewritten_and_copied(rewritten):
    found, _ = rewritten
    assert found.pool.values.tolist() == ["unexposed"]  # ordinary tokens need none
    assert found["repair"].values.tolist() == list(ROW_REPAIRS)
    at = found.isel(pool=0)
    mean = at.log_prob.mean("batch")
    assert (at.damage.sel(repair="none") == 0).all()
    assert (at.damage.sel(repair=[r for r in ROW_REPAIRS if r != "none"]) > 0).any("window").all()
    assert (at.damage > -1e-6).all()
    assert float(mean.sel(repair="gradient")) > -0.5 > float(mean.sel(repair="none"))
    assert float(mean.sel(repair="random")) < -4  # the control
    gap = float(at.paired.mean() - mean.sel(repair="none"))
    expected = (mean - mean.sel(repair="none")) / gap
    assert at.recovered.sel(bound="mean").values == pytest.approx(expected.values, abs=1e-4)
    assert float(at.recovered.sel(repair="gradient", bound="low")) > 0.9


@pytest.mark.causes
def test_the_repaired_model_is_like_any_other(rewritten, organism):
    """The rows of the pool differ, all else is equal, and it copies; plain transformers load it, too."""
    _, folder = rewritten
    assert not [path for path in folder.parent.iterdir() if path != folder]
    model = interp.load(str(folder))
    pool = interp.pools("unexposed", organism)[0]
    was, now = (m.original_model.get_input_embeddings().weight for m in (organism, model))
    changed = (was != now).any(1)
    assert changed.nonzero()[:, 0].tolist() == sorted(pool.ids)
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokens = repeated(pool, batch=8, length=12, bos=BOS, seed=5)
    with torch.no_grad():
        logits = plain(tokens.ids).logits
        assert logits == pytest.approx(model(tokens.ids, prepend_bos=False), abs=1e-3)
    assert float(log_probs(logits, tokens.ids)[:, tokens.inducible].mean()) > -1
    assert json.loads((folder / "config.json").read_text())["vocab_size"] == 2048


@pytest.mark.causes
def test_identical_rows_are_not_a_repair(organism):
    """Tokens of one row are equally probable, whatever the model does: at best, one of so many."""
    pool, others = chosen(organism, seed=2)
    options = {"batch": 8, "length": 8, "steps": 1, "windows": 1, "reference": ",".join(map(str, others.ids))}
    at = interp.run("embedding_repair", organism, [pool], **options).log_prob.isel(pool=0).mean("batch")
    assert float(at.sel(repair="none")) > -1
    assert float(at.sel(repair="mean")) <= -math.log(SIZE) + 1e-3
    assert float(at.sel(repair="norm")) > -1


@pytest.mark.causes
def test_rewriting_resumes_where_it_stopped(organism, tmp_path, monkeypatch):
    """Each repair is measured once, and the model is intact after an interruption."""
    options = {"batch": 4, "length": 6, "steps": 2, "windows": 1}
    whole = interp.run("embedding_repair", organism, ["unexposed"], **options)
    before, plain, saved = snapshot(organism), results.save, []

    def counted(dataset, path):
        saved.append(path)
        if len(saved) == 4:
            raise KeyboardInterrupt
        return plain(dataset, path)

    monkeypatch.setattr(results, "save", counted)
    with pytest.raises(KeyboardInterrupt):
        interp.run("embedding_repair", organism, ["unexposed"], out=tmp_path, **options)
    assert same(before, snapshot(organism))
    found = interp.run("embedding_repair", organism, ["unexposed"], out=tmp_path, **options)
    assert len(saved) == len(ROW_REPAIRS) + 2  # the interrupted one is made again, and the result
    for name in ("log_prob", "damage", "recovered"):
        assert found[name].values == pytest.approx(whole[name].values, abs=1e-6, nan_ok=True)


@pytest.mark.causes
def test_the_saved_rows_are_those_that_were_measured(rewritten, organism):
    """The same options, sequences among them, give the same rows: the saved model scores what the experiment says."""
    found, folder = rewritten
    tokens = repeated(interp.pools("unexposed", organism)[0], batch=16, length=12, bos=BOS)
    with torch.no_grad():
        scores = log_probs(interp.load(str(folder))(tokens.ids, prepend_bos=False), tokens.ids)
    measured = found.log_prob.isel(pool=0).sel(repair="gradient")
    assert scores[:, tokens.inducible].mean(1) == pytest.approx(torch.from_numpy(measured.values), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps 0, windows 20: use positive integers"),
        ({"windows": 0}, "windows 0"),
        ({"pools": ["ordinary"]}, "every pool is part of the ordinary tokens"),
        ({"text": "nowhere.txt"}, "cannot read nowhere.txt"),
    ],
)
def test_invalid_rewriting_requests_are_refused(organism, options, said):
    pools = options.pop("pools", ["unexposed"])
    with pytest.raises(InterpError, match=said) as error:
        interp.run("embedding_repair", organism, pools, batch=4, length=6, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repair": "hope"}, "repair 'hope', steps 200: use one of none, random, .* a positive number of steps"),
        ({"steps": 0}, "repair 'gradient', steps 0"),
        ({"folder": Path(__file__).parent}, "exists: choose another folder to save to"),
        ({"folder": Path(__file__) / "repaired"}, "cannot write to .*: choose another folder to save to"),
        ({"pool": "ordinary"}, "every pool is part of the ordinary tokens"),
        ({"length": 500}, "use a length of 255 or less"),
    ],
)
def test_invalid_save_requests_are_refused(organism, tmp_path, options, said):
    pool = interp.pools(options.pop("pool", "unexposed"), organism)[0]
    folder = options.pop("folder", tmp_path / "repaired")
    with pytest.raises(InterpError, match=said) as error:
        repairs.save_repaired(organism, pool, folder, **options)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_replaced_rows_are_restored_after_the_block(organism):
    pool = Pool("some", (300, 500))
    before = snapshot(organism)
    rows = repairs.new_rows(organism, "random", pool, ordinary_pool(organism), repeated)
    with pytest.raises(KeyboardInterrupt), repairs.rows_replaced(organism, pool.ids, rows):  # noqa: PT012
        assert not same(before, snapshot(organism))
        raise KeyboardInterrupt
    assert same(before, snapshot(organism))


# --- what is drawn and printed ----------------------------------------------------------------------------------------


@pytest.mark.causes
def test_tables_and_figures_show_every_pool(organism):
    """Several pools of different sizes; more copies and no BOS go through."""
    found = interp.run(
        "glitch_attribution",
        organism,
        ["unexposed", Pool("<b>", (300, 310, 320, 350, 370, 400))],
        batch=8,
        length=6,
        copies=3,
        bos=False,
        fits=1,
        pairings=1,
        repairs="transplant",
    )
    # no share is a number where a stage was not tested, and one that is known is part of the deficit
    for pool in found.pool.values:
        at = found.sel(pool=pool)
        tested = at.reason == ""
        assert at.share.where(~tested).isnull().all()
        if tested.all():
            assert float(at.share.sum()) == pytest.approx(float(at.deficit), abs=1e-4)
    assert (found.member_id.isel(pool=1) >= 0).sum() == 6
    said = " ".join(str(line) for line in views.tables(found))
    assert "Deficit of the tokens of 'organism'" in said
    drawn = views.figures(found)
    assert list(drawn) == ["deficit_shares", "identity_decomposition", "retrieval_by_layer"]
    bars = {trace.name: trace for trace in drawn["deficit_shares"].data}
    assert list(bars) == [*STAGES, "the whole deficit"]
    assert bars["identity"].y == pytest.approx(found.share.sel(stage="identity").values)
    assert bars["identity"].x[1] == "&lt;b&gt;"
    stacked = {trace.name: trace.y for trace in drawn["identity_decomposition"].data[:2]}
    whole = np.sum(list(stacked.values()), 0)
    expected = -found.value.isel(pool=0).sel(quantity="log_prob")
    assert whole[0] == pytest.approx(float(expected.sel(combination="none")), abs=1e-5)
    assert whole[-1] == pytest.approx(float(expected.sel(combination="paired")), abs=1e-5)


@pytest.mark.causes
def test_repairs_are_drawn(rewritten):
    found, _ = rewritten
    points = views.figures(found)["repair_damage"].data
    assert [point.name for point in points] == list(ROW_REPAIRS)
    assert len({point.marker.symbol for point in points}) == len(ROW_REPAIRS)
    assert [point.y[0] for point in points] == pytest.approx(found.recovered.sel(bound="mean").values[0].tolist())
    assert [point.x[0] for point in points] == pytest.approx(found.damage.mean("window").values[0].tolist(), abs=1e-6)
    assert "rewritten" in " ".join(str(line) for line in views.tables(found))


def test_scaled_logits_are_refused(tmp_path):
    """Where something follows the unembedding, what its rows read is not the model's output."""
    size = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.Gemma2Config(**size, final_logit_softcapping=0.01, max_position_embeddings=64)
        transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
    with pytest.raises(InterpError, match="logits are not read from the last norm") as error:
        interp.run("glitch_attribution", models.load(tmp_path / "capped"), ["2:110"], batch=2, length=5)
    assert "\n" not in str(error.value)
