"""Do minimal repairs do what they document, and is what was not tested never zero?"""

import math

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import heads as calling, models, repairs, views
from interp.defects import planted
from interp.errors import InterpError
from interp.experiments.glitch_attribution.experiment import STAGES
from interp.hooks import pattern_names, record
from interp.measure import KEY_KINDS, key_masks
from interp.pool_names import ordinary_pool
from interp.repairs import REPAIRS, shapley_bounds, subsets
from interp.repairs.fitted_readout import _whitening
from interp.repairs.health import decided, health, limit_of, moves
from interp.repairs.lacking import LackingStrength
from interp.repairs.minimal import MinimalRepair, attention_masses, mean_strength, right_keys, with_mass
from interp.repairs.minimal_study import CONTROLS, PARTS, ROUTE
from interp.repairs.ordinary_heads import OrdinaryHeads, ordinary_heads
from interp.statistics import confidence_sequence
from interp.tokens import Pool, local_generator, repeated
from interp.verdicts import verdict

BOS = 2047


# --- attention --------------------------------------------------------------------------------------------------------


def attention(places=6, heads=3, keys=9, seed=0):
    """Rows of attention whose last keys are not seen, and two right keys each."""
    rows = torch.rand(places, heads, keys, generator=torch.Generator().manual_seed(seed)) + 0.01
    rows[..., 7:] = 0
    rows = rows / rows.sum(-1, keepdim=True)
    right = torch.zeros(places, keys, dtype=torch.bool)
    right[:, [2, 4]] = True
    return rows, right


def test_right_keys_get_the_mass_and_the_rest_keeps_its_proportions():
    rows, right = attention()
    mass = torch.tensor([0.0, 0.61, 1.0])
    changed = with_mass(rows, right, mass)
    assert changed.sum(-1) == pytest.approx(torch.ones(6, 3), abs=1e-6)
    assert changed[..., [2, 4]].sum(-1) == pytest.approx(mass.expand(6, 3), abs=1e-6)
    assert (changed[:, 1, 2] / changed[:, 1, 4]).tolist() == pytest.approx((rows[:, 1, 2] / rows[:, 1, 4]).tolist())
    assert (changed[:, 1, 0] / changed[:, 1, 5]).tolist() == pytest.approx((rows[:, 1, 0] / rows[:, 1, 5]).tolist())
    assert (changed[..., 7:] == 0).all()
    assert with_mass(rows, right, (rows * right[:, None]).sum(-1)) == pytest.approx(rows, abs=1e-6)


def test_a_mass_near_one_or_of_nothing_is_shared_evenly():
    """Where the right keys have all of a row, what is taken goes to the other keys before them; and the other way round."""
    rows, right = attention()
    rows[0] = 0
    rows[0, :, 4] = 1.0
    changed = with_mass(rows, right, torch.tensor([0.25, 0.25, 0.25]))
    assert changed[0].sum(-1) == pytest.approx(torch.ones(3))
    assert changed[0, 0, [0, 1, 3]].tolist() == pytest.approx([0.25] * 3)
    rows[0] = 0
    rows[0, :, 0] = 1.0
    changed = with_mass(rows, right, torch.tensor([0.5, 0.5, 0.5]))
    assert changed[0, 0, [0, 2, 4]].tolist() == pytest.approx([0.5, 0.25, 0.25])
    # attention that does not sum to one (a sink behind the softmax) keeps its sum
    half = with_mass(rows / 2, right, torch.tensor([0.9, 0.9, 0.9]))
    assert half.sum(-1) == pytest.approx(torch.full((6, 3), 0.5))
    assert half[..., [2, 4]].sum(-1) == pytest.approx(torch.full((6, 3), 0.5))


@pytest.mark.parametrize("copies", [2, 3])
def test_right_keys_are_those_that_follow_the_token_before(organism, copies):
    tokens = repeated(ordinary_pool(organism), batch=4, length=7, copies=copies, bos=BOS)
    sites = repairs.PredictionSites.of(tokens)
    every = torch.ones_like(tokens.ids, dtype=torch.bool)
    expected = key_masks(tokens.ids, every, bos=True)[:, KEY_KINDS.index("induction")][sites.sequence, sites.query]
    found = right_keys(tokens, sites.query)
    assert torch.equal(found, expected)
    assert (tokens.ids[sites.sequence][found] == sites.token.repeat_interleave(found.sum(1))).all()


