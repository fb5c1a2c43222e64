"""Does each intervention change what it documents, by exactly that much, and leave the model unchanged?"""

import contextlib
import math

import numpy as np
import pytest
import torch

from interp import hooks, models
from interp.errors import InterpError
from interp.measure import log_probs
from interp.tokens import Pool, repeated

KNOWN, UNKNOWN = 0.0, -math.log(65)
PREVIOUS, INDUCTION = (0, 0), (1, 0)


def draw(seed=0, batch=6, low=1, high=64, bos=0, length=10):
    return repeated(Pool("any", tuple(range(low, high))), batch=batch, length=length, bos=bos, seed=seed)


def inducible(model, tokens, added):
    """Mean log-prob of the inducible tokens with these hooks."""
    with torch.no_grad():
        logits = model.run_with_hooks(tokens.ids, fwd_hooks=added, prepend_bos=False)
    return float(log_probs(logits, tokens.ids)[:, tokens.inducible].mean())


@pytest.fixture(scope="module", params=["organism", "organism-llama"])
def organism_of_each_kind(request):
    return models.load(request.param)


# --- exact values on the hand-wired model -------------------------------------------------------------------------------


def test_zero_ablation_costs_the_logarithm_of_the_vocabulary(wired):
    tokens = draw()
    assert inducible(wired, tokens, []) == pytest.approx(KNOWN, abs=1e-4)
    for heads, left in (
        ([PREVIOUS], UNKNOWN), ([INDUCTION], UNKNOWN), ([PREVIOUS, INDUCTION], UNKNOWN), ([(0, 1)], KNOWN), ([(0, 1), (1, 1)], KNOWN),
    ):  # fmt: skip
        assert inducible(wired, tokens, hooks.ablate_heads(wired, heads)) == pytest.approx(left, abs=1e-3)


def test_mean_and_resample_ablation(wired):
    """Another sequence's previous token misleads; the mean over many carries no information."""
    tokens, others = draw(), draw(seed=1)
    known = hooks.record(wired, others.ids, hooks.z_names(wired))
    resampled = inducible(wired, tokens, hooks.ablate_heads(wired, [INDUCTION], kind="resample", record=known))
    assert resampled < -100  # it is certain of the other sequence's token
    many = hooks.record(wired, draw(seed=2, batch=200).ids, hooks.z_names(wired))
    averaged = inducible(wired, tokens, hooks.ablate_heads(wired, [INDUCTION], kind="mean", record=many))
    mean = sum(many["blocks.1.attn.hook_z"]) / 200

    def by_hand(value, hook):
        return torch.stack([mean[:, 0].expand_as(value[:, :, 0]), value[:, :, 1]], dim=2)

    assert averaged == pytest.approx(inducible(wired, tokens, [("blocks.1.attn.hook_z", by_hand)]), abs=1e-4)
    assert averaged < UNKNOWN
    own = hooks.record(wired, tokens.ids, hooks.z_names(wired))
    same = inducible(wired, tokens, hooks.ablate_heads(wired, [INDUCTION], kind="resample", record=own))
    assert same == pytest.approx(KNOWN, abs=1e-4)


def test_frozen_patterns_separate_looking_from_moving(wired):
    """Without the previous-token head nothing is found; with the attention of a clean run, the copy is made all the same."""
    tokens = draw()
    clean = hooks.record(wired, tokens.ids, hooks.pattern_names(wired))
    assert inducible(wired, tokens, hooks.ablate_heads(wired, [PREVIOUS])) == pytest.approx(UNKNOWN, abs=1e-3)
    both = hooks.ablate_heads(wired, [PREVIOUS]) + hooks.freeze_patterns(wired, clean)
    assert inducible(wired, tokens, both) == pytest.approx(KNOWN, abs=1e-3)
    # the value of the induction head is what it moves: freezing does not help where that is gone
    moved = hooks.ablate_heads(wired, [INDUCTION]) + hooks.freeze_patterns(wired, clean)
    assert inducible(wired, tokens, moved) == pytest.approx(UNKNOWN, abs=1e-3)


