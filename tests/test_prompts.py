"""Are prompts of a user's own read as blocks are, and as TransformerLens reads them? Is a mistake in a file one line?"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import interp
from interp import cache, prompts as making
from interp.errors import InterpError
from interp.metrics import scores
from interp.request import Request
from interp.runner import Source
from interp.tokens import Answered, Paired, Pool, Repeated, Sequences, paired, repeated

WORDS = Pool("words", tuple(range(1, 65)))
CODE = {"text": "def f(a, b):\n    return a", "answer": " +", "rivals": [" -"], "spans": {"args": "a, b"}}


def written_out(tokens, other=None):
    """Repeated blocks as lines of a file of prompts."""
    pairs = [{}] * len(tokens.ids) if other is None else [{"corrupted": row.tolist()} for row in other.ids]
    return [
        {"ids": row.tolist(), "read": np.flatnonzero(read).tolist(), **pair}
        for row, read, pair in zip(tokens.ids, tokens.inducible_tested, pairs, strict=True)
    ]


@pytest.fixture(scope="module")
def blocks(organism):
    return repeated(interp.pools("ordinary", organism)[0], batch=6, length=8, bos=2047)


# --- the same numbers as repeated blocks ------------------------------------------------------------------------------


def test_the_lens_and_direct_attribution_are_those_of_repeated_blocks(organism, blocks):
    given = written_out(blocks)
    options = {"batch": 6, "length": 8}
    lens = interp.run("logit_lens", organism, "ordinary", **options)
    at = (lens["half"] == 2) & (lens["offset"] > 0)
    for metric, name in (("log_prob", "log_prob_after"), ("rank", "rank_after")):
        found = interp.run("logit_lens", organism, prompts=given, metric=metric)["score_after"].isel(pool=0)
        right = lens[name].where(at).mean("position").isel(pool=0)
        assert found.values == pytest.approx(right.transpose("after", "batch").values, abs=2e-6, rel=1e-6)
    right = interp.run("logit_attribution", organism, "ordinary", **options).isel(pool=0)
    found = interp.run("logit_attribution", organism, prompts=given).isel(pool=0)
    for name in ("by_component", "by_head", "bias", "total"):
        assert found[name].values == pytest.approx(right[name].values, abs=1e-6), name


@pytest.mark.parametrize("model", ["wired", "organism"])
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablation_is_that_of_repeated_blocks(request, model, kind):
    """The means are over other sequences, so that both are given the same ones."""
    model = request.getfixturevalue(model)
    tokens = repeated(WORDS, batch=6, length=8, bos=0)
    [given] = making.prompt_sets(making.spec_texts(written_out(tokens)), model, first=None)
    from interp.baselines import mean_of_others
    from interp.hooks import ablate_heads, heads_of, record, z_names
    from interp.sweep import sweep

    known = record(model, tokens, z_names(model))
    if kind == "mean":
        known, over = mean_of_others(known, given)
        assert over == "positions"
    way = "zero" if kind == "zero" else "resample"
    plans = [[], *(ablate_heads(model, [at], kind=way, record=known) for at in heads_of(model))]
    right = sweep(model, tokens, plans, tokens.inducible_tested).nanmean(-1).numpy()
    made = interp.run("head_ablation", model, prompts=written_out(tokens), kind=kind).isel(pool=0)
    assert made["clean"].values == pytest.approx(right[0], abs=1e-6)
    lost = made["lost"].transpose("layer", "head", "batch").values.reshape(right[1:].shape)
    assert lost == pytest.approx(right[0] - right[1:], abs=1e-6, rel=1e-6)


@pytest.mark.experiment
def test_zero_ablation_and_gradients_are_those_of_repeated_blocks(organism, blocks):
    given = written_out(blocks)
    right = interp.run("head_ablation", organism, "ordinary", batch=6, length=8, kind="zero").isel(pool=0)
    found = interp.run("head_ablation", organism, prompts=given, kind="zero").isel(pool=0)
    for name in ("lost", "clean"):
        assert found[name].values == pytest.approx(right[name].values, abs=1e-6), name
    # the baselines are other sequences there and the other prompts here: a prompt's exact loss is what both must find
    found = interp.run("head_attribution", organism, prompts=given).isel(pool=0)
    ablated = interp.run("head_ablation", organism, prompts=given, kind="mean").isel(pool=0)
    assert found["lost"].sel(estimate="exact").values == pytest.approx(ablated["lost"].values, abs=1e-6)
    assert float(found["agreement"].sel(estimate="integrated", fit="spearman")) > 0.9


@pytest.mark.experiment
@pytest.mark.parametrize("head", ["z", "v", "pattern"])
def test_activation_patching_is_that_of_repeated_blocks(organism, head):
    """Noising runs on the ordinary sequence and reads its own token, as a clean prompt's answer is read."""
    found, tokens, other = _patched(organism, "activation_patching", head=head)
    right = interp.run("activation_patching", organism, "unexposed", batch=5, length=7, head=head, sequences=5)
    right = right.isel(pool=0)
    pairs = {"denoising": "other", "noising": "own"}  # the ordinary sequence's token in either
    for direction, target in pairs.items():
        at = right.sel(direction=direction, target=target)
        mine = found.sel(direction=direction)
        assert mine["by_head"].values == pytest.approx(at["by_head"].values, abs=1e-5), direction
        assert mine["clean"].values == pytest.approx(at["clean_head"].values, abs=1e-5)
    # the last token alone is read position by position there
    last = [{**line, "read": line["read"][-1:]} for line in written_out(other, tokens)]
    found = interp.run("activation_patching", organism, prompts=last, head=head).isel(pool=0)
    for direction, target in pairs.items():
        at = right.sel(direction=direction, target=target)["by_position"]
        mine = found.sel(direction=direction)["by_position"]
        fed = mine.sizes["position"]
        assert mine.values == pytest.approx(at.transpose("layer", "position", "pair").values[:, :fed], abs=1e-5)


