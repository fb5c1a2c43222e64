"""Is a deficit claimed of tokens that lack nothing? And are permutation p-values uniform under the null?"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp import models, views
from interp.defects import planted
from interp.experiments.glitch_attribution.experiment import _between_tokens as between_tokens
from interp.heads import classify_heads
from interp.pool_names import ordinary_pool
from interp.statistics import groups_differ_p, permutation_p, wilson_interval
from interp.tokens import Pool, local_generator, repeated

PATH = Path(__file__).parent.parent / "benchmarks" / "no_deficit.py"
BOS = 2047


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("no_deficit", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pools_of(model, count, size, seed=0):
    """Disjoint pools of ordinary tokens, and all others."""
    ordinary = ordinary_pool(model)
    order = torch.randperm(len(ordinary), generator=local_generator(seed, 7)).tolist()
    ids = [sorted(ordinary.ids[i] for i in order[size * k : size * (k + 1)]) for k in range(count)]
    found = [Pool(f"random {k}", tuple(some)) for k, some in enumerate(ids)]
    return found, ordinary.without([i for some in ids for i in some])


# --- p-values ---------------------------------------------------------------------------------------------------------


def test_the_permutation_test_has_its_nominal_level():
    random = np.random.default_rng(0)
    p = [permutation_p(random.normal(size=8), random.normal(size=20), permutations=300) for _ in range(400)]
    assert 0.03 < np.mean(np.array(p) < 0.05) < 0.08
    assert np.mean(p) == pytest.approx(0.5, abs=0.05)
    # all of the deals of three and three: the two most extreme ones are as extreme
    exact = permutation_p([1.0, 2.0, 3.0], [11.0, 12.0, 13.0], permutations=20000)
    assert float(exact) == pytest.approx(2 / 20, abs=0.01)
    assert permutation_p(np.zeros(20), np.ones(20)) == pytest.approx(1 / 2001)
    assert permutation_p([1.0, 1.0], [1.0]) == 1
    several = permutation_p(np.column_stack([np.zeros(20), np.full(20, np.nan)]), np.ones((20, 2)))
    assert several[0] < 0.001
    assert np.isnan(several[1])
    assert np.isnan(permutation_p([], [1.0]))


@pytest.mark.experiment
def test_groups_are_compared_within_blocks():
    """What a whole sequence has in common is not a difference between its tokens."""
    random = np.random.default_rng(0)
    group, block = np.tile(np.arange(8), 12), np.repeat(np.arange(12), 8)

    def p(effect):
        values = random.normal(size=96) + 5 * random.normal(size=12)[block] + effect * random.normal(size=8)[group]
        return float(groups_differ_p(values, group, block, permutations=200))

    assert 0.01 < np.mean([p(0.0) < 0.05 for _ in range(200)]) < 0.09
    assert np.mean([p(1.5) < 0.05 for _ in range(40)]) > 0.95
    assert np.isnan(groups_differ_p(random.normal(size=5), np.zeros(5), np.zeros(5)))
    assert np.isnan(groups_differ_p(random.normal(size=5), np.arange(5), np.arange(5)))  # nothing to exchange
    both = groups_differ_p(np.column_stack([group, np.full(96, np.nan)]), group, block, permutations=50)
    assert both[0] == pytest.approx(1 / 51)
    assert np.isnan(both[1])


def test_intervals_of_rates():
    assert wilson_interval(0, 40) == pytest.approx((0, 0.0876), abs=1e-4)
    assert wilson_interval(2, 40) == pytest.approx((0.0138, 0.1650), abs=1e-4)
    assert wilson_interval(40, 40) == pytest.approx((0.9124, 1), abs=1e-4)
    assert np.isnan(wilson_interval(0, 0)).all()


def test_tokens_are_permuted_within_sequences_or_among_all_if_each_has_one():
    random = np.random.default_rng(3)
    token, sequence = np.tile([3, 5, 9], 20), np.repeat(np.arange(20), 3)
    lacks = 1.0 * (token == 5) + 0.2 * random.normal(size=60)
    values = np.column_stack([lacks, random.normal(size=60), np.full(60, np.nan)])
    p = between_tokens(values, token, sequence)
    assert p[0] < 0.002 < 0.05 < p[1]
    assert np.isnan(p[2])
    one_each = between_tokens(values, token, np.arange(60))
    assert one_each[0] < 0.002 < 0.05 < one_each[1]
    # a token that a sequence repeats is one sample of it
    twice = [np.concatenate([a, a]) for a in (values, token, np.arange(60))]
    assert between_tokens(*twice) == pytest.approx(one_each, nan_ok=True)


@pytest.mark.causes
def test_a_broken_pool_differs_from_an_ordinary_one_by_permutation(organism):
    """And tokens differ where half of them are broken."""
    (broken, other), rest = pools_of(organism, 2, 24)
    with torch.no_grad():
        heads = classify_heads(organism, repeated(ordinary_pool(organism), batch=16, bos=BOS))
    options = {"batch": 8, "fits": 1, "pairings": 1}
    with planted(organism, broken.ids[::2], ["blind-values"], heads=heads):
        found = interp.run(
            "glitch_attribution", organism, [broken, other], reference=",".join(map(str, rest.ids)), **options
        )
    p = found.pools_deficit_p
    assert float(p.sel(pool="random 0", other_pool="random 1")) < 0.01
    assert (p.values == p.values.T).sum() == 2
    assert np.isnan(np.diag(p.values)).all()
    assert float(found.tokens_deficit_p.sel(pool="random 0")) < 0.01
    # a share that is not known of a pool is not compared
    known = found.share.notnull().all("pool")
    compared = found.pools_share_p.sel(pool="random 0", other_pool="random 1").notnull()
    assert compared.values.tolist() == known.values.tolist()
    assert (found.tokens_share_p.notnull() == found.share.notnull()).all()
    said = " ".join(" ".join(str(line) for line in views.tables(found)).split())
    assert "random 0: its tokens differ in their deficit (p = " in said
    assert "random 0 and random 1 differ in their mean deficit (p = " in said


# --- ordinary tokens --------------------------------------------------------------------------------------------------


@pytest.mark.causes
def test_nothing_is_claimed_of_twenty_random_pools():
    model = models.load("organism-untied")
    pools, rest = pools_of(model, 20, 30)
    reference = ",".join(map(str, rest.ids))
    found = interp.run("glitch_attribution", model, pools, batch=16, fits=1, pairings=1, reference=reference)
    verdicts = [line.split(": ", 1)[1] for line in found.verdict.splitlines()]
    assert len(verdicts) == 20
    claimed = [text for text in verdicts if not text.startswith(("no deficit", "cannot tell"))]
    assert len(claimed) <= 1, claimed
    assert int((found.deficit_low > 0.1).sum()) <= 1
    assert sum(text.startswith("no deficit") for text in verdicts) >= 10
    assert float((found.tokens_deficit_p < 0.05).mean()) < 0.4


def test_rates_are_counted(benchmark, organism):
    row = {"deficit": [0.01, -0.02, 0.04], "tokens_p": 0.5, "verdict": "no deficit: 0.01 nats (-0.02 .. 0.04)"}
    rows = [
        row,
        row | {"verdict": "cannot tell: the deficit is 0.09", "deficit": [0.09, -0.1, 0.2]},
        row | {"verdict": "cannot tell: the deficit is 0.2", "deficit": [0.2, 0.15, 0.3]},
        row | {"verdict": "content 0.50 of 0.60 nats", "deficit": [0.6, 0.5, 0.7], "tokens_p": 0.01},
    ]
    expected = ["no deficit", "cannot tell", "deficit claimed", "stage claimed"]
    assert [benchmark.outcome(row) for row in rows] == expected
    said = benchmark.rates(rows).splitlines()
    assert said[0] == "wrongly claimed: 2 of 4 (50.0%, 15.0% .. 85.0%)"
    assert said[-1].startswith("tokens said to differ (p < 0.05): 1 of 4")
    one, rest = benchmark.random_pool(organism, 0, 30)
    assert len(one) == 30
    assert not set(one.ids) & set(rest.ids)
    assert benchmark.random_pool(organism, 1, 30)[0].ids != one.ids
