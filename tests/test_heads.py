"""Are heads classified as what they are, and as nothing else? Known patterns, planted heads and models without any circuit."""

import math

import numpy as np
import pytest
import torch

import interp
from interp import heads, hooks, models
from interp.errors import InterpError
from interp.heads import KINDS, classify_heads, heads_of_kind, without_repeat
from interp.measure import KEY_KINDS, argmax_share, key_masks
from interp.results import label
from interp.tokens import Pool, paired, repeated

WORDS = Pool("words", tuple(range(1, 65)))
LENGTHS = (3, 5, 25, 32)
NOTHING = {kind: [] for kind in KINDS}
CIRCUIT = NOTHING | {"induction": [(1, 0)], "previous": [(0, 0)]}
SHAPES = {
    "gpt2": ("GPT2", "LMHeadModel", {"n_positions": 128, "n_embd": 32, "n_layer": 3, "n_head": 4}),
    "llama": (
        "Llama",
        "ForCausalLM",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 128,
        },
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def names_of(found):
    return {kind: heads_of_kind(found, kind) for kind in KINDS}


def even(first, length):
    """Attention of a head that attends evenly, to one key of each inducible query; `first` is the second copy's position."""
    return np.mean([1 / (q + 1) for q in range(first, first + length - 1)])


def planted(model, spec):
    """Hooks that replace patterns of heads by weights on fixed distances {distance: weight}; the rest lies at position 0."""

    def replace(value, hook, layer):
        value = value.clone()
        for (at, head), weights in spec.items():
            if at != layer:
                continue
            value[:, head] = 0
            for query in range(value.shape[2]):
                kept = {back: w for back, w in weights.items() if back <= query}
                for back, weight in kept.items():
                    value[:, head, query, query - back] += weight
                value[:, head, query, 0] += 1 - sum(kept.values())
        return value

    layers = sorted({layer for layer, _ in spec})
    return [
        (hooks.name_of(model, layer, "pattern"), lambda value, hook, layer=layer: replace(value, hook, layer))
        for layer in layers
    ]


def classified_with(model, spec, tokens, **options):
    with model.hooks(fwd_hooks=planted(model, spec)):
        return classify_heads(model, tokens, **options)


# --- the hand-wired model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bos", [0, None])
def test_the_wired_circuit_is_classified_and_nothing_else(wired, length, bos):
    found = classify_heads(wired, repeated(WORDS, batch=8, length=length, bos=bos))
    assert names_of(found) == CIRCUIT
    first = length + (bos is not None)
    score, looked = (found[name].mean("batch") for name in ("score", "argmax_share"))
    expected = np.full((len(KEY_KINDS), 2, 2), even(first, length))
    expected[:, 0, 0] = expected[:, 1, 0] = 0
    expected[KEY_KINDS.index("previous"), 0, 0] = expected[KEY_KINDS.index("induction"), 1, 0] = 1
    if bos is None:
        expected[KEY_KINDS.index("bos")] = np.nan
    assert score.values == pytest.approx(expected, abs=1e-5, nan_ok=True)
    # an even head has its first key for the largest: the duplicate of the first query alone
    shares = np.zeros((len(KEY_KINDS), 2, 2))
    shares[KEY_KINDS.index("previous"), 0, 0] = shares[KEY_KINDS.index("induction"), 1, 0] = 1
    shares[KEY_KINDS.index("duplicate"), :, 1] = 1 / (length - 1)
    shares[KEY_KINDS.index("bos")] = np.nan
    assert looked.values == pytest.approx(shares, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bos", [0, None])
def test_the_null_of_the_wired_model(wired, length, bos):
    """Without a repeat the circuit attends to none of these places, and the even heads to all as before."""
    found = classify_heads(wired, repeated(WORDS, batch=8, length=length, bos=bos))
    null = found.null
    first = length + (bos is not None)
    assert abs(null.sel(layer=0, head=0)).max() == 0
    assert abs(null.sel(layer=1, head=0, kind=["induction", "previous"])).max() == 0
    # without BOS, the induction head rests on position 0, which is where the first query's duplicate would be
    rests = 0 if bos == 0 else 1 / (length - 1)
    assert null.sel(layer=1, head=0, kind="duplicate").values == pytest.approx(np.full(8, rests), abs=1e-6)
    assert null.sel(head=1).values == pytest.approx(np.full((len(KINDS), 2, 8), even(first, length)), abs=1e-6)
    assert found.threshold.values == pytest.approx(np.zeros(len(KINDS)), abs=1e-6)


def test_more_copies_and_single_tested_tokens(wired):
    """Attention is summed over all earlier copies, and read at the tested token alone."""
    found = classify_heads(wired, repeated(WORDS, batch=6, length=8, copies=3, bos=0))
    assert names_of(found) == CIRCUIT
    assert found.score.sel(key_kind="induction", layer=1, head=0).values == pytest.approx(np.ones(6), abs=1e-6)
    among = Pool("others", tuple(range(30, 65)))
    found = classify_heads(wired, repeated(Pool("few", (1, 2, 3)), batch=6, length=8, bos=0, among=among))
    assert names_of(found) == CIRCUIT
    assert set(np.unique(found.argmax_share.sel(key_kind="induction", layer=1, head=0))) == {1.0}


def test_in_blocks_of_two_the_kinds_cannot_be_distinguished(wired):
    """The induction key is then the one before: an induction head must not be classified as previous-token for that."""
    found = classify_heads(wired, repeated(WORDS, batch=8, length=2, bos=0))
    assert (1, 0) not in heads_of_kind(found, "previous")
    assert (0, 0) not in heads_of_kind(found, "induction")


def test_batch_size_changes_nothing(wired, organism):
    for model, pool, bos in ((wired, WORDS, 0), (organism, Pool("any", tuple(range(1, 2000))), 2047)):
        tokens = repeated(pool, batch=7, length=9, bos=bos)
        one, other = (classify_heads(model, tokens, batch_size=size) for size in (2, 7))
        for name in ("score", "argmax_share", "null", "threshold"):
            assert one[name].values == pytest.approx(other[name].values, abs=1e-5, nan_ok=True), name
        assert (one.classified == other.classified).all()


def test_the_bundled_models_have_the_circuit(organism):
    """Trained models: some head of layer 1 copies, some head of layer 0 looks one back."""
    pool = Pool("any", interp.pools("ordinary", organism)[0].ids)
    found = names_of(classify_heads(organism, repeated(pool, batch=16, length=25, bos=2047)))
    assert found["induction"]
    assert {layer for layer, _ in found["induction"]} == {1}
    assert found["previous"]
    assert {layer for layer, _ in found["previous"]} == {0}


def test_the_best_head_comes_first(organism):
    pool = Pool("any", interp.pools("ordinary", organism)[0].ids)
    found = classify_heads(organism, repeated(pool, batch=16, length=25, bos=2047))
    scores = found.score.sel(key_kind="induction").mean("batch").values
    ranked = [scores[at] for at in heads_of_kind(found, "induction")]
    assert len(ranked) > 1
    assert ranked == sorted(ranked, reverse=True)
    with pytest.raises(InterpError, match="unknown kind of head 'bos': use induction, previous, duplicate, current"):
        heads_of_kind(found, "bos")


# --- where there is no null -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pool", "batch", "why"),
    [
        (WORDS, 8, "33 tokens twice need 66, and there are 64"),
        (Pool("few", tuple(range(1, 21))), 8, "a block and half of one"),
        (Pool("one", (5,)), 4, "one token"),
        (Pool("many", tuple(range(1, 65))), 1, "one sequence has no others to take tokens from"),
    ],
)
def test_no_head_is_classified_without_a_null(wired, pool, batch, why):
    found = classify_heads(wired, repeated(pool, batch=batch, length=33 if pool is WORDS else 14, bos=0))
    assert names_of(found) == NOTHING, why
    assert found.null.isnull().all()
    assert found.threshold.isnull().all()
    assert found.score.sel(key_kind="previous", layer=0, head=0).values == pytest.approx(np.ones(batch), abs=1e-5)


@pytest.mark.parametrize(("bos", "copies"), [(0, 2), (None, 2), (0, 3)])
def test_sequences_without_a_repeat(bos, copies):
    tokens = repeated(Pool("any", tuple(range(1, 200))), batch=6, length=9, bos=bos, copies=copies)
    before = tokens.ids.clone()
    other = without_repeat(tokens)
    assert torch.equal(tokens.ids, before)
    start = 9 + (bos is not None)
    assert torch.equal(other[:, :start], tokens.ids[:, :start])
    drawn = set(tokens.ids[:, start - 9 :].flatten().tolist())
    for row in other:
        assert len(row.unique()) == len(row)
        assert set(row[start:].tolist()) <= drawn  # of this pool's tokens, so that nothing else differs
    assert torch.equal(other, without_repeat(tokens))
    assert not torch.equal(other, without_repeat(tokens, seed=1))


def test_no_sequence_without_a_repeat_where_the_block_repeats():
    """Tokens drawn with replacement repeat within the block itself."""
    tokens = repeated(Pool("any", tuple(range(1, 200))), batch=6, length=9, bos=0, replacement=True)
    assert without_repeat(tokens) is not None
    tokens.ids[2, 3] = tokens.ids[2, 12] = tokens.ids[2, 1]
    assert without_repeat(tokens) is None
    exactly = repeated(Pool("any", tuple(range(1, 19))), batch=30, length=9, bos=0)
    assert without_repeat(exactly) is not None  # two blocks' worth of tokens are enough
    assert without_repeat(repeated(Pool("any", tuple(range(1, 18))), batch=30, length=9, bos=0)) is None


# --- what must not be classified --------------------------------------------------------------------------------------


@pytest.mark.experiment
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("std", [None, 0.15, 0.5, 1.5])
def test_random_weights_have_no_circuit(shape, std, tmp_path):
    """From weights as initialised, which attend evenly, to large ones, which attend to single keys."""
    import transformers

    family, kind, size = SHAPES[shape]
    for seed in range(3):
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(seed)
            config = getattr(transformers, f"{family}Config")(vocab_size=512, bos_token_id=1, eos_token_id=1, **size)
            network = getattr(transformers, family + kind)(config)
            for parameter in network.parameters():
                if std is not None and parameter.ndim > 1:
                    torch.nn.init.normal_(parameter, std=std)
            network.save_pretrained(tmp_path / str(seed))
        model = models.load(tmp_path / str(seed))
        for bos in (1, None):
            tokens = repeated(Pool("any", tuple(range(2, 512))), batch=16, length=12, bos=bos, seed=seed)
            found = classify_heads(model, tokens, seed=seed)
            assert names_of(found) == NOTHING
            assert found.threshold.notnull().all()


@pytest.mark.experiment
@pytest.mark.parametrize("length", [8, 10, 25])
@pytest.mark.parametrize("weight", [1.0, 0.9, 0.7, 0.6])
@pytest.mark.parametrize("batch", [3, 8, 32])
def test_a_fixed_distance_head_is_not_an_induction_head(wired, length, weight, batch):
    """It scores as high as an induction head, whatever the tokens are: as high without a repeat."""
    tokens = repeated(WORDS, batch=batch, length=length, bos=0)
    beside = {(0, 1): {length - 1: weight}, (1, 1): {length: weight}}
    found = classified_with(wired, beside, tokens)
    assert found.score.sel(key_kind="induction", layer=0, head=1).values == pytest.approx(np.full(batch, weight))
    assert (found.argmax_share.sel(key_kind="induction", layer=0, head=1) == 1).all()
    assert found.score.sel(key_kind="duplicate", layer=1, head=1).values == pytest.approx(np.full(batch, weight))
    assert names_of(found) == CIRCUIT
    # nothing but heads of a fixed distance: no rounding error may stand out where nothing varies
    for distance in (length - 1, length):
        alone = {(layer, head): {distance: weight} for layer in range(2) for head in range(2)}
        assert names_of(classified_with(wired, alone, tokens)) == NOTHING


@pytest.mark.experiment
@pytest.mark.parametrize(
    ("weights", "is_previous"),
    [
        ({1: 0.9}, True),
        ({1: 0.6, 2: 0.2, 3: 0.1}, True),
        ({2: 0.9}, False),
        ({}, False),
        ({distance: 0.25 for distance in (1, 2, 3, 4)}, False),
        ({0: 0.9}, False),
        ({1: 0.26, 2: 0.25, 3: 0.25, 4: 0.24}, True),  # the rule asks which key is the largest, not by how much
    ],
    ids=["previous", "mostly previous", "two back", "rests", "the last four evenly", "itself", "just ahead"],
)
@pytest.mark.parametrize("length", [8, 25])
def test_attending_nearby_is_not_attending_to_the_previous_token(wired, weights, is_previous, length):
    """A head that attends to what is near, whatever its distance, is not a previous-token head, unless most of it goes there."""
    tokens = repeated(WORDS, batch=64, length=length, bos=0)
    found = classified_with(wired, {(0, 1): weights}, tokens)
    assert ((0, 1) in heads_of_kind(found, "previous")) == is_previous
    assert ((0, 1) in heads_of_kind(found, "current")) == (0 in weights)
    assert heads_of_kind(found, "induction") == [(1, 0)]


def test_a_uniform_head_is_not_classified(tiny_gpt2):
    """A model all of whose heads attend evenly."""
    model = models.load(tiny_gpt2)
    for block in model.original_model.transformer.h:
        block.attn.c_attn.weight.data.zero_()
        block.attn.c_attn.bias.data.zero_()
    for bos in (2047, None):
        found = classify_heads(model, repeated(Pool("any", tuple(range(1, 2000))), batch=8, length=10, bos=bos))
        assert found.score.sel(key_kind="previous").values == pytest.approx(even(10 + (bos is not None), 10), abs=1e-5)
        assert names_of(found) == NOTHING


@pytest.mark.parametrize(("share", "is_called"), [(0.55, True), (0.45, False)])
def test_the_key_must_be_the_one_attended_most(wired, share, is_called):
    """Far above its null, but for every query some other key is attended more."""

    def mix(value, hook):
        value = value.clone()
        value[:, 0] = share * value[:, 0] + (1 - share) * torch.eye(value.shape[-1])
        return value

    with wired.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", mix)]):
        found = classify_heads(wired, repeated(WORDS, batch=8, length=10, bos=0))
    assert found.score.sel(key_kind="induction", layer=1, head=0).values == pytest.approx(np.full(8, share), abs=1e-6)
    assert heads_of_kind(found, "induction") == ([(1, 0)] if is_called else [])


@pytest.mark.parametrize(("share", "is_called"), [(0.4, True), (0.1, False)])
def test_attention_resting_on_bos_does_not_count_against_a_head(wired, share, is_called):
    """Most of the attention on BOS does not count against a head; without BOS, position 0 is a key like others."""

    def rest(value, hook):
        value = value.clone()
        value[:, 0] = share * value[:, 0]
        value[:, 0, :, 0] += 1 - share
        if not is_called:
            value[:, 0, :, 1] += share * 2
        return value

    with wired.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", rest)]):
        for bos in (0, None):
            found = classify_heads(wired, repeated(WORDS, batch=8, length=10, bos=bos))
            assert heads_of_kind(found, "induction") == ([(1, 0)] if is_called and bos == 0 else [])


def test_the_threshold_is_set_by_the_luckiest_head(wired):
    """A head that by chance attends there in some sequences raises what every head has to exceed."""
    generator = torch.Generator().manual_seed(0)
    tokens = repeated(WORDS, batch=40, length=10, bos=0)
    chance = torch.rand(40, generator=generator) * 0.9

    def lucky(value, hook):
        value = value.clone()
        value[:, 1] = torch.diag_embed((1 - chance)[:, None].expand(-1, value.shape[-1]))
        for query in range(9, value.shape[2]):
            value[:, 1, query, query - 9] = chance
        return value

    def weak(value, hook):
        return lucky(torch.cat([value[:, :1] * 0.3, value[:, 1:]], dim=1), hook)

    with wired.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lucky)]):
        found = classify_heads(wired, tokens, batch_size=40)
    line = float(np.quantile(chance - chance.mean(), 0.95))
    assert line > 0.35
    assert float(found.threshold.sel(kind="induction")) == pytest.approx(line, abs=1e-5)
    assert float(found.threshold.sel(kind="duplicate")) == pytest.approx(0, abs=1e-6)
    assert heads_of_kind(found, "induction") == [(1, 0)]
    with wired.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", weak)]):  # it attends there most, but too little
        found = classify_heads(wired, tokens, batch_size=40)
    assert (found.argmax_share.sel(key_kind="induction", layer=1, head=0) == 1).all()
    assert heads_of_kind(found, "induction") == []