def test_activation_patching_denoises_where_the_circuit_is(wired):
    """A sequence that is no repeat, with the activations of one that is: the last token's answer comes back."""
    tokens = draw(batch=4)
    corrupt = tokens.ids.clone()
    corrupt[:, 1:11] = corrupt[:, 1:11].flip(1)  # the first copy in another order: nothing true can be copied
    clean = hooks.record(wired, tokens.ids, [*hooks.z_names(wired), "blocks.1.hook_resid_pre"])
    for name, heads, back in (
        ("blocks.1.attn.hook_z", [0], True), ("blocks.1.attn.hook_z", [1], False), ("blocks.0.attn.hook_z", [1], False),
        ("blocks.1.hook_resid_pre", None, True),
    ):  # fmt: skip
        with torch.no_grad():
            added = [hooks.patch(wired, name, clean, heads=heads)]
            logits = wired.run_with_hooks(corrupt, fwd_hooks=added, prepend_bos=False)
        found = float(log_probs(logits, tokens.ids)[:, 12:].mean())
        assert (found > -0.01) == back
    # at one position alone, only the token predicted there is repaired
    added = [hooks.patch(wired, "blocks.1.attn.hook_z", clean, positions=[14], heads=[0])]
    with torch.no_grad():
        scores = log_probs(wired.run_with_hooks(corrupt, fwd_hooks=added, prepend_bos=False), tokens.ids)
    assert scores[:, 15].mean() > -0.01
    assert scores[:, 16:].mean() < -3


@pytest.mark.parametrize(("via", "carried"), [("k", True), ("q", False), ("v", False)])
def test_paths_of_the_hand_wired_circuit(wired, via, carried):
    """The previous-token head reaches the induction head through its keys: that is the match. What it adds to the values
    is taken off the logit of another token, which changes no answer; its queries read nothing of it."""
    tokens = draw(batch=4)
    other = hooks.record(wired, draw(seed=3, batch=4).ids, hooks.z_names(wired))
    path = hooks.path_patch(wired, tokens.ids, other, [PREVIOUS], [INDUCTION], via=via)
    assert (inducible(wired, tokens, path) < -1) == carried
    with torch.no_grad():
        logits = wired.run_with_hooks(tokens.ids, fwd_hooks=path, prepend_bos=False)
        assert torch.allclose(logits, wired(tokens.ids, prepend_bos=False), atol=1e-3) == (via == "q")
    for senders, receivers in (([(0, 1)], [INDUCTION]), ([PREVIOUS], [(1, 1)])):
        nothing = hooks.path_patch(wired, tokens.ids, other, senders, receivers, via=via)
        assert inducible(wired, tokens, nothing) == pytest.approx(KNOWN, abs=1e-3)


def test_paths_to_the_logits(wired):
    """The induction head writes to the logits, the previous-token head does not, when later heads are frozen."""
    tokens = draw(batch=4)
    other = hooks.record(wired, draw(seed=3, batch=4).ids, hooks.z_names(wired))
    direct = hooks.path_patch(wired, tokens.ids, other, [PREVIOUS])
    assert inducible(wired, tokens, direct) == pytest.approx(KNOWN, abs=1e-3)
    assert inducible(wired, tokens, hooks.path_patch(wired, tokens.ids, other, [INDUCTION])) < -1


def test_replaced_rows_of_one_side_change_only_that_side(wired):
    """A token fed as another is copied as that other; a token read with another's row gets its logit."""
    tokens = draw(batch=4, length=8)
    rows = wired.original_model.get_input_embeddings().weight.detach()
    outputs = wired.original_model.get_output_embeddings().weight.detach()
    token = int(tokens.ids[0, 3])
    free = next(i for i in range(1, 64) if i not in tokens.ids)
    with torch.no_grad():
        logits = wired.run_with_hooks(
            tokens.ids, fwd_hooks=hooks.embedding_rows(wired, tokens.ids, {token: rows[free]}), prepend_bos=False
        )
    assert int(logits[0, 10].argmax()) == free  # after its predecessor's second occurrence
    with torch.no_grad():
        plain = wired(tokens.ids, prepend_bos=False)
        added = hooks.unembedding_rows(wired, {free: outputs[token]})
        read = wired.run_with_hooks(tokens.ids, fwd_hooks=added, prepend_bos=False)
    assert read[..., free] == pytest.approx(plain[..., token].numpy(), abs=1e-3)
    others = [i for i in range(65) if i != free]
    assert torch.equal(read[..., others], plain[..., others])