@pytest.fixture(scope="module")
def circuit(organism):
    """The organism's heads, and what they do on ordinary tokens."""
    pool = ordinary_pool(organism)

    def draw(of, *, stream=0, paired_with=None):
        return repeated(of, batch=16, bos=BOS, seed=stream)

    with torch.no_grad():
        found = calling.classify_heads(organism, repeated(pool, batch=16, bos=BOS))
        kinds = [sorted(calling.heads_of_kind(found, kind)) for kind in ("induction", "previous")]
        yield OrdinaryHeads.of(organism, ordinary_heads(organism, *kinds, draw, pool)), found


def test_only_classified_heads_change_their_attention(organism, circuit):
    of, _ = circuit
    tokens = repeated(ordinary_pool(organism), batch=4, length=9, bos=BOS, seed=3)
    repair = MinimalRepair(organism, of, induction=True)
    plain = record(organism, tokens.ids, pattern_names(organism))
    changed = record(organism, tokens.ids, pattern_names(organism), hooks=repair(tokens, slice(0, 4)))
    sites = repairs.PredictionSites.of(tokens)
    right = right_keys(tokens, sites.query)
    for (layer, head), mass in zip(of.induction, of.induction_mass, strict=True):
        rows = changed[f"blocks.{layer}.attn.hook_pattern"][sites.sequence, head, sites.query]
        assert (rows * right).sum(-1) == pytest.approx(mass.expand(len(right)), abs=1e-5)
        assert float(mass) > 0.3
    for name, pattern in changed.items():
        for head in range(pattern.shape[1]):
            if (int(name.split(".")[1]), head) not in of.induction:
                assert torch.equal(pattern[:, head], plain[name][:, head])
        # queries at which nothing can be predicted are left alone
        assert torch.equal(pattern[:, :, :10], plain[name][:, :, :10])
    masses, _ = attention_masses(organism, tokens, of.induction, of.previous)
    assert masses.mean(0) == pytest.approx(of.induction_mass, abs=0.2)


def test_cargo_is_repaired_in_the_tokens_own_direction(organism, circuit):
    """Uninformative values cost the copy; adding what is lacking restores nearly all of it."""
    of, _ = circuit
    pool = ordinary_pool(organism)
    tokens = repeated(pool, batch=8, bos=BOS, seed=4)
    sites = repairs.PredictionSites.of(tokens)
    alone = {int(t): t.reshape(1) for t in sites.token.unique()}
    unembedding = repairs.Unembedding(organism)

    def level(repair):
        x = repairs.final_residuals(organism, tokens, sites, repair=repair).x
        return float(repairs.readout_scores(x, sites.token, alone, unembedding)[0].mean())

    with torch.no_grad():
        own, blind, mended = (
            level(MinimalRepair(organism, of, cargo=cargo)) for cargo in ("own", "blind", "blind, repaired")
        )
        nothing = of.strength - mean_strength(organism, [repeated(pool, batch=16, bos=BOS, seed=9)], of)[0]
        kept = level(MinimalRepair(organism, of, cargo="repaired", lacking=nothing))
    assert own - blind > 4
    assert mended - blind > 0.95 * (own - blind)
    assert abs(kept - own) < 0.02
    assert (of.strength > 0).all()


@pytest.mark.experiment
def test_pools_of_ordinary_tokens_lack_nothing_and_broken_ones_everything(organism, circuit):
    """A token that disturbs what follows is in every block of a small pool: the spread over tokens does not show it."""
    of, found = circuit
    healthy = ordinary_pool(organism)

    def draw(pool, *, stream=0, paired_with=None):
        return repeated(pool, batch=16, length=25, bos=None, seed=stream)

    values = LackingStrength(organism, of, draw, healthy)
    lacking = []
    for seed in range(30):
        ids = torch.randperm(len(healthy.ids), generator=local_generator(seed, 0))[:30].tolist()
        pool = Pool("some", tuple(sorted(healthy.ids[i] for i in ids)))
        lacking.append(values.of([draw(pool, stream=seed)]))
    assert float((torch.stack(lacking) > 0).float().mean()) < 0.1
    with planted(organism, pool.ids, ["blind-values"], heads=found):
        all_of_it = values.of([draw(pool)])
    assert all_of_it == pytest.approx(of.strength, rel=0.05)
    with planted(organism, pool.ids, ["blind-values"], heads=found, part=0.3):
        some = values.of([draw(pool)])
    assert some == pytest.approx(0.3 * of.strength, rel=0.4)