def test_the_null_of_previous_is_another_distance(wired):
    """One distance for each sequence, neither the one before nor the induction key, not the same for all."""
    length = 12
    weights = {distance: 0.01 * distance for distance in range(1, 13)}
    tokens = repeated(WORDS, batch=60, length=length, bos=0)
    found = classified_with(wired, {(0, 1): weights, (1, 1): weights}, tokens)
    seen = (found.null.sel(kind="previous", layer=0, head=1).values * 100).round(3)
    assert set(seen.round()) == set(range(2, length - 1))
    assert seen == pytest.approx(seen.round(), abs=0.01)
    assert (found.null.sel(kind="previous", layer=1, head=1).values * 100).round(3) == pytest.approx(seen, abs=0.01)
    again, other = (classified_with(wired, {(0, 1): weights}, tokens, seed=seed) for seed in (0, 1))
    assert again.null.equals(classified_with(wired, {(0, 1): weights}, tokens).null)
    assert not again.null.equals(other.null)


# --- what heads attend to -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
def test_the_most_attended_key(bos):
    """Three queries in four on the induction key, one on the duplicate; BOS, where it is larger, does not count."""
    length = 5
    tokens = repeated(Pool("p", tuple(range(1, 100))), length=length, batch=3, bos=0 if bos else None)
    queries = torch.from_numpy(tokens.inducible_queries)
    keys = key_masks(tokens.ids, queries, bos=bos)
    where = np.flatnonzero(tokens.inducible_queries[0])
    size = tokens.ids.shape[1]
    pattern = torch.zeros(3, 2, size, size)
    for query in where:
        pattern[:, 0, query, query - length + (query != where[2])] = 0.4
        pattern[:, 1, query, query - 1] = 0.3
        pattern[:, 1, query, query] = 0.29
        if bos:
            pattern[:, :, query, 0] = 0.6
    found = dict(zip(KEY_KINDS, argmax_share(pattern, keys, queries, bos=bos), strict=True))
    assert found["induction"].tolist() == [[0.75, 0]] * 3
    assert found["duplicate"].tolist() == [[0.25, 0]] * 3
    assert found["previous"].tolist() == [[0, 1]] * 3
    assert found["current"].tolist() == [[0, 0]] * 3
    assert found["bos"].isnan().all()