def test_projecting_a_direction_out(organism):
    tokens = draw(high=2000, batch=3, bos=2047)
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0))
    name = "blocks.1.hook_resid_pre"
    with torch.no_grad():
        before = hooks.record(organism, tokens.ids, [name])[name]
        after = hooks.record(organism, tokens.ids, [name], hooks=[hooks.project_out(organism, name, direction)])[name]
    unit = direction / direction.norm()
    assert (after @ unit).abs().max() < 1e-4
    assert after == pytest.approx((before - (before @ unit)[..., None] * unit).numpy(), abs=1e-4)


# --- on trained models, grouped queries included ------------------------------------------------------------------------


def test_patching_everything_is_the_other_run(organism_of_each_kind):
    """All of a run's residual stream put into another gives that run's logits, for each kind of activation."""
    model = organism_of_each_kind
    one, two = draw(high=2000, bos=2047), draw(seed=1, high=2000, bos=2047)
    with torch.no_grad():
        expected = model(two.ids, prepend_bos=False)
        for names in (["blocks.0.hook_resid_pre"], ["blocks.1.hook_resid_pre"], ["blocks.1.hook_resid_post"]):
            added = [hooks.patch(model, n, hooks.record(model, two.ids, names)) for n in names]
            got = model.run_with_hooks(one.ids, fwd_hooks=added, prepend_bos=False)
            assert (got - expected).abs().max() < 1e-4
        # queries, keys and values together are what a layer's heads are made of
        names = [f"blocks.1.attn.hook_{x}" for x in "qkv"]
        known = hooks.record(model, two.ids, [*names, "blocks.1.attn.hook_z"])
        got = hooks.record(
            model, one.ids, ["blocks.1.attn.hook_z"], hooks=[hooks.patch(model, n, known) for n in names]
        )
        assert (got["blocks.1.attn.hook_z"] - known["blocks.1.attn.hook_z"]).abs().max() < 1e-4


def test_ablating_every_head_leaves_no_attention(organism_of_each_kind):
    model = organism_of_each_kind
    tokens = draw(high=2000, bos=2047)
    everything = [(layer, head) for layer in range(2) for head in range(4)]
    with torch.no_grad():
        ablated = model.run_with_hooks(tokens.ids, fwd_hooks=hooks.ablate_heads(model, everything), prepend_bos=False)
        # without attention, a token's prediction knows nothing of the others
        alone = tokens.ids.clone()
        alone[:, 1:-1] = 300
        again = model.run_with_hooks(alone, fwd_hooks=hooks.ablate_heads(model, everything), prepend_bos=False)
    assert (ablated[:, -1] - again[:, -1]).abs().max() < 1e-4
    assert (model(tokens.ids, prepend_bos=False)[:, -1] - model(alone, prepend_bos=False)[:, -1]).abs().max() > 1


def test_the_sum_of_paths_is_the_whole(organism_of_each_kind):
    """All heads of layer 0 and its MLP sent to all heads of layer 1 through q, k and v, is patching layer 1's input."""
    model = organism_of_each_kind
    one, two = draw(high=2000, bos=2047), draw(seed=1, high=2000, bos=2047)
    with torch.no_grad():
        other = hooks.record(model, two.ids, [*hooks.z_names(model), *hooks.mlp_names(model)])
        heads = [(0, h) for h in range(4)]
        paths = []
        for via in ("q", "k", "v"):
            paths += hooks.path_patch(
                model, one.ids, other, heads, [(1, h) for h in range(4)], via=via, sender_mlps=[0]
            )  # fmt: skip
        got = hooks.record(model, one.ids, ["blocks.1.attn.hook_z"], hooks=paths)["blocks.1.attn.hook_z"]
        direct = [hooks.patch(model, n, other) for n in ("blocks.0.attn.hook_z", "blocks.0.hook_mlp_out")]
        expected = hooks.record(model, one.ids, ["blocks.1.attn.hook_z"], hooks=direct)["blocks.1.attn.hook_z"]
    assert (got - expected).abs().max() < 1e-4


def test_grouped_queries_are_served_together(organism):
    llama = models.load("organism-llama")
    assert [hooks.kv_head(llama, h) for h in range(4)] == [0, 0, 1, 1]
    assert [hooks.kv_head(organism, h) for h in range(4)] == [0, 1, 2, 3]


