"""Does every measurement give the answer that theory gives on the hand-wired model?"""

import math

import numpy as np
import pytest
import torch

import interp
from interp.measure import KEY_KINDS, argmax_share, attention_scores, key_masks, log_probs
from interp.tokens import Pool, repeated

UNIFORM = -math.log(65)
WORDS = Pool("words", tuple(range(1, 65)))
LENGTHS = (3, 5, 25, 60)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bos", [True, False])
def test_log_probs_are_exact(wired, length, bos):
    result = interp.run("repeated_tokens", wired, WORDS, length=length, batch=8, bos=bos)
    log_prob = result.log_prob.sel(pool="words")
    assert log_prob.where(result.half == 1).max() == pytest.approx(UNIFORM, abs=1e-4)
    assert log_prob.where(result.half == 1).min() == pytest.approx(UNIFORM, abs=1e-4)
    inducible = log_prob.where((result.half == 2) & (result.offset > 0), drop=True)
    assert inducible.size == 8 * (length - 1)
    assert inducible.min() == pytest.approx(0.0, abs=1e-4)
    # the first token of the second copy follows nothing seen before
    start = log_prob.where((result.half == 2) & (result.offset == 0), drop=True)
    assert start.values == pytest.approx(np.full((8, 1), UNIFORM), abs=1e-4)


@pytest.mark.parametrize("length", LENGTHS)
def test_article_definition_includes_the_unpredictable_first_token(wired, length):
    summary = interp.run("repeated_tokens", wired, WORDS, length=length, batch=8).summary
    mean = summary.sel(pool="words", measure="log_prob", bound="mean")
    assert mean.sel(definition="inducible", part="second") == pytest.approx(0.0, abs=1e-4)
    assert mean.sel(definition="article", part="second") == pytest.approx(UNIFORM / length, abs=1e-4)
    assert mean.sel(definition="single", part="first") == pytest.approx(UNIFORM, abs=1e-4)
    assert mean.sel(definition="single", part="second") == pytest.approx(0.0, abs=1e-4)
    right = summary.sel(pool="words", measure="correct", bound="mean", part="second")
    assert right.sel(definition="inducible") == 1
    assert right.sel(definition="article") == pytest.approx((length - 1) / length)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bos", [True, False])
def test_attention_scores_are_exact(wired, length, bos):
    score = interp.run("attention_scores", wired, WORDS, length=length, batch=8, bos=bos).score.sel(pool="words")
    ones = np.ones(8)
    assert score.sel(key_kind="induction", layer=1, head=0).values == pytest.approx(ones, abs=1e-6)
    assert score.sel(key_kind="previous", layer=0, head=0).values == pytest.approx(ones, abs=1e-6)
    for key_kind, layer in (("induction", 0), ("duplicate", 0), ("current", 0), ("duplicate", 1), ("current", 1)):
        assert score.sel(key_kind=key_kind, layer=layer, head=0).values == pytest.approx(0 * ones, abs=1e-6)
    if bos:
        assert score.sel(key_kind="bos", layer=1, head=0).values == pytest.approx(0 * ones, abs=1e-6)
    else:
        assert score.sel(key_kind="bos").isnull().all()
    # the idle head attends evenly: every key_kind is the mean of 1 / (keys so far)
    first = length + (1 if bos else 0)
    even = np.mean([1 / (q + 1) for q in range(first, first + length - 1)])
    for key_kind in ("induction", "previous", "duplicate", "current"):
        assert score.sel(key_kind=key_kind, layer=0, head=1).values == pytest.approx(even * ones, abs=1e-5)