@pytest.mark.experiment
def test_path_patching_is_that_of_repeated_blocks(organism):
    right = interp.run("path_patching", organism, "unexposed", batch=5, length=7, most=2, controls=1).isel(pool=0)
    receivers = [str(name) for name in right["receiver"].values if name != "all"]
    found, _, _ = _patched(organism, "path_patching", receivers=",".join(receivers))
    for direction, target in {"denoising": "other", "noising": "own"}.items():
        at, mine = right.sel(direction=direction, target=target), found.sel(direction=direction)
        for sender in map(str, right["sender"].values):
            layer, head = map(int, sender[1:].split("H"))
            for via in ("q", "k", "v"):
                assert mine["effect"].sel(via=via, layer=layer, head=head).values == pytest.approx(
                    at["effect"].sel(via=via, sender=sender, receiver="all").values, abs=1e-5
                )
        for writer in map(str, right["writer"].values):
            layer, head = map(int, writer[1:].split("H"))
            right_one = at["direct"].sel(writer=writer).values
            assert mine["direct"].sel(layer=layer, head=head).values == pytest.approx(right_one, abs=1e-5)


def _patched(model, name, **options):
    """An experiment on pairs that `activation_patching` would draw, written out as prompts."""
    pools = interp.pools("unexposed", model)
    tokens = repeated(pools[0], batch=5, length=7, bos=2047)
    from interp.pool_names import ordinary_pool

    other = paired(tokens, ordinary_pool(model), seed=0)
    found = interp.run(name, model, prompts=written_out(other, tokens), **options)
    return found.isel(pool=0), tokens, other


def test_attention_is_that_of_repeated_blocks(wired):
    tokens = repeated(WORDS, batch=4, length=6, bos=0)
    given = [{**line, "spans": {"first": [1, 7]}} for line in written_out(tokens)]
    made = interp.run("attention_scores", wired, prompts=given).score.isel(pool=0)
    blocks = interp.run("attention_scores", wired, [WORDS], batch=4, length=6).score.isel(pool=0)
    for kind in ("previous", "current"):
        assert made.sel(key_kind=kind).values == pytest.approx(blocks.sel(key_kind=kind).values, abs=1e-6)
    # every query of the second copy looks back into the first: the induction key is there
    assert made.sel(key_kind="first", layer=1, head=0).values == pytest.approx(np.ones(4), abs=1e-6)
    pattern = interp.run("attention_pattern", wired, prompts=given, heads="L1H0", sequence=2).pattern
    right = interp.run("attention_pattern", wired, [WORDS], batch=4, length=6, heads="L1H0", sequence=2).pattern
    size = pattern.sizes["query"]
    assert pattern.values == pytest.approx(right.values[..., :size, :size], abs=1e-6)


# --- the same numbers as TransformerLens ------------------------------------------------------------------------------


