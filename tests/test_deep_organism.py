"""Do heads of the four-layer organism back each other up, and are its planted defects found nevertheless?"""

import math

import pytest
import torch

import interp
from interp.defects import DEFECTS, planted
from interp.heads import classify_heads, heads_of_kind
from interp.hooks import ablate_heads, record
from interp.pool_names import ordinary_pool
from interp.residual import Readout, head_writes, write_hooks
from interp.tokens import Pool, local_generator, repeated

BOS = 2047


@pytest.fixture(scope="module")
def deep():
    return interp.load("organism-deep")


@pytest.fixture(scope="module")
def classified(deep):
    with torch.no_grad():
        return classify_heads(deep, repeated(ordinary_pool(deep), batch=16, bos=BOS))


@torch.no_grad()
def contributions(model, tokens, hooks=()):
    """The right token's logit, against the vocabulary's mean, and what of it each head [layer head] writes itself."""
    seen = record(model, tokens.ids, [*write_hooks(model, heads=True), "unembed.hook_out"], hooks=list(hooks))
    sequence, position = torch.from_numpy(tokens.inducible).expand_as(tokens.ids).nonzero(as_tuple=True)
    at, token = (sequence, position - 1), tokens.ids[sequence, position]
    logits = seen["unembed.hook_out"][at]
    readout = Readout.of(model)
    scale = readout.inverse_scale(seen["ln_final.hook_in"][at], seen["unembed.hook_in"][at])
    direction = (readout.directions(token) * scale)[:, None]
    heads = [(head_writes(model, la, seen)[0][at] * direction).sum(-1).mean(0) for la in range(model.cfg.n_layers)]
    return float((logits.gather(1, token[:, None])[:, 0] - logits.mean(1)).mean()), torch.stack(heads)


def test_it_copies_ordinary_tokens_and_no_unexposed_ones(deep):
    summary = interp.run("repeated_tokens", deep, seed=1234, batch=16).summary
    mean = summary.sel(definition="inducible", part="second", bound="mean")
    assert mean.sel(pool="ordinary", measure="correct") >= 0.95
    assert mean.sel(pool="ordinary", measure="log_prob") >= -0.5
    assert mean.sel(pool="unexposed", measure="log_prob") <= -3


def test_heads_of_the_next_layer_take_over_from_silent_ones(deep, classified):
    """What the induction heads wrote for the right token is written by a later layer's (McGrath et al. 2023)."""
    called = heads_of_kind(classified, "induction")
    assert {layer for layer, _ in called} == {1}
    tokens = repeated(ordinary_pool(deep), batch=16, bos=BOS, seed=5)
    logit, wrote = contributions(deep, tokens)
    logit_without, writes = contributions(deep, tokens, ablate_heads(deep, called, kind="zero"))
    direct = sum(float(wrote[head]) for head in called)
    assert direct > 4
    assert float(wrote[2].abs().max()) < 0.3  # as long as layer 1 writes, they do not
    assert logit - logit_without < 0.5 * direct
    assert float((writes - wrote)[2].sum()) > 0.7 * direct


def test_backup_heads_do_not_take_over_after_mean_ablation(deep, classified):
    """Silence triggers the backup, not the missing token: a mean ablation costs everything."""
    called = heads_of_kind(classified, "induction")
    tokens, others = (repeated(ordinary_pool(deep), batch=16, bos=BOS, seed=seed) for seed in (5, 6))
    known = record(deep, others.ids, [f"blocks.{layer}.attn.hook_z" for layer in range(deep.cfg.n_layers)])
    logit, wrote = contributions(deep, tokens)
    hooks = ablate_heads(deep, called, kind="mean", record=known)
    logit_without, writes = contributions(deep, tokens, hooks)
    direct = sum(float(wrote[head]) for head in called)
    assert logit - logit_without > direct
    assert float((writes - wrote)[2:].sum()) < 0.1 * direct


def broken(model, defect, seed, classified):
    """The result for thirty ordinary tokens that are broken in one way."""
    everyone = ordinary_pool(model)
    order = torch.randperm(len(everyone), generator=local_generator(seed, 99)).tolist()
    pool = Pool("broken", tuple(sorted(everyone.ids[i] for i in order[:30])))
    reference = ",".join(map(str, everyone.without(pool.ids).ids))
    with planted(model, pool.ids, [defect], heads=classified, seed=seed):
        found = interp.run("glitch_attribution", model, [pool], batch=16, fits=2, seed=seed, reference=reference)
    return found.isel(pool=0)


@pytest.mark.causes
@pytest.mark.parametrize("seed", [0])
@pytest.mark.parametrize("defect", ["random-rows", "blind-values"])
def test_a_planted_stage_ranks_first_or_is_reported_untested(deep, classified, defect, seed):
    found = broken(deep, defect, seed, classified)
    stage, said = DEFECTS[defect], found.attrs["verdict"].partition(": ")[2]
    assert float(found.deficit) > 1
    untested = [str(s) for s in found.stage.values if str(found.reason.sel(stage=s).values)]
    for other in untested:
        assert math.isnan(float(found.share.sel(stage=other)))
        assert f"{other} is not testable" in said
    if said.startswith("cannot tell"):
        assert untested, said  # where all was tested, the planted stage is the largest
        assert stage in said.removeprefix("cannot tell: ").partition(" (")[0].split(" or "), said
        assert float(found.share_high.sel(stage=stage)) > 0.5 * float(found.deficit)
    else:
        assert said.startswith(stage), said