# --- pairs ----------------------------------------------------------------------------------------------------------------


def same(ids):
    """[batch position position]: which places hold the same token."""
    return ids[:, :, None] == ids[:, None, :]


@pytest.mark.parametrize("bos", [0, None])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("copies", [2, 3])
def test_pairs_keep_the_structure(bos, replacement, copies):
    pool = Pool("from", tuple(range(1, 30)))
    to = Pool("to", tuple(range(20, 60)))  # they overlap: what a sequence holds is not used for it
    tokens = repeated(pool, batch=12, length=10, bos=bos, replacement=replacement, copies=copies)
    if replacement:
        assert any(len(row.unique()) < 10 + (bos is not None) for row in tokens.ids)
    before = tokens.ids.clone()
    pair = paired(tokens, to)
    assert torch.equal(tokens.ids, before)
    assert torch.equal(same(pair.ids), same(tokens.ids))
    assert torch.equal(pair.ids[~tokens.tested], tokens.ids[~tokens.tested])
    assert set(pair.ids[tokens.tested].tolist()) <= set(to.ids)
    for new, old in zip(pair.ids, tokens.ids, strict=True):
        free = set(new.tolist()) & set(old.tolist())
        assert free <= {bos}
    assert pair.pool == "to"
    assert pair.text is None
    assert torch.equal(pair.tested, tokens.tested)
    assert (pair.length, pair.copies, pair.bos) == (10, copies, bos)


