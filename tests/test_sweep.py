"""Is the fast method exact on every architecture, and is the model unchanged afterwards?"""

import gc
import math

import pytest
import torch
import xarray as xr

from interp import hooks, models, sweep as engine
from interp.errors import InterpError
from interp.sweep import exact_mode, sweep
from interp.tokens import Pool, repeated

SHAPES = {
    "gpt2": ("GPT2", {"n_positions": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}),
    "llama": (
        "Llama",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": 64,
        },
    ),
    "pythia": (
        "GPTNeoX",
        {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "bloom": ("Bloom", {"hidden_size": 32, "n_layer": 3, "n_head": 4}),
}  # fmt: skip


@pytest.fixture(scope="module", params=list(SHAPES))
def random_model(request, tmp_path_factory):
    """Random weights, large enough that attention and MLPs matter."""
    import transformers

    name, size = SHAPES[request.param]
    path = tmp_path_factory.mktemp("random") / request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(vocab_size=9000, bos_token_id=1, eos_token_id=1, **size)
        network = getattr(
            transformers,
            {"Bloom": "BloomForCausalLM"}.get(name, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}"),
        )(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
        network.save_pretrained(path)
    return models.load(path)


def draw(seed=0, batch=3, length=7, high=9000):
    return repeated(Pool("any", tuple(range(2, high))), batch=batch, length=length, bos=1, seed=seed)


def plainly(model, ids, interventions, read):
    """The plain way, from TransformerLens and torch alone."""
    rows = []
    for added in interventions:
        with torch.no_grad():
            log_p = model.run_with_hooks(ids, fwd_hooks=list(added), prepend_bos=False).log_softmax(-1)
        scores = torch.full(ids.shape, torch.nan)
        scores[:, 1:] = log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        scores[~read.expand(ids.shape)] = torch.nan
        rows.append(scores)
    return torch.stack(rows)


def all_kinds(model, ids, others):
    """Interventions of every kind, at every depth."""
    names = [*hooks.z_names(model), *hooks.mlp_names(model), *hooks.pattern_names(model)]
    names += [hooks.name_of(model, layer, "resid_pre") for layer in range(3)]
    with torch.no_grad():
        known = hooks.record(model, others, names)
        clean = hooks.record(model, ids, names)
        heads = [(layer, head) for layer in range(3) for head in range(4)]
        found = [[], *(hooks.ablate_heads(model, [head]) for head in heads)]
        for kind in ("mean", "resample"):
            found += [hooks.ablate_heads(model, [head], kind=kind, record=known) for head in heads[1::3]]
        found += [hooks.ablate_mlps(model, [layer], kind="mean", record=known) for layer in range(3)]
        found += [hooks.ablate_heads(model, heads[1:6:2]) + hooks.freeze_patterns(model, clean)]
        found += [[hooks.patch(model, hooks.name_of(model, n, "resid_pre"), known, positions=[4, 9])] for n in range(3)]
        found += [[hooks.patch(model, hooks.name_of(model, n, "pattern"), known, heads=[1, 2])] for n in range(3)]
        direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
        found += [[hooks.project_out(model, hooks.name_of(model, 2, "resid_pre"), direction)]]
        found += [hooks.embedding_rows(model, ids, {int(ids[0, 3]): direction})]
        found += [hooks.unembedding_rows(model, {int(ids[0, 3]): direction})]
        found += [hooks.path_patch(model, ids, known, [(0, 1)], [(2, 3)], via=via) for via in ("q", "k", "v")]
        found += [hooks.path_patch(model, ids, known, [(1, 2)])]
    return found


@pytest.mark.experiment
def test_equals_plain_forward_passes(random_model):
    tokens = draw()
    # Bloom adds the residual stream within its attention, which cannot be shared as it is
    assert exact_mode(random_model) == ("resuming" if "Bloom" in random_model.cfg.architecture else "sharing")
    interventions = all_kinds(random_model, tokens.ids, draw(seed=1).ids)
    read = torch.from_numpy(tokens.inducible)
    expected = plainly(random_model, tokens.ids, interventions, read)
    for size in (None, 10, 10_000):
        found = sweep(random_model, tokens.ids, interventions, read, tokens_per_pass=size)
        assert (found.isnan() == expected.isnan()).all()
        assert (found - expected).abs().nan_to_num().max() < 1e-5
    # the interventions have an effect
    changed = (expected[1:] - expected[0]).abs().nan_to_num().amax((1, 2))
    assert (changed > 1e-3).sum() >= len(changed) - 2


def test_reads_only_the_requested_positions(random_model):
    """Single positions, different ones in each sequence, the last one, and never position 0."""
    tokens = draw()
    read = torch.zeros_like(tokens.ids, dtype=torch.bool)
    read[0, 5] = read[1, -1] = read[2, 0] = read[2, 2] = True
    found = sweep(random_model, tokens.ids, [[], hooks.ablate_heads(random_model, [(1, 1)])], read)
    expected = plainly(random_model, tokens.ids, [[], hooks.ablate_heads(random_model, [(1, 1)])], read)
    assert found.isnan().sum() == 2 * (tokens.ids.numel() - 3)
    assert (found - expected).abs().nan_to_num().max() < 1e-5
    assert found[0, 1, -1].isfinite()


def plainly_of(model, ids, targets, interventions, read):
    """The plain way for other tokens in place of the sequences' own: [intervention target batch position]."""
    rows = []
    for added in interventions:
        with torch.no_grad():
            log_p = model.run_with_hooks(ids, fwd_hooks=list(added), prepend_bos=False).log_softmax(-1)
        scores = torch.full(targets.shape, torch.nan)
        for t, asked in enumerate(targets):
            scores[t, :, 1:] = log_p[:, :-1].gather(-1, asked[:, 1:, None])[..., 0]
        rows.append(scores.masked_fill(~read.expand(ids.shape), torch.nan))
    return torch.stack(rows)


def targets_of(ids):
    """Other tokens for each place: of another sequence, the first and the last of the vocabulary, and the sequences' own."""
    return torch.stack([ids.roll(1, 0), torch.zeros_like(ids), torch.full_like(ids, 8999), ids])


@pytest.mark.experiment
def test_other_targets_equal_plain_forward_passes(random_model):
    """Tokens in each piece of the vocabulary, different ones in each sequence, under every kind of intervention."""
    tokens = draw()
    interventions = all_kinds(random_model, tokens.ids, draw(seed=1).ids)
    read = torch.from_numpy(tokens.inducible) | (torch.arange(tokens.ids.shape[1]) == 3)
    targets = targets_of(tokens.ids)
    expected = plainly_of(random_model, tokens.ids, targets, interventions, read)
    for size in (None, 10, 10_000):
        found = sweep(random_model, tokens.ids, interventions, read, targets=targets, tokens_per_pass=size)
        assert found.shape == (len(interventions), 4, *tokens.ids.shape)
        assert (found.isnan() == expected.isnan()).all()
        assert (found - expected).abs().nan_to_num().max() < 1e-5
    # without targets, the sequences' own: the last of those asked for
    own = sweep(random_model, tokens.ids, interventions, read)
    assert (found[:, 3] - own).abs().nan_to_num().max() < 1e-6
    assert (found[:, 0] - found[:, 3]).abs().nan_to_num().max() > 0.1
    assert (found[:, 1] - found[:, 2]).abs().nan_to_num().max() > 0.1


def test_a_single_target_single_reads_and_a_split_vocabulary_agree(random_model, monkeypatch):
    """A single target, single places, and a vocabulary cut into many pieces."""
    tokens = draw()
    read = torch.zeros_like(tokens.ids, dtype=torch.bool)
    read[0, 5] = read[1, -1] = read[2, 0] = read[2, 2] = True
    targets = (tokens.ids[None] * 31 + 8000) % 9000
    expected = plainly_of(random_model, tokens.ids, targets, [[], []], read & (torch.arange(15) > 0))
    for pieces in (8192, 100, 9000):
        monkeypatch.setattr(engine, "_VOCABULARY", pieces)
        found = sweep(random_model, tokens.ids, [[], []], read, targets=targets)
        assert found.isfinite().sum() == 2 * 3
        assert (found - expected).abs().nan_to_num().max() < 1e-5


def test_targets_where_resuming_is_not_exact(tiny_gpt2, monkeypatch):
    """The plain way, which a model falls back to, reads the same targets."""
    model = models.load(tiny_gpt2)
    tokens = draw(high=2000)
    read = torch.from_numpy(tokens.inducible)
    interventions = [[], hooks.ablate_heads(model, [(1, 0)])]
    targets = torch.stack([tokens.ids.roll(1, 0), tokens.ids])
    fast = sweep(model, tokens.ids, interventions, read, targets=targets)
    monkeypatch.setitem(engine._MODES, model, "")
    monkeypatch.setattr(engine._Engine, "run", lambda *args: 1 / 0)
    slow = sweep(model, tokens.ids, interventions, read, targets=targets)
    assert (fast - slow).abs().nan_to_num().max() < 1e-5
    assert (slow - plainly_of(model, tokens.ids, targets, interventions, read)).abs().nan_to_num().max() < 1e-5


def test_targets_on_the_hand_wired_model(wired):
    """What is copied is certain; its predecessor is the one word that is taken off, so that it is twice as unlikely."""
    tokens = repeated(Pool("any", tuple(range(1, 64))), batch=4, length=12, bos=0)
    read = torch.from_numpy(tokens.inducible)
    targets = torch.stack([tokens.ids, tokens.ids.roll(1, 1), torch.zeros_like(tokens.ids)])
    ablated = [[], hooks.ablate_heads(wired, [(1, 0)])]
    found = sweep(wired, tokens.ids, ablated, read, targets=targets)[..., read].mean((-1, -2))
    wrong = -200 * math.sqrt(200 / 16)
    assert found[0].tolist() == pytest.approx([0, 2 * wrong, wrong], rel=1e-4, abs=1e-3)
    assert found[1].tolist() == pytest.approx([-math.log(65)] * 3, abs=1e-3)


def test_chunks_keep_their_targets(wired, monkeypatch):
    monkeypatch.setattr(engine, "_CHUNK", 2)
    tokens = repeated(Pool("any", tuple(range(1, 64))), batch=2, length=8, bos=0)
    read = torch.from_numpy(tokens.inducible)
    interventions = [hooks.ablate_heads(wired, [h]) for h in ((0, 0), (0, 1), (1, 0))]
    targets = torch.stack([tokens.ids, tokens.ids.flip(0)])
    stored = {}

    def keep(name, make):
        stored[name] = stored.get(name) or make()
        return stored[name]

    one, two = (sweep(wired, tokens.ids, interventions, read, targets=targets, keep=keep) for _ in range(2))
    assert len(stored) == 2
    assert torch.equal(one.nan_to_num(), two.nan_to_num())
    plain = sweep(wired, tokens.ids, interventions, read, targets=targets)
    assert torch.equal(one.nan_to_num(), plain.nan_to_num())
    assert sweep(wired, tokens.ids, [], read, targets=targets).shape == (0, *targets.shape)
    assert sweep(wired, tokens.ids, [], read).shape == (0, *tokens.ids.shape)


def test_targets_of_wrong_shape_are_refused(wired):
    tokens = repeated(Pool("any", tuple(range(1, 64))), batch=2, length=8, bos=0)
    read = torch.from_numpy(tokens.inducible)
    for targets in (tokens.ids, tokens.ids[None, :1], tokens.ids[None, :, 1:], tokens.ids[None, None]):
        with pytest.raises(InterpError, match=r"targets are .*: give \[target batch position\]"):
            sweep(wired, tokens.ids, [[]], read, targets=targets)
    for outside in (65, -1):
        with pytest.raises(InterpError, match=f"target.*{outside}"):
            sweep(wired, tokens.ids, [[]], read, targets=torch.full_like(tokens.ids, outside)[None])


def test_exact_on_the_hand_wired_model(wired):
    tokens = repeated(Pool("any", tuple(range(1, 64))), batch=4, length=12, bos=0)
    heads = [(0, 0), (0, 1), (1, 0), (1, 1)]
    found = sweep(
        wired, tokens.ids, [hooks.ablate_heads(wired, [h]) for h in heads], torch.from_numpy(tokens.inducible)
    )
    assert found.nanmean((1, 2)).tolist() == pytest.approx([-math.log(65), 0, -math.log(65), 0], abs=1e-3)


def test_the_model_is_unchanged_afterwards(random_model):
    """After an exception and an interruption in the middle of a resumed pass, bit for bit."""
    tokens = draw()
    read = torch.from_numpy(tokens.inducible)
    with torch.no_grad():
        before = random_model(tokens.ids, prepend_bos=False)

    def raises(error):
        def hook(value, hook):
            raise error

        return hook

    for error in (ValueError("broken"), KeyboardInterrupt()):
        for what in ("z", "mlp_out", "resid_pre"):
            with pytest.raises(type(error)):
                sweep(random_model, tokens.ids, [[], [(hooks.name_of(random_model, 2, what), raises(error))]], read)
            with torch.no_grad():
                assert torch.equal(random_model(tokens.ids, prepend_bos=False), before)
    sweep(random_model, tokens.ids, [hooks.ablate_heads(random_model, [(2, 0)])], read)
    with torch.no_grad():
        assert torch.equal(random_model(tokens.ids, prepend_bos=False), before)


def test_falls_back_where_resuming_is_not_exact(tiny_gpt2, monkeypatch):
    """A model for which the fast method is wrong is detected at first use, reported, and run the plain way."""
    model = models.load(tiny_gpt2)
    wrong = engine._Engine._scores
    monkeypatch.setattr(engine._Engine, "_scores", lambda self, residual: wrong(self, residual) + 0.01)
    tokens = draw(high=2000)
    read = torch.from_numpy(tokens.inducible)
    interventions = [[], hooks.ablate_heads(model, [(1, 0)])]
    with pytest.warns(UserWarning, match="resuming mid-model is not exact here"):
        found = sweep(model, tokens.ids, interventions, read)
    assert (found - plainly(model, tokens.ids, interventions, read)).abs().nan_to_num().max() < 1e-5
    # an architecture that breaks it altogether
    other = models.load(tiny_gpt2)
    monkeypatch.setattr(engine._Engine, "_resumed", lambda *args: 1 / 0)
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        assert not exact_mode(other)


def test_finished_chunks_are_kept(wired, monkeypatch):
    monkeypatch.setattr(engine, "_CHUNK", 2)
    tokens = repeated(Pool("any", tuple(range(1, 64))), batch=2, length=8, bos=0)
    read = torch.from_numpy(tokens.inducible)
    interventions = [hooks.ablate_heads(wired, [h]) for h in ((0, 0), (0, 1), (1, 0), (1, 1))] + [[]]
    stored, made = {}, []

    def keep(name, make):
        if name not in stored:
            made.append(name)
            if len(made) == 3:
                raise KeyboardInterrupt
            stored[name] = make()
        assert isinstance(stored[name], xr.Dataset)
        return stored[name]

    with pytest.raises(KeyboardInterrupt):
        sweep(wired, tokens.ids, interventions, read, keep=keep)
    found = sweep(wired, tokens.ids, interventions, read, keep=keep)
    assert len(made) == len(set(made)) + 1 == 4  # the interrupted one alone was made again
    plain = sweep(wired, tokens.ids, interventions, read)
    assert torch.equal(found.nan_to_num(), plain.nan_to_num())


def test_invalid_sweeps_are_refused(wired):
    tokens = repeated(Pool("any", tuple(range(1, 64))), batch=2, length=8, bos=0)
    with pytest.raises(InterpError, match=r"give \[position\] or \[batch position\]"):
        sweep(wired, tokens.ids, [[]], torch.ones(5, dtype=torch.bool))
    with pytest.raises(InterpError, match="marks no token"):
        sweep(wired, tokens.ids, [[]], torch.zeros(17, dtype=torch.bool))


def test_sequences_and_arrays_are_accepted_instead_of_ids(wired):
    tokens = repeated(Pool("any", tuple(range(1, 64))), batch=2, length=8, bos=0)
    added = [[], hooks.ablate_heads(wired, "L1H0")]
    expected = sweep(wired, tokens.ids, added, torch.from_numpy(tokens.inducible))
    for given, read in ((tokens, tokens.inducible), (tokens.ids, tokens.inducible), (tokens, tokens.inducible_tested)):
        assert torch.equal(sweep(wired, given, added, read).nan_to_num(), expected.nan_to_num())


@pytest.mark.experiment
def test_nothing_remains_on_a_model(tiny_gpt2):
    """Facts about a model are remembered with it, and forgotten with it."""
    model = models.load(tiny_gpt2)
    before = set(model.__dict__)
    blocks = [set(block.__dict__) for block in model.blocks]
    tokens = draw(high=2000)
    sweep(model, tokens, [[], hooks.ablate_heads(model, [(1, 0)])], tokens.inducible)
    assert set(model.__dict__) == before
    assert [set(block.__dict__) for block in model.blocks] == blocks
    assert engine._MODES[model] == exact_mode(model) == "sharing"
    gc.collect()  # models of earlier tests
    count = len(engine._MODES)
    del model
    gc.collect()
    assert len(engine._MODES) == count - 1