# --- cleaning up, and messages ------------------------------------------------------------------------------------------


def test_the_model_is_unchanged_afterwards(organism):
    tokens = draw(high=2000, bos=2047)
    with torch.no_grad():
        before = organism(tokens.ids, prepend_bos=False)

        def fails(value, hook):
            raise KeyboardInterrupt

        for added in (hooks.ablate_heads(organism, [(1, 2)]), [("blocks.1.hook_resid_pre", fails)]):
            with contextlib.suppress(KeyboardInterrupt):
                organism.run_with_hooks(tokens.ids, fwd_hooks=added, prepend_bos=False)
            assert torch.equal(organism(tokens.ids, prepend_bos=False), before)


def test_impossible_interventions_are_refused(organism, wired):
    tokens = draw(high=60)
    known = hooks.record(wired, tokens.ids, hooks.z_names(wired))
    few = hooks.record(wired, draw(batch=2).ids, hooks.z_names(wired))
    longer = hooks.record(wired, draw(length=12).ids, hooks.z_names(wired))
    cases = [
        (lambda: hooks.ablate_heads(wired, [(2, 0)]), "no layer 2: this model has layers 0 to 1"),
        (lambda: hooks.ablate_heads(wired, [(0, 7)]), "no head 7 in layer 0: this model has heads 0 to 1"),
        (lambda: hooks.ablate_heads(wired, [(0, 0)], kind="mean"), "the record has no 'blocks.0.attn.hook_z'"),
        (lambda: hooks.ablate_heads(wired, [(0, 0)], kind="odd"), "use zero, mean or resample"),
        (lambda: hooks.record(wired, tokens.ids, ["blocks.0.attn.hook_zz"]), "did you mean blocks.0.attn.hook_z"),
        (lambda: hooks.patch(wired, "blocks.0.hook_nothing", known), "this model has no hook"),
        (lambda: hooks.path_patch(wired, tokens.ids, known), "needs a sender"),
        (lambda: hooks.path_patch(wired, tokens.ids, known, [(1, 0)], [(0, 0)]), "not after every sender"),
        (lambda: hooks.path_patch(wired, tokens.ids, known, [(0, 0)], [(0, 1)]), "not after every sender"),
        (lambda: hooks.path_patch(wired, tokens.ids, known, [(0, 0)], [(1, 0)], via="z"), "use q, k or v"),
        (lambda: hooks.embedding_rows(wired, tokens.ids, {99: torch.zeros(200)}), "no token 99"),
        (lambda: hooks.unembedding_rows(wired, {5: torch.zeros(3)}), "rows of this model are"),
        (lambda: hooks.project_out(wired, "hook_embed", torch.zeros(200)), "is zero"),
        (
            lambda: inducible(wired, tokens, hooks.ablate_heads(wired, [(0, 0)], kind="resample", record=few)),
            "from a record of 2: record at least that many",
        ),
        (
            lambda: inducible(wired, tokens, hooks.ablate_heads(wired, [(0, 0)], kind="mean", record=longer)),
            "of one length",
        ),
        (lambda: inducible(wired, tokens, [hooks.patch(wired, "blocks.0.attn.hook_z", longer)]), "of one shape"),
    ]
    for make, message in cases:
        with pytest.raises(InterpError, match=message.replace("(", r"\(")):
            make()