@pytest.mark.experiment
@pytest.mark.parametrize("metric", ["logit_difference", "log_prob"])
def test_patching_is_that_of_transformer_lens_cell_by_cell(tiny_gpt2, metric):
    from transformer_lens import patching

    model = interp.load(str(tiny_gpt2))
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(5, 2000, (3, 7), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 3] = torch.randint(5, 2000, (3,), generator=generator)
    right, wrong = torch.randint(5, 1000, (3,), generator=generator), torch.randint(1000, 2000, (3,), generator=generator)
    lines = [
        {"ids": c.tolist(), "corrupted": k.tolist(), "answer": int(a), "rivals": [int(b)], "spans": {"third": [3, 4]}}
        for c, k, a, b in zip(clean, corrupted, right, wrong, strict=True)
    ]

    def of_tl(logits):
        last = logits[:, -1] if metric == "logit_difference" else logits[:, -1].log_softmax(-1)
        own = last.gather(1, right[:, None])
        return (own - last.gather(1, wrong[:, None]) if metric == "logit_difference" else own).mean()

    with torch.no_grad():
        _, seen = model.run_with_cache(clean, prepend_bos=False)
        streams = {
            "resid_pre": patching.get_act_patch_resid_pre,
            "attn_out": patching.get_act_patch_attn_out,
            "mlp_out": patching.get_act_patch_mlp_out,
        }
        for stream, theirs in streams.items():
            found = interp.run("activation_patching", model, prompts=lines, metric=metric, stream=stream)
            mine = found["by_position"].sel(direction="denoising").isel(pool=0).mean("batch")
            assert mine.shape == (2, 7)
            assert mine.values == pytest.approx(theirs(model, corrupted, seen, of_tl).numpy(), abs=1e-4), stream
            named = found["by_name"].sel(direction="denoising", named="third").isel(pool=0).mean("batch")
            assert named.values == pytest.approx(mine.sel(position=3).values, abs=1e-6)
        heads = {
            "z": patching.get_act_patch_attn_head_out_all_pos,
            "q": patching.get_act_patch_attn_head_q_all_pos,
            "k": patching.get_act_patch_attn_head_k_all_pos,
            "v": patching.get_act_patch_attn_head_v_all_pos,
            "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
        }
        for head, theirs in heads.items():
            found = interp.run("activation_patching", model, prompts=lines, metric=metric, head=head)
            mine = found["by_head"].sel(direction="denoising").isel(pool=0).mean("batch")
            assert mine.values == pytest.approx(theirs(model, corrupted, seen, of_tl).numpy(), abs=1e-4), head


def test_metrics_are_those_of_the_model_alone(organism):
    """Padding at the right, answers behind the prompt and shared passes change nothing: each prompt on its own agrees."""
    lines = [
        CODE,
        {"text": "import os\nimport", "answer": [" sys", " re"], "rivals": [" os", " in"]},
        {"text": "for i in range(10):\n    print(i)\n\nfor", "answer": " i", "rivals": " x"},
    ]
    [given] = making.prompt_sets(making.spec_texts(lines), organism, first=2047)
    assert given.present.sum(1).tolist() != [given.ids.shape[1]] * 3
    made = {
        metric: scores(organism, given, [[]], metric)[0]
        for metric in ("log_prob", "logit_difference", "probability", "rank", "kl")
    }
    for i in range(3):
        size = int(given.present[i].sum()) - 1
        with torch.no_grad():
            last = organism(given.ids[i : i + 1, :size], prepend_bos=False)[0, -1]
        answers, rivals = ([t for t in row[i, size].tolist() if t >= 0] for row in (given.answers, given.rivals))
        probability = float(last.softmax(-1)[answers].sum())
        assert made["probability"][i] == pytest.approx(probability, abs=1e-6)
        assert made["log_prob"][i] == pytest.approx(math.log(probability), abs=1e-4)
        assert made["logit_difference"][i] == pytest.approx(float(last[answers].mean() - last[rivals].mean()), abs=1e-4)
        assert made["rank"][i] == min(int((last > last[a]).sum()) for a in answers)
        assert made["kl"][i] == pytest.approx(0, abs=1e-6)


def test_the_divergence_from_the_clean_run_is_torchs(organism, blocks):
    from interp.hooks import ablate_heads

    hooks = ablate_heads(organism, "L0H0", kind="zero")
    made = scores(organism, blocks, [hooks], "kl")[0]
    with torch.no_grad():
        clean = organism(blocks.ids, prepend_bos=False).log_softmax(-1)
        changed = organism.run_with_hooks(blocks.ids, fwd_hooks=hooks, prepend_bos=False).log_softmax(-1)
    each = torch.nn.functional.kl_div(changed, clean, log_target=True, reduction="none").sum(-1)
    queries = torch.from_numpy(np.append(blocks.inducible[1:], False))
    assert made == pytest.approx(each[:, queries].mean(1).numpy(), abs=1e-5)