def test_pairs_leave_untested_tokens_alone():
    tokens = repeated(Pool("few", (1, 2, 3)), batch=20, length=8, bos=0, among=Pool("others", tuple(range(10, 60))))
    to = Pool("to", tuple(range(10, 40)))  # many of them stand in the sequences already
    pair = paired(tokens, to)
    assert (tokens.tested.sum(1) == 2).all()
    assert torch.equal(pair.ids[~tokens.tested], tokens.ids[~tokens.tested])
    assert (pair.ids != tokens.ids).equal(tokens.tested)
    assert torch.equal(same(pair.ids), same(tokens.ids))


def test_pairs_are_drawn_by_sequence():
    """Sequence i depends on the seed and on i alone; not in order of the ids."""
    pool, to = Pool("from", tuple(range(1, 30))), Pool("to", tuple(range(100, 160)))
    few, many = (paired(repeated(pool, batch=n, length=10, bos=0), to) for n in (3, 9))
    assert torch.equal(few.ids, many.ids[:3])
    assert not torch.equal(paired(repeated(pool, batch=3, length=10, bos=0), to, seed=1).ids, few.ids)
    tokens = repeated(pool, batch=9, length=10, bos=0)
    order = [many.ids[i, 1:11][tokens.ids[i, 1:11].argsort()].tolist() for i in range(9)]
    assert len({tuple(np.argsort(row)) for row in order}) > 5
    assert len({i for row in order for i in row}) > 40