# --- heads in any notation, and sequences as they are -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        ("L1H1", [(1, 1)]),
        ("l1h1, L0H0", [(1, 1), (0, 0)]),
        (["L1H1", "L0H1"], [(1, 1), (0, 1)]),
        ([(1, 1)], [(1, 1)]),
        ([[1, 1], "L0H0"], [(1, 1), (0, 0)]),
        (np.array([[1, 0], [0, 1]]), [(1, 0), (0, 1)]),
        ({(0, 1): "roles"}, [(0, 1)]),
        ((), []),
    ],
)
def test_heads_are_understood_in_every_notation(wired, heads, expected):
    assert hooks.parse_heads(wired, heads) == expected
    assert hooks.parse_heads(wired, [hooks.head_name(head) for head in expected]) == expected
    tokens = draw(high=60)
    added = [hooks.ablate_heads(wired, asked) for asked in (heads, expected)]
    one, other = (wired.run_with_hooks(tokens.ids, fwd_hooks=each, prepend_bos=False) for each in added)
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ("", "'' is not a head: write L1H2, or"),
        ("L1", "'L1' is not a head"),
        ("L1H1,", "'' is not a head"),
        (["L1H1", "first"], "'first' is not a head"),
        ((1, 1), "1 is not a head"),
        ([(1, 1, 1)], r"\(1, 1, 1\) is not a head"),
        ([(1.0, 1)], r"\(1.0, 1\) is not a head"),
        (["11"], "'11' is not a head"),
        (5, "5 is not a head"),
        (None, "None is not a head"),
        ("L2H0", "no layer 2: this model has layers 0 to 1"),
        ([(0, -1)], "no head -1 in layer 0"),
    ],
)
def test_invalid_head_names_get_a_one_line_message(wired, heads, said):
    for ask in (hooks.parse_heads, hooks.ablate_heads):
        with pytest.raises(InterpError, match=said) as error:
            ask(wired, heads)
        assert "\n" not in str(error.value)


def test_sequences_are_accepted_instead_of_ids(wired):
    """Every function that takes ids takes sequences, too."""
    tokens = draw(high=60)
    names = hooks.z_names(wired)
    one, other = (hooks.record(wired, given, names) for given in (tokens, tokens.ids))
    assert all(torch.equal(one[name], other[name]) for name in names)
    known = hooks.record(wired, draw(seed=3, batch=len(tokens.ids), high=60), names)
    token = int(tokens.ids[0, 3])
    for make in (
        lambda given: hooks.path_patch(wired, given, known, "L0H0", "L1H0"),
        lambda given: hooks.embedding_rows(wired, given, {token: wired.W_E[5].detach()}),
    ):
        one, other = (wired.run_with_hooks(tokens.ids, fwd_hooks=make(given)) for given in (tokens, tokens.ids))
        assert torch.equal(one, other)


def test_a_patch_at_positions_and_heads_changes_every_one_of_them(organism):
    one, two = draw(high=2000, bos=2047), draw(seed=1, high=2000, bos=2047)
    for name, index in (
        ("blocks.0.attn.hook_z", (slice(None), [[2], [5]], [1, 3])),
        ("blocks.0.attn.hook_pattern", (slice(None), [[1], [3]], [2, 5])),
    ):
        known, own = (hooks.record(organism, tokens, [name])[name] for tokens in (two, one))
        added = [hooks.patch(organism, name, {name: known}, positions=[2, 5], heads=[1, 3])]
        found = hooks.record(organism, one, [name], hooks=added)[name]
        expected = own.clone()
        expected[index] = known[index]
        assert torch.equal(found, expected)
        assert not torch.equal(found, own)


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        (["blocks.0.attn.hook_v"], [0]),
        (["blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"], [0]),
        (["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"], [0, 1]),
        (["hook_embed"], [0, 1]),
        (["blocks.0.attn.hook_v", "unembed.hook_out"], [0, 1]),
    ],
)
def test_a_recorded_run_stops_after_the_last_requested_block(organism, names, blocks):
    """And holds what a whole run has there."""
    ids, ran = torch.arange(10, 30)[None], []
    network = organism.original_model.transformer.h
    watched = [network[i].register_forward_hook(lambda *_, i=i: ran.append(i)) for i in (0, 1)]
    try:
        found = hooks.record(organism, ids, names)
    finally:
        for handle in watched:
            handle.remove()
    assert ran == blocks
    _, whole = organism.run_with_cache(ids, prepend_bos=False)
    for name in names:
        assert torch.equal(found[name], whole[name]), name


def test_ids_are_fed_as_they_are_whatever_prepend_bos_says(organism):
    """As docs/adding_an_experiment.md says; a text gets a BOS in front by default."""
    ids = draw(high=2000).ids
    with torch.no_grad():
        plain = organism(ids)
        assert all(torch.equal(organism(ids, prepend_bos=said), plain) for said in (True, False))
        assert organism("def f(x):").shape[1] == organism("def f(x):", prepend_bos=False).shape[1] + 1
    assert plain.shape[:2] == ids.shape
