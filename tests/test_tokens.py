"""Are the sequences what they claim to be, for every batch size and seed?"""

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError
from interp.tokens import Pool, article, repeated

POOL = Pool("p", tuple(range(10, 90)))
ODD = Pool("odd", (200, 201, 202))


@pytest.mark.parametrize("bos", [0, None])
@pytest.mark.parametrize("copies", [2, 3])
def test_layout(bos, copies):
    tokens = repeated(POOL, batch=5, length=12, copies=copies, bos=bos)
    body = tokens.ids[:, 1:] if bos is not None else tokens.ids
    assert body.shape == (5, 12 * copies)
    for copy in body.split(12, dim=1)[1:]:
        assert torch.equal(copy, body[:, :12])
    assert set(body.flatten().tolist()) <= set(POOL.ids)
    start = [] if bos is None else [0]
    assert tokens.half.tolist() == start + [1 + i // 12 for i in range(12 * copies)]
    assert tokens.offset.tolist() == ([] if bos is None else [-1]) + [i % 12 for i in range(12 * copies)]
    assert not tokens.replacement
    assert all(len(set(row)) == 12 for row in body[:, :12].tolist())


def test_a_small_pool_is_drawn_with_replacement_and_recorded():
    tokens = repeated(ODD, length=12, bos=0)
    assert tokens.replacement
    with pytest.raises(InterpError, match="too few tokens for a block of 12"):
        repeated(ODD, length=12, bos=0, replacement=False)


def test_blocks_fit_the_pool_unless_a_length_is_requested():
    tokens = repeated(ODD, bos=0)
    assert (tokens.length, tokens.replacement) == (len(ODD), False)
    assert repeated(POOL, bos=0).length == 25
    assert repeated(ODD, bos=0, among=POOL).length == 25
    assert repeated(ODD, bos=0, replacement=True).length == 25
    alone = repeated(Pool("one", (7,)), bos=0)
    assert (alone.length, alone.replacement) == (2, True)


def test_sequences_depend_on_seed_and_index_alone():
    few, many = (repeated(POOL, batch=n, bos=0, seed=3) for n in (7, 64))
    assert torch.equal(few.ids, many.ids[:7])
    assert not torch.equal(few.ids, repeated(POOL, batch=7, bos=0, seed=4).ids)
    assert len({tuple(row) for row in many.ids.tolist()}) == 64


def test_draws_leave_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    repeated(POOL, bos=0)
    assert torch.equal(before, torch.get_rng_state())


def test_draws_are_uniform():
    tokens = repeated(POOL, batch=4000, length=20, bos=None)
    counts = np.bincount(tokens.ids[:, :20].flatten(), minlength=90)[10:]
    expected = 4000 * 20 / 80
    assert abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_mixed_blocks_hold_one_tested_token_each():
    tokens = repeated(ODD, batch=200, length=10, bos=0, among=POOL)
    block = tokens.ids[:, 1:11]
    odd = torch.isin(block, torch.tensor(ODD.ids))
    assert odd.sum(1).tolist() == [1] * 200
    assert torch.equal(odd, tokens.tested[:, 1:11])
    assert torch.equal(tokens.tested[:, 1:11], tokens.tested[:, 11:])
    offsets = odd.int().argmax(1)
    assert set(offsets.tolist()) == set(range(1, 9))  # never first, never last
    assert set(block[odd].tolist()) == set(ODD.ids)
    # one query per sequence: the tested token in the second copy
    assert [np.flatnonzero(row).tolist() for row in tokens.inducible_queries] == [[11 + int(o)] for o in offsets]


def test_mixed_within_the_same_pool_keeps_tokens_distinct():
    tokens = repeated(POOL, batch=100, length=30, bos=None, among=POOL)
    assert all(len(set(row)) == 30 for row in tokens.ids[:, :30].tolist())


def test_article_draws_what_torch_randint_draws():
    tokens = article(Pool("a", tuple(range(177, 188))), bos=50256)
    torch.manual_seed(42)
    expected = torch.randint(177, 188, (1, 25))
    assert tokens.ids.tolist() == [[50256, *expected[0].tolist(), *expected[0].tolist()]]
    with pytest.raises(InterpError, match="range of ids"):
        article(Pool("gap", (1, 3)), bos=0)


def test_article_protocol_in_run(wired):
    result = interp.run("repeated_tokens", wired, ["10:21", "30:41"], protocol="article")
    torch.manual_seed(42)
    assert result.token_id.sel(pool="30:41").values[0, 1:26].tolist() == torch.randint(30, 41, (1, 25))[0].tolist()
    assert result.sizes["batch"] == 1
    assert "single" not in result.definition.values
    halves = result.log_prob.sel(pool="10:21").values[0, 1:]
    mean = result.summary.sel(pool="10:21", measure="log_prob", definition="article", bound="mean")
    assert mean.values == pytest.approx([halves[:25].mean(), halves[25:].mean()], abs=1e-5)


def test_control_is_disjoint_and_of_the_same_size():
    control = ODD.control(Pool("all", tuple(range(300))))
    assert len(control) == 3
    assert not set(control.ids) & set(ODD.ids)
    assert control == ODD.control(Pool("all", tuple(range(300))))
    assert control != ODD.control(Pool("all", tuple(range(300))), seed=1)
    with pytest.raises(InterpError, match="larger pool"):
        POOL.control(ODD)


def test_bad_pools():
    with pytest.raises(InterpError, match="is empty"):
        Pool("none", ())
    with pytest.raises(InterpError, match="whole numbers from 0"):
        Pool("negative", (3, -1))
    with pytest.raises(InterpError, match="vocabulary ends at 49"):
        Pool("far", (50,)).check(50)


def test_an_experiment_may_use_the_old_names_of_a_draw_for_one_release(wired):
    drawn = []

    def both(model, pools, draw):
        """One number."""
        first = draw(pools[0])
        drawn.append((draw(pools[0], stream=2), draw(pools[1], paired_with=first, stream=1)))
        with pytest.warns(DeprecationWarning, match="are now stream=, paired_with="):
            drawn.append((draw(pools[0], others=2), draw(pools[1], like=first, others=1)))
        with pytest.raises(TypeError, match="draw has no argument 'other': it has stream and paired_with"):
            draw(pools[0], other=2)
        return interp.label("one", [1.0], "batch")

    interp.run(both, wired, ["a=1:30", "b=30:65"], batch=4, length=10)
    (new, new_pair), (old, old_pair) = drawn
    assert torch.equal(new.ids, old.ids)
    assert torch.equal(new_pair.ids, old_pair.ids)