def test_too_few_to_pair_with():
    tokens = repeated(Pool("from", tuple(range(1, 30))), batch=4, length=10, bos=0)
    with pytest.raises(
        InterpError, match="pool 'to' has 9 tokens that are not in a sequence, too few to pair its 10 with"
    ):
        paired(tokens, Pool("to", tuple(range(100, 109))))
    paired(tokens, Pool("to", tuple(range(100, 110))))
    with pytest.raises(InterpError, match="too few to pair"):  # enough of them, but the sequence holds some
        paired(tokens, Pool("to", (*range(100, 109), int(tokens.ids[0, 1]))))


# --- drawing within an experiment ---------------------------------------------------------------------------------------


def drawn_by(*asked, model, pools, **options):
    """The sequences that an experiment is given for these calls of `draw` on its first pool."""
    seen = []

    def probe(model, pools, draw):
        """`found` [pool]."""
        for ask in asked:
            seen.append(draw(pools[0], **ask) if not callable(ask) else ask(draw, pools))
        return label("found", np.zeros(len(pools)), "pool", {"pool": [pool.name for pool in pools]})

    return seen, interp.run(probe, model, pools, **options)


def test_an_experiment_draws_with_the_options_of_run(wired):
    options = {"batch": 5, "length": 7, "copies": 3, "seed": 4}
    (drawn, again), made = drawn_by({}, {}, model=wired, pools=["a=1:40"], **options)
    expected = repeated(Pool("a", tuple(range(1, 40))), bos=0, **options)
    assert torch.equal(drawn.ids, expected.ids)
    assert torch.equal(drawn.ids, again.ids)
    assert drawn.text[0, :3].tolist() == [f"w{i}" if i else "<bos>" for i in drawn.ids[0, :3].tolist()]
    record = interp.provenance(made)["sequences"]
    assert {name: record[name] for name in options} == options
    assert (record["bos"], record["mixed"], record["protocol"]) == (0, False, "default")
    (drawn,), made = drawn_by({}, model=wired, pools=["a=1:4"], batch=5, length=7, mixed=True, among="30:65", bos=False)
    assert drawn.bos is None
    assert (drawn.tested.sum(1) == 2).all()
    assert set(drawn.ids[drawn.tested].tolist()) <= {1, 2, 3}
    assert interp.provenance(made)["sequences"]["among"] == "30:65"