def test_shrinkage_keeps_few_samples_from_making_a_direction_cheap():
    """Whitened by 150 places, others vary as much as these; by the covariance as it is, many times as much."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -1, 128)

    def places(count):
        return torch.randn(count, 128, generator=generator) * scale + 0.05 * torch.randn(
            count, 128, generator=generator
        )

    seen, others, blind = places(150), places(2000), torch.zeros(1, 128)
    blind[0, 0] = 1.0

    def spread(shrunk):
        whiten = _whitening(seen, blind, shrunk=shrunk)
        assert whiten[0].abs().max() < 1e-6
        return float(
            ((others - seen.mean(0)) @ whiten).square().mean() / ((seen - seen.mean(0)) @ whiten).square().mean()
        )

    assert spread(True) < 2
    assert spread(False) > 5


# --- the game where something is not tested ---------------------------------------------------------------------------


def test_bounds_hold_for_every_monotone_completion_and_are_reached():
    """Completions drawn at random lie within; the two ends are completions."""
    random = np.random.default_rng(0)
    tested, untested, top = ("a", "b"), ("c", "d"), 9.0
    known = {frozenset(): 0.0, frozenset("a"): 2.0, frozenset("b"): 1.0, frozenset("ab"): 5.0}
    ends = shapley_bounds({s: np.array([v]) for s, v in known.items()}, tested, untested, np.array([top]))
    every = [frozenset(s) for s in subsets((*tested, *untested))]

    def of(completion):
        assert all(completion[s] <= completion[t] for s in every for t in every if s <= t)
        values = {s: np.array([v]) for s, v in completion.items()}
        return {name: v.item() for name, v in repairs.shapley(values, (*tested, *untested)).items()}

    for _ in range(200):
        drawn = dict(known)
        for s in every:  # the smaller before the larger
            if s not in drawn:
                least = max(drawn[t] for t in every if t < s)
                drawn[s] = random.choice([least, top, random.uniform(least, top)])
        found = of(drawn)
        assert all(ends[name][0].item() - 1e-9 <= found[name] <= ends[name][1].item() + 1e-9 for name in "abcd")
    lower = {s: known.get(s, known[s & frozenset(tested)]) for s in every}
    upper = {s: known.get(s, top) for s in every}
    for name in "abcd":
        highest = {s: known.get(s, top if name in s else lower[s]) for s in every}
        assert of(highest)[name] == pytest.approx(ends[name][1].item())
        lowest = upper if name in tested else lower
        assert of(lowest)[name] == pytest.approx(ends[name][0].item())
    alone = shapley_bounds({s: np.array([v]) for s, v in known.items()}, tested, (), np.array([top]))
    assert [v.item() for pair in alone.values() for v in pair] == pytest.approx([3, 3, 2, 2])


def say(means, most=None, reasons=None, n=40):
    random = np.random.default_rng(0)
    shares = np.stack([means.get(s, 0.0) + 0.1 * random.standard_normal(n) for s in STAGES], 1)
    above = shares + np.array([(most or {}).get(s, 0.0) for s in STAGES])
    gains = {frozenset(s): 0.0 for s in subsets(REPAIRS)}
    deficit = sum(means.values()) + sum((most or {}).values()) / 2 + 0.1 * random.standard_normal(n)
    return verdict(shares, deficit, gains, STAGES, REPAIRS, most=above, reasons=reasons)


def test_no_stage_is_ranked_past_an_untested_one():
    reasons = {"matching": "its repair moves ordinary tokens by -5.10 nats"}
    said, largest = say({"readout": 6}, {"readout": 5, "matching": 7}, reasons)
    assert said.startswith("cannot tell: readout or matching (readout 5.")
    assert said.endswith("; matching is not testable: its repair moves ordinary tokens by -5.10 nats")
    assert largest[STAGES.index("readout")] < 0.01
    said, largest = say({"readout": 9}, {"readout": 5, "matching": 3}, reasons)
    assert said.startswith("readout 8.")
    assert "matching is not testable" in said
    assert largest[STAGES.index("readout")] == 1
    said, _ = say({"readout": 1}, {"readout": 5, "matching": 7, "content": 7}, {**reasons, "content": "so"})
    assert said.startswith("cannot tell: readout or ")
    assert "content" in said.split(";")[0]


def test_unexplained_and_excess_gains_are_reported_first():
    said, _ = say({"content": 9, "unexplained": 2})
    assert "; 2.0" in said.splitlines()[0] or "; 1.9" in said.splitlines()[0]
    assert "are left unexplained" in said.splitlines()[0]
    said, _ = say({"content": 9, "unexplained": -2})
    assert "more than the deficit" in said.splitlines()[0]
    said, _ = say({"content": 9})
    assert "unexplained" not in said
    assert "missing" not in said


# --- health -----------------------------------------------------------------------------------------------------------


def test_a_confidence_sequence_is_valid_after_every_sample():
    """A fixed interval, inspected after every sample, misses the mean far more often than its nominal rate."""
    random = np.random.default_rng(0)
    missed = fixed = 0
    for _ in range(200):
        sample = random.standard_normal(200)
        looks = [confidence_sequence(sample[:n]) for n in range(16, 201, 4)]
        missed += any(not low <= 0 <= high for _, low, high in looks)
        errors = [sample[:n].std(ddof=1) / math.sqrt(n) for n in range(16, 201, 4)]
        fixed += any(abs(sample[:n].mean()) > 1.645 * e for n, e in zip(range(16, 201, 4), errors, strict=True))
    assert missed / 200 <= 0.13
    assert fixed / 200 > 0.25
    assert np.isinf(confidence_sequence([1.0])[1:]).all()


def ordinary(moved, noise=0.01, sequences=40):
    """Log-probs of ordinary tokens with repairs that move them by so much."""
    random = np.random.default_rng(1)
    base = random.normal(-1, 0.3, (sequences, 5))
    rows = {"none": base} | {name: base + by + noise * random.standard_normal(base.shape) for name, by in moved.items()}
    return xr.DataArray(
        np.stack([row.ravel() for row in rows.values()]),
        dims=("combination", "at"),
        coords={"combination": list(rows), "sequence": ("at", np.repeat(np.arange(sequences), 5))},
    )


def controls(repaired=-1.2):
    return ordinary({PARTS[0]: 0.0, PARTS[1]: 0.0, CONTROLS[0]: -8.0, CONTROLS[1]: repaired, ROUTE: -5.0})


def test_a_repair_is_used_only_if_shown_to_leave_ordinary_tokens_unchanged():
    both = "matching + content"
    found = health(ordinary({"matching": 0.01, "content": -0.01, both: 0.02}), controls(), 0.05, "")
    assert found.used == REPAIRS
    found = health(ordinary({"matching": -0.3, "content": -0.01, both: -0.3}), controls(), 0.05, "")
    assert found.used == ("content", "readout", "suppression")
    assert "moves ordinary tokens by -0.30 nats" in found.reasons["matching"]
    assert "at most 0.05 is allowed" in found.reasons["matching"]
    # relative to what is claimed
    assert (
        health(ordinary({"matching": -0.3, "content": 0.0, both: -0.3}), controls(), limit_of(18), "").used == REPAIRS
    )
    assert limit_of(1) == 0.05
    assert limit_of(-3) == 0.05
    # a small change with a wide interval does not count as small
    unsure = ordinary({"matching": 0.0, "content": 0.0, both: 0.0}, noise=1.0)
    assert set(health(unsure, controls(), 0.05, "").used) == {"readout", "suppression"}
    assert not decided(unsure, 0.05)
    assert decided(unsure, 1.0)
    assert not decided(unsure.sel(at=unsure.sequence < 8), 1.0)
    assert float(moves(unsure)["moved"].sel(combination="none")) == 0
    absent = health(ordinary({}), None, 0.05, "no head is classified as an induction head")
    assert absent.used == ("readout", "suppression")
    assert math.isnan(float(absent.moved.sel(combination="matching")))


def test_a_repair_that_repairs_nothing_is_not_a_test():
    """It leaves ordinary tokens as they are, and does not undo a damage either."""
    quiet = ordinary({"matching": 0.0, "content": 0.0, "matching + content": 0.0})
    found = health(quiet, controls(repaired=-6.0), 0.05, "")
    assert found.used == ("matching", "readout", "suppression")
    assert "restores only 25%" in found.reasons["content"]


# --- whole ------------------------------------------------------------------------------------------------------------


def chosen(model, seed=0, size=30):
    everyone = ordinary_pool(model)
    order = torch.randperm(len(everyone), generator=local_generator(seed, 99)).tolist()
    ids = sorted(everyone.ids[i] for i in order[:size])
    return Pool("broken", tuple(ids)), everyone.without(ids)


def asked(model, pool, others, **options):
    options = {"batch": 16, "fits": 3, "reference": ",".join(map(str, others.ids))} | options
    return interp.run("glitch_attribution", model, [pool], **options)


@pytest.mark.causes
def test_a_stage_whose_repair_cannot_be_made_is_a_dash(organism, monkeypatch):
    """Without induction heads there is nothing to repair: no number, no rank, and a reason."""
    pool, others = chosen(organism)
    found = calling.classify_heads(organism, repeated(ordinary_pool(organism), batch=16, bos=BOS))
    nothing = found.assign(classified=found.classified & (found.kind != "induction"))
    monkeypatch.setattr(
        "interp.experiments.glitch_attribution.experiment.classify_on_reference", lambda *a, **k: (others, nothing)
    )
    with planted(organism, pool.ids, ["blind-keys"], heads=found):
        result = asked(organism, pool, others)
    at = result.isel(pool=0)
    for stage in ("matching", "content"):
        assert math.isnan(float(at.share.sel(stage=stage)))
        assert at.reason.sel(stage=stage).item() == "no head is classified as an induction head"
        assert float(at.share_high.sel(stage=stage)) > 2
        assert math.isnan(float(at.largest.sel(stage=stage)))
    assert "matching or content" in result.verdict or "content or matching" in result.verdict
    assert "the largest in" not in result.verdict
    lines = [str(line) for line in views.tables(result)]
    assert any("matching is not testable (no head is classified" in line for line in lines)
    drawn = {bar.name: bar for bar in views.figures(result)["deficit_shares"].data}
    assert drawn["matching"].marker.pattern.shape[0] == "/"
    assert drawn["identity"].marker.pattern.shape[0] == ""
    text = "\n".join(lines)
    assert "0.00 (0.00 .. 0.00)" not in text.split("matching is not testable")[0].split("matching")[1][:40]


@pytest.mark.causes
@pytest.mark.parametrize("length", [None, pytest.param(12, marks=pytest.mark.everything)])
def test_a_pool_smaller_than_a_block_with_fitting_blocks_gives_readout(length):
    """Blocks of 25 of these 16 would repeat tokens, which looks like a fault of content."""
    model = models.load("organism-untied")
    pool, others = chosen(model, seed=1, size=16)
    with torch.no_grad():
        heads = calling.classify_heads(model, repeated(ordinary_pool(model), batch=16, bos=BOS))
    with planted(model, pool.ids, ["random-rows"], heads=heads, seed=1):
        with pytest.raises(InterpError, match="need blocks of distinct tokens: use a length of 16 or"):
            asked(model, pool, others, length=25)
        found = asked(model, pool, others, batch=32, length=length)
    assert interp.provenance(found)["sequences"]["length"] == (length or 16)
    found = found.isel(pool=0)
    assert str(found.share.idxmax("stage").values) == "readout", found.verdict
    assert "broken: readout" in found.verdict
    assert "content" not in found.verdict
    assert set(found.reason.values) == {""}


@pytest.mark.parametrize(
    ("moves", "scale"),
    [
        (lambda s: 0.5 * (s - 0.8), 0.8),
        (lambda s: (s - 0.85) ** 3 * 20, 0.85),
        (lambda s: s - 1.2, 1.2),
        (lambda s: 0.01, 1.0),  # next to nothing
        (lambda s: s, 0.5),  # as little as is tried
    ],
)
def test_the_calibrated_attention_leaves_ordinary_tokens_unchanged(organism, circuit, monkeypatch, moves, scale):
    """A mean is better than what varies around it, so that it is scaled."""
    from interp.repairs.minimal_study import MinimalStudy

    def measured(self, tokens, runs):
        by = np.full(len(tokens.ids), moves(runs["matching"].heads.scale)) + np.linspace(-0.01, 0.01, len(tokens.ids))
        sequence = ("at", np.arange(len(tokens.ids)))
        rows = {"combination": ["none", "matching"], "sequence": sequence}
        return xr.Dataset({"value": xr.DataArray([0 * by, by], dims=["combination", "at"], coords=rows)})

    monkeypatch.setattr(MinimalStudy, "_ordinary_values", measured)
    ordinary = ordinary_pool(organism)

    def draw(pool, *, stream=0, **_):
        return repeated(pool, batch=16, length=10, bos=BOS, seed=stream)

    study = MinimalStudy(organism, ordinary, [], None, draw, 1, 1, 0, of=circuit[0])
    assert float(study.calibration()["scale"]) == pytest.approx(scale, abs=0.06)