@pytest.mark.parametrize("copies", [3, 4])
def test_more_copies_sum_over_all_earlier_keys(wired, copies):
    length = 7
    score = interp.run("attention_scores", wired, WORDS, length=length, copies=copies, batch=4).score
    assert score.sel(key_kind="induction", layer=1, head=0).values == pytest.approx(np.ones((1, 4)), abs=1e-6)
    queries = [q for q in range(length + 1, copies * length) if q % length != 0]
    even = np.mean([((q - 1) // length) / (q + 1) for q in queries])
    assert score.sel(key_kind="induction", layer=0, head=1).values == pytest.approx(np.full((1, 4), even), abs=1e-6)


def _pattern_of_a_perfect_head(tokens, shift):
    """Attention 1 on the key `query + shift` wherever that exists, else on key 0."""
    size = tokens.ids.shape[1]
    pattern = torch.zeros(len(tokens.ids), 1, size, size)
    for query in range(size):
        pattern[:, :, query, query + shift if 0 <= query + shift <= query else 0] = 1
    return pattern


@pytest.mark.parametrize("length", [5, 49])
def test_off_by_one_errors_are_distinguished(length):
    """A head one key off scores 0, and a whole diagonal would score less than 1: neither error can hide."""
    tokens = repeated(Pool("p", tuple(range(1, 100))), length=length, batch=2, bos=0)
    queries = torch.from_numpy(tokens.inducible_queries)
    keys = key_masks(tokens.ids, queries, bos=True)
    at = {"induction": 1 - length, "duplicate": -length, "previous": -1, "current": 0}
    for i, (name, shift) in enumerate(at.items()):
        found = attention_scores(_pattern_of_a_perfect_head(tokens, shift), keys, queries, bos=True)
        score = dict(zip(KEY_KINDS, found, strict=True))
        for other in at:
            assert score[other].tolist() == [[1.0 if other == name else 0.0]] * 2, (i, other)
    # the diagonal q - k = L - 1 also runs through queries that cannot induce: with BOS at L = 49 it gives 0.98
    pattern = _pattern_of_a_perfect_head(tokens, 1 - length)
    pattern[:, :, : length + 1] = 0  # a perfect induction head that attends elsewhere before the second copy
    pattern[:, :, : length + 1, 0] = 1
    exact = attention_scores(pattern, keys, queries, bos=True)[0]
    diagonal = pattern.diagonal(1 - length, dim1=-2, dim2=-1).mean(-1)
    assert exact.tolist() == [[1.0]] * 2
    assert diagonal.max() < 1


def test_inducible_queries_are_the_second_copy_without_its_last():
    for bos, first in ((0, 1), (None, 0)):
        tokens = repeated(WORDS, length=6, batch=3, bos=bos)
        where = [np.flatnonzero(row).tolist() for row in tokens.inducible_queries]
        assert where == [list(range(6 + first, 11 + first))] * 3


def test_log_probs_are_labelled_by_the_token_predicted():
    logits = torch.full((1, 4, 3), -1e4)
    ids = torch.tensor([[0, 1, 2, 1]])
    for position, target in enumerate([1, 2, 1]):  # logits at p predict p + 1
        logits[0, position, target] = 0
    found = log_probs(logits, ids)
    assert found[0, 0].isnan()
    assert found[0, 1:].tolist() == [0.0, 0.0, 0.0]
    shifted = log_probs(logits.roll(1, dims=1), ids)  # read one position late: nothing is right
    assert (shifted[0, 2:] < -100).all()


@pytest.mark.parametrize(("layer", "head", "cost"), [(0, 0, -UNIFORM), (1, 0, -UNIFORM), (0, 1, 0.0), (1, 1, 0.0)])
def test_ablating_a_wired_head_costs_the_log_of_the_vocabulary(wired, layer, head, cost):
    tokens = repeated(WORDS, length=20, batch=8, bos=0)

    def zero(z, hook):
        z[:, :, head] = 0
        return z

    with torch.inference_mode():
        whole = log_probs(wired(tokens.ids), tokens.ids)
        cut = log_probs(wired.run_with_hooks(tokens.ids, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)]), tokens.ids)
    inducible = torch.from_numpy(tokens.inducible)
    assert (whole - cut)[:, inducible].mean() == pytest.approx(cost, abs=1e-4)


def test_shapes_are_checked_at_run_time():
    """The tests run the measurements under beartype: a swapped dimension cannot pass silently."""
    from jaxtyping import TypeCheckError

    with pytest.raises(TypeCheckError):
        log_probs(torch.zeros(2, 5, 7), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(TypeCheckError):
        key_masks(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5), bos=True)
    masks, queries = torch.ones(2, 5, 5, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)
    assert attention_scores(torch.zeros(2, 3, 5, 5), masks, queries, bos=True).shape == (5, 2, 3)
    for measure in (attention_scores, argmax_share):
        with pytest.raises(TypeCheckError):
            measure(torch.zeros(2, 3, 5, 4), masks, queries, bos=True)
        with pytest.raises(TypeCheckError):
            measure(torch.zeros(2, 3, 5, 5), masks, torch.ones(2, 5), bos=True)