def test_other_sequences_are_independent(wired):
    (drawn, others, more), _ = drawn_by({}, {"others": 1}, {"others": 2}, model=wired, pools=["1:65"], batch=30)
    for one, two in ((drawn, others), (drawn, more), (others, more)):
        assert one.ids.shape == two.ids.shape
        agree = (one.ids[:, 1:] == two.ids[:, 1:]).float().mean()
        assert agree == pytest.approx(1 / 64, abs=0.02)
        assert not any((row == two.ids).all(1).any() for row in one.ids)
    for tokens in (others, more):
        assert torch.equal(tokens.ids[:, 1:26], tokens.ids[:, 26:])


def test_paired_sequences_within_an_experiment(wired):
    (drawn, pair), _ = drawn_by(
        {},
        lambda draw, pools: draw(pools[1], paired_with=draw(pools[0])),
        model=wired,
        pools=["a=1:30", "b=30:65"],
        batch=4,
    )
    assert torch.equal(same(pair.ids), same(drawn.ids))
    assert set(pair.ids[:, 1:].flatten().tolist()) <= set(range(30, 65))
    assert pair.text[0, 1] == f"w{pair.ids[0, 1]}"
    assert pair.pool == "b"


def test_whether_blocks_were_drawn_with_replacement_is_stamped(wired):
    """`docs/architecture.md`: drawn without replacement where the pool allows, else with, and the result says which."""
    made = interp.run("head_ablation", wired, ["many=1:65", "few=1:6"], batch=3, length=10, kind="zero")
    known = interp.provenance(made)["pools"]
    assert {name: pool["replacement"] for name, pool in known.items()} == {"many": False, "few": True}


def test_sequences_that_cannot_be_drawn(wired):
    with pytest.raises(InterpError, match=r"takes draw: after the model, take 'tokens' .* or 'pools' \(and 'draw'\)"):
        interp.run(lambda model, draw: None, wired)
    with pytest.raises(InterpError, match="takes tokens, draw"):
        interp.run(lambda model, tokens, draw: None, wired)
    with pytest.raises(InterpError, match="use a length of 127 or less"):
        drawn_by({}, model=wired, pools=["1:65"], length=128)
    with pytest.raises(InterpError, match="too few tokens for a block of 25 without replacement"):
        drawn_by({}, model=wired, pools=["1:20"], length=25, replacement=False)

    def no_sequences(model, pools):
        """`found` [pool]."""

    with pytest.raises(InterpError, match="draws no repeated sequences: leave length out"):
        interp.run(no_sequences, wired, ["1:5"], length=7)


def test_heads_are_classified_on_the_reference_pool(wired):
    """The model's ordinary tokens, or the pool named; made once and kept by name."""
    kept = []

    def keep(name, make):
        kept.append(name)
        return make()

    def draw(pool):
        return repeated(pool, batch=4, length=8, bos=0)

    pool, found = heads.classify_on_reference(wired, draw, keep)
    assert pool.name == "text"
    assert names_of(found) == CIRCUIT
    pool, found = heads.classify_on_reference(wired, draw, keep, "those=1:40")
    assert (pool.name, len(pool)) == ("those", 39)
    assert kept == ["heads classified on text", "heads classified on those"]
    assert math.isclose(float(found.threshold.max()), 0, abs_tol=1e-6)
