"""Do the experiments of the copying circuit say what is known: of the hand-wired model exactly, of others by the plain way?"""

import inspect
import math
from typing import get_type_hints

import docstring_parser
import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import hooks, models, results, sweep as engine
from interp.catalog import find
from interp.errors import InterpError
from interp.heads import KINDS
from interp.measure import log_probs

UNKNOWN = -math.log(65)
# the output of the wired circuit: two entries of 1 (the word, and its predecessor's minus), and with them 16 for a squared norm
WRONG = -200 * math.sqrt(200 / 16)  # log-prob of any other word where one is copied
LENGTH = 10
PAIRS = {"pools": ["few=1:25"], "reference": "rest=25:65", "length": LENGTH}
QUERY, KEY = 2 * LENGTH - 1, LENGTH  # of the last token, behind BOS: where it is predicted, and what is copied there


def by_head_values(wired, kind, target):
    """What `by_head` must be on the wired model: the clean value, but for L0H0 and L1H0 as said."""
    clean = 0.0 if target == "own" else WRONG
    table = {
        # the source's predecessors are not found; the source's words are copied
        "z": (UNKNOWN, WRONG - clean), "v": (UNKNOWN, WRONG - clean), "k": (clean, UNKNOWN), "q": (clean, UNKNOWN),
        "pattern": (clean, clean),
    }  # fmt: skip
    first, second = table[kind]
    return [[first, clean], [second, clean]]


# --- head_ablation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bos", "length"), [("auto", 12), ("auto", 5), (False, 12)])
def test_ablating_the_wired_circuit(wired, bos, length):
    """Either head costs ln(65) nats, which is all that the repeat gains; controls cost nothing."""
    found = interp.run("head_ablation", wired, ["1:65"], kind="zero", batch=6, length=length, bos=bos)
    found = found.sel(pool="1:65")
    lost = np.zeros((2, 2, 6))
    lost[:, 0] = -UNKNOWN
    if bos is False:
        # position 0, where the induction head rests, is no BOS but a word, and nothing is taken off it: it is copied. The norm
        # sees word 1, balance 4, circle 2, later 1, and has been set to undo 6 more, so that the output is sqrt(14 / 8).
        # From that word itself, the head looks at the other 11 evenly
        output = math.sqrt(14 / 8)
        logit = 200 * output / math.sqrt((8 + output**2) / 200 - (output / 200) ** 2)
        lost[0, 0] = (10 * logit + math.log(11)) / 11
    assert found.lost.values == pytest.approx(lost, rel=1e-4, abs=1e-4)
    assert found.clean.values == pytest.approx(np.zeros(6), abs=1e-4)
    assert found.gain.values == pytest.approx(np.full(6, -UNKNOWN), abs=1e-4)
    assert found.sizes["ablated"] == 2
    assert (found.curve.sel(ablated=0) == 0).all()
    for kind in ("induction", "previous"):
        at = (1, 0) if kind == "induction" else (0, 0)
        assert (found.curve.sel(kind=kind, ablated=1) == found.lost.sel(layer=at[0], head=at[1])).all()
    assert found.curve.sel(kind=["duplicate", "current"], ablated=1).isnull().all()
    assert found.random.values == pytest.approx(np.zeros((8, 2, 6)), abs=1e-4)
    assert found.ranked.sel(kind=["induction", "previous"]).values.tolist() == [["L1H0"], ["L0H0"]]
    assert found.ranked.sel(kind=["duplicate", "current"]).values.tolist() == [[""], [""]]
    assert [tuple(at) for at in np.argwhere(found.classified.values)] == [(0, 1, 0), (1, 0, 0)]
    assert found.induction_score.sel(layer=1, head=0) == pytest.approx(1, abs=1e-6)


def test_ablation_by_the_mean_and_by_others(wired):
    """Another sequence's word is copied in place of the right one, and its predecessor is what is least likely."""
    options = {"batch": 12, "length": 8}
    one = interp.run("head_ablation", wired, ["1:65"], kind="resample", **options).sel(pool="1:65")
    tokens, others = (drawn(wired, "1:65", seed=seed, **options).ids for seed in (0, 1))
    right, copied, least = tokens[:, 10:], others[:, 10:], others[:, 9:-1]
    expected = -WRONG * (1.0 - (copied == right).float() + (least == right).float()).mean(1)
    assert len(expected.unique()) > 1
    assert one.lost.sel(layer=1, head=0).values == pytest.approx(expected.numpy(), rel=1e-4)
    for kind in ("mean", "resample"):
        made = interp.run("head_ablation", wired, ["1:65"], kind=kind, **options).sel(pool="1:65")
        assert made.lost.sel(head=1).values == pytest.approx(np.zeros((2, 12)), abs=1e-4)


@pytest.mark.experiment
@pytest.mark.parametrize("kind", ["mean", "resample", "zero"])
@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_ablation_equals_plain_passes(name, kind, request):
    """Single heads, curves in the order of the scores, random orders: each as `run_with_hooks` has it."""
    model = request.getfixturevalue("organism") if name == "organism" else models.load(name)
    pools = ["ordinary", "unexposed"]
    found = interp.run("head_ablation", model, pools, kind=kind, batch=8, length=12, draws=2, seed=3)
    tokens = drawn(model, "unexposed", batch=8, length=12, seed=3)
    # a mean is over 64 sequences, of eight streams of eight
    streams = range(8 if kind == "mean" else 1)
    others = torch.cat([drawn(model, "unexposed", batch=8, length=12, seed=4 + i).ids for i in streams])
    with torch.no_grad():
        known = hooks.record(model, others, hooks.z_names(model))

        def left(heads):
            added = hooks.ablate_heads(model, heads, kind=kind, record=known)
            logits = model.run_with_hooks(tokens.ids, fwd_hooks=added, prepend_bos=False)
            return log_probs(logits, tokens.ids)

        clean = left([])
        now = found.sel(pool="unexposed")
        assert now.clean.values == pytest.approx(clean[:, tokens.inducible].mean(1).numpy(), abs=1e-4)
        first = clean[:, (tokens.half == 1) & (tokens.offset > 0)].mean(1)
        assert now.gain.values == pytest.approx((clean[:, tokens.inducible].mean(1) - first).numpy(), abs=1e-4)

        def lost(heads):
            return (clean - left(heads))[:, tokens.inducible].mean(1).numpy()

        for layer in range(2):
            for head in range(4):
                assert now.lost.sel(layer=layer, head=head).values == pytest.approx(lost([(layer, head)]), abs=1e-4)
        for order in ("induction", "previous"):
            chain = [named(text) for text in now.ranked.sel(kind=order).values if text]
            assert chain
            scores = [float(now.induction_score[at]) for at in chain]
            assert order == "previous" or scores == sorted(scores, reverse=True)
            for n in range(len(chain) + 1):
                assert now.curve.sel(kind=order, ablated=n).values == pytest.approx(lost(chain[:n]), abs=1e-4)
            assert now.curve.sel(kind=order).isel(ablated=slice(len(chain) + 1, None)).isnull().all()
        # random orders: heads that are not classified
        free = [at for at in np.ndindex(2, 4) if not now.classified.values[:, at[0], at[1]].any()]
        singles = [lost([at]) for at in free]
        for draw in range(now.sizes["draw"]):
            value = now.random.sel(draw=draw, ablated=1).values
            assert min(np.abs(value - single).max() for single in singles) < 1e-4
        if now.sizes["draw"] == 1:  # all of them are taken
            assert now.random.sel(draw=0, ablated=len(free)).values == pytest.approx(lost(free), abs=1e-4)


def test_random_orders_end_in_nan_when_heads_run_out(wired, monkeypatch):
    """Fewer unclassified heads than classified ones: one order of all of them, and NaN after its end."""
    module = __import__("interp.experiments.head_ablation.experiment", fromlist=["heads_of_kind"])
    chains = {"induction": [(1, 0), (0, 0)], "previous": [(0, 0)], "duplicate": [], "current": [(1, 1)]}
    monkeypatch.setattr(module, "heads_of_kind", lambda found, kind: chains[kind])
    found = interp.run("head_ablation", wired, ["1:65"], kind="zero", batch=3, length=6).isel(pool=0)
    assert found.random.shape == (1, 3, 3)
    assert found.random.values[0, :2] == pytest.approx(np.zeros((2, 3)), abs=1e-4)
    assert found.random.sel(ablated=2).isnull().all()
    assert found.curve.sel(kind="induction").values[1:] == pytest.approx(np.full((2, 3), -UNKNOWN), abs=1e-4)
    assert found.ranked.values.tolist() == [["L1H0", "L0H0"], ["L0H0", ""], ["", ""], ["L1H1", ""]]


@pytest.mark.experiment
def test_a_model_without_a_circuit(tiny_gpt2, tmp_path):
    """Random weights: no head is classified, curves have no heads, and the result is stored nevertheless."""
    model = models.load(tiny_gpt2)
    found = interp.run("head_ablation", model, ["text"], batch=4, length=8, out=tmp_path / "ablation")
    assert not found.classified.any()
    assert found.sizes["ablated"] == 1
    assert (found.curve == 0).all()
    assert (found.random == 0).all()
    assert results.load(tmp_path / "ablation").lost.equals(found.lost)
    found = interp.run("induction_heads", model, ["text"], batch=4, length=8, out=tmp_path / "heads")
    assert not found.classified.any()
    assert found.through.values.tolist() == ["embedding"]
    assert found.copying_together.isnull().all()
    assert found.in_context_learning.isnull().all()  # a context of 128
    with pytest.raises(InterpError, match="no induction head was found on 'text'"):
        interp.run("path_patching", model, ["text"], batch=4, length=8)
    found = interp.run("attention_pattern", model, ["text"], batch=4, length=8)
    assert found.sizes["component"] == 2


def named(text):
    """(layer, head) of L1H2."""
    layer, head = text[1:].split("H")
    return int(layer), int(head)


def drawn(model, pool, *, among=None, **options):
    """The sequences that `run` draws."""
    from interp.tokens import repeated

    return repeated(interp.pools(pool, model)[0], bos=model.tokenizer.bos_token_id, **options)


def drawn_pair(model, pool, reference, **options):
    from interp.tokens import paired

    tokens = drawn(model, pool, **options)
    return tokens, paired(tokens, interp.pools(reference, model)[0], seed=options.get("seed", 0))


@pytest.mark.experiment
def test_an_interrupted_ablation_resumes(wired, tmp_path, monkeypatch):
    """Interrupted in the middle of a pool's sweep: finished parts are not recomputed, and the numbers are the same."""
    monkeypatch.setattr(engine, "_CHUNK", 2)
    assert engine.exact_mode(wired)
    options = {"batch": 4, "length": 8, "kind": "mean"}
    whole = interp.run("head_ablation", wired, ["a=1:40", "b=30:65"], **options)
    plain, made = engine._Engine.run, []

    def counted(self, interventions):
        made.append(len(interventions))
        if len(made) == stop_at:
            raise KeyboardInterrupt
        return plain(self, interventions)

    monkeypatch.setattr(engine._Engine, "run", counted)
    stop_at = None
    interp.run("head_ablation", wired, ["a=1:40", "b=30:65"], **options)
    chunks = len(made)
    assert chunks >= 8
    for stop_at in (2, chunks // 2 + 1, chunks):
        made.clear()
        out = tmp_path / str(stop_at)
        with pytest.raises(KeyboardInterrupt):
            interp.run("head_ablation", wired, ["a=1:40", "b=30:65"], out=out, **options)
        assert not (out / "result.nc").exists()
        first, done = len(made), stop_at
        stop_at = None
        found = interp.run("head_ablation", wired, ["a=1:40", "b=30:65"], out=out, **options)
        assert len(made) - first == chunks - (done - 1)  # only what was not finished
        xr.testing.assert_identical(found, whole)
        assert sorted(path.name for path in out.iterdir()) == ["request.json", "result.nc"]


@pytest.mark.resumption
@pytest.mark.parametrize(
    ("experiment", "options"),
    [
        ("induction_heads", {"baseline_draws": 3}),
        ("activation_patching", {"reference": "20:65"}),
        ("path_patching", {"reference": "20:65"}),
        ("head_attribution", {"steps": 2}),
        ("edge_attribution", {"steps": 2, "sizes": 3, "draws": 1, "reference": "20:65"}),
        ("score_attribution", {"reference": "20:65"}),
        ("glitch_attribution", {"reference": "20:65", "fits": 1}),
        ("glitch_heads", {"reference": "20:65", "fits": 1, "exact": 1, "steps": 4}),
    ],
)
def test_experiments_resume_from_any_part(wired, tmp_path, monkeypatch, experiment, options):
    """Interrupted after any part: every part is computed once, and the result is bit-identical."""
    monkeypatch.setattr(engine, "_CHUNK", 40)
    pools, options = ["a=1:40", "b=30:65"], options | {"batch": 3, "length": 8}
    plain, saved = results.save, []

    def counted(dataset, path):
        made = plain(dataset, path)
        saved.append(path)
        if len(saved) == stop_at:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(results, "save", counted)
    stop_at = None
    whole = interp.run(experiment, wired, pools, out=tmp_path / "whole", **options)
    count = len(saved)
    assert count > 2
    for stop_at in sorted({*range(1, count, 1 + count // 6), count - 1}):
        saved.clear()
        out = tmp_path / str(stop_at)
        with pytest.raises(KeyboardInterrupt):
            interp.run(experiment, wired, pools, out=out, **options)
        now, stop_at = stop_at, None
        found = interp.run(experiment, wired, pools, out=out, **options)
        assert len(saved) == count, f"interrupted after {now} of {count}"
        xr.testing.assert_identical(found, whole)


@pytest.mark.experiment
def test_parts_are_those_of_the_same_weights_and_parameters(wired, tmp_path, monkeypatch):
    """Neither another kind of ablation nor an edited model reuses stored parts."""
    monkeypatch.setattr(engine, "_CHUNK", 2)
    model = models.load("wired")
    assert engine.exact_mode(model)
    plain, made = engine._Engine.run, []

    def counted(self, interventions):
        made.append(len(interventions))
        if stop and len(made) == 3:
            raise KeyboardInterrupt
        return plain(self, interventions)

    monkeypatch.setattr(engine._Engine, "run", counted)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        interp.run("head_ablation", model, ["1:65"], batch=4, length=8, kind="zero", out=tmp_path)
    model.original_model.get_output_embeddings().weight.data *= 0.001  # so flat that nothing is lost
    made.clear()
    stop = False
    found = interp.run("head_ablation", model, ["1:65"], batch=4, length=8, kind="zero", out=tmp_path)
    assert float(found.lost.max()) < 1
    assert len(made) == 4


# --- activation_patching ------------------------------------------------------------------------------------------------


def wired_by_position(stream):
    """{(layer, position): (own, other)} of where the wired model's answer changes; noising and denoising alike."""
    nothing, theirs = (UNKNOWN, UNKNOWN), (WRONG, 0.0)
    return {
        # the current word at the query, the copied word at the key, its predecessor one before; then what layer 0 wrote
        "resid_pre": {
            (0, QUERY): nothing, (0, KEY): theirs, (0, KEY - 1): nothing, (1, QUERY): nothing, (1, KEY): nothing,
        },
        "resid_post": {(0, QUERY): nothing, (0, KEY): nothing, (1, QUERY): theirs},
        "attn_out": {(0, KEY): nothing, (1, QUERY): theirs},
        "mlp_out": {},
    }[stream]  # fmt: skip


@pytest.mark.parametrize("stream", ["resid_pre", "resid_post", "attn_out", "mlp_out"])
def test_patching_the_wired_model_by_position(wired, stream):
    """Three positions matter before layer 0, two before layer 1, and everywhere else nothing does."""
    found = interp.run("activation_patching", wired, **PAIRS, stream=stream, batch=5, sequences=3).isel(pool=0)
    assert found.by_position.shape == (2, 2, 2, 2 * LENGTH + 1, 3)
    for direction in ("noising", "denoising"):
        for t, target in enumerate(("own", "other")):
            expected = np.full((2, 2 * LENGTH + 1), (0.0, WRONG)[t])
            for at, values in wired_by_position(stream).items():
                expected[at] = values[t]
            got = found.by_position.sel(direction=direction, target=target)
            for pair in range(3):
                assert got.isel(pair=pair).values == pytest.approx(expected, abs=2e-3), (direction, target)
            clean = found.clean_position.sel(direction=direction, target=target)
            assert clean.values == pytest.approx(np.full(3, (0.0, WRONG)[t]), abs=2e-3)
    assert found.half.values.tolist() == [0] + [1] * LENGTH + [2] * LENGTH
    assert found.attrs["among"] == "rest"
    assert found.attrs["stream"] == stream


@pytest.mark.parametrize("head", ["z", "q", "k", "v", "pattern"])
def test_patching_the_wired_model_by_head(wired, head):
    """Positions are kept, so patterns are what they were; the keys of layer 0 hold positions, those of layer 1 words."""
    found = interp.run("activation_patching", wired, **PAIRS, head=head, batch=5, sequences=1).isel(pool=0)
    for direction in ("noising", "denoising"):
        for target in ("own", "other"):
            expected = np.array(by_head_values(wired, head, target))
            got = found.by_head.sel(direction=direction, target=target).values
            assert got == pytest.approx(np.repeat(expected[..., None], 5, axis=-1), abs=2e-3), (direction, target)
            clean = found.clean_head.sel(direction=direction, target=target).values
            assert clean == pytest.approx(np.full(5, 0.0 if target == "own" else WRONG), abs=2e-3)


@pytest.mark.experiment
def test_patching_single_tokens(wired):
    """One tested token among others: its predecessor is the same in both sequences, what is copied is not."""
    options = {"pools": ["few=1:25"], "reference": "rest=25:65", "mixed": True, "among": "rest=25:65", "length": LENGTH}
    for head, second in (("z", "theirs"), ("k", "same"), ("v", "theirs"), ("pattern", "same")):
        found = interp.run("activation_patching", wired, **options, head=head, batch=6, sequences=1).isel(pool=0)
        for direction in ("noising", "denoising"):
            own, other = (found.by_head.sel(direction=direction, target=t).values for t in ("own", "other"))
            changed = second == "theirs"
            for got, clean, patched in ((own, 0.0, WRONG), (other, WRONG, 0.0)):
                expected = np.full((2, 2, 6), clean)
                expected[1, 0] = patched if changed else clean
                assert got == pytest.approx(expected, abs=2e-3), (head, direction)


@pytest.mark.experiment
@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_patching_equals_plain_passes(name, request):
    """Against `run_with_hooks`, in both directions, for both targets; grouped queries patched together."""
    model = request.getfixturevalue("organism") if name == "organism" else models.load(name)
    options = {"batch": 3, "length": 6, "seed": 5}
    found = interp.run("activation_patching", model, ["unexposed"], stream="attn_out", head="k", sequences=2, **options)
    pair = drawn_pair(model, "unexposed", "ordinary", **options)
    with torch.no_grad():
        for direction, (run, source) in {"denoising": pair, "noising": pair[::-1]}.items():
            now = found.isel(pool=0).sel(direction=direction)
            names = [hooks.name_of(model, layer, what) for layer in range(2) for what in ("attn_out", "k")]
            known = hooks.record(model, source.ids, names)

            def scores(added, run=run, source=source):
                logits = model.run_with_hooks(run.ids, fwd_hooks=added, prepend_bos=False)
                return [log_probs(logits, ids) for ids in (run.ids, source.ids)]

            for layer in range(2):
                for position in (0, 4, 7, 11, 12):
                    name = hooks.name_of(model, layer, "attn_out")
                    own, other = scores([hooks.patch(model, name, known, positions=[position])])
                    got = now.by_position.sel(layer=layer, position=position)
                    assert got.sel(target="own").values == pytest.approx(own[:2, -1].numpy(), abs=1e-4)
                    assert got.sel(target="other").values == pytest.approx(other[:2, -1].numpy(), abs=1e-4)
                for head in range(4):
                    at = hooks.kv_head(model, head)
                    own, other = scores([hooks.patch(model, hooks.name_of(model, layer, "k"), known, heads=[at])])
                    got = now.by_head.sel(layer=layer, head=head)
                    assert got.sel(target="own").values == pytest.approx(
                        own[:, run.inducible].mean(1).numpy(), abs=1e-4
                    )
                    expected = other[:, run.inducible].mean(1).numpy()
                    assert got.sel(target="other").values == pytest.approx(expected, abs=1e-4)
    if name == "organism-llama":
        assert found.by_head.isel(head=0).equals(found.by_head.isel(head=1).assign_coords(head=0))


# --- path_patching ------------------------------------------------------------------------------------------------------


def test_paths_of_the_wired_circuit(wired):
    """The previous-token head serves the induction head through its keys, and not through queries or values."""
    found = interp.run("path_patching", wired, **PAIRS, batch=5).isel(pool=0)
    assert found.sender.values.tolist() == ["L0H0", "L0H1"]
    assert found.role.values.tolist() == ["previous", "control"]
    assert found.receiver.values.tolist() == ["L1H0", "all"]
    assert found.writer.values.tolist() == ["L1H0", "L0H0", "L0H1"]
    assert found.target.values.tolist() == ["own", "other"]
    for target, clean in (("own", 0.0), ("other", WRONG)):
        now = found.sel(target=target)
        assert now.clean.values == pytest.approx(np.full((2, 5), clean), abs=2e-3)
        expected = np.zeros((2, 3, 2, 2, 5))
        expected[:, list(found.via.values).index("k"), 0] = UNKNOWN - clean  # the source's predecessors are not found
        assert now.effect.values == pytest.approx(expected, abs=2e-3)
        direct = np.zeros((2, 3, 5))
        direct[:, 0] = WRONG if target == "own" else -WRONG  # the source's word is copied
        assert now.direct.values == pytest.approx(direct, abs=4e-3)


@pytest.mark.experiment
@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_paths_equal_those_of_the_hooks(name, request):
    """Each path as `hooks.path_patch` makes it alone, in a plain forward pass; grouped queries too."""
    model = request.getfixturevalue("organism") if name == "organism" else models.load(name)
    options = {"batch": 8, "length": 12, "seed": 2}
    found = interp.run("path_patching", model, ["unexposed"], controls=1, **options).isel(pool=0)
    heads = interp.heads.classify_heads(model, drawn(model, "ordinary", **options), seed=2)
    receivers = interp.heads.heads_of_kind(heads, "induction")
    assert found.receiver.values.tolist() == [*(f"L{la}H{h}" for la, h in receivers), "all"]
    assert set(found.role.values) >= {"previous", "control"}
    for kind in ("previous", "duplicate", "current"):
        chosen = [named(s) for s, role in zip(found.sender.values, found.role.values, strict=True) if role == kind]
        assert set(chosen) <= set(interp.heads.heads_of_kind(heads, kind))
    controls = [named(s) for s, role in zip(found.sender.values, found.role.values, strict=True) if role == "control"]
    assert len(controls) == 1
    assert not any(at in interp.heads.heads_of_kind(heads, kind) for at in controls for kind in KINDS)
    pair = drawn_pair(model, "unexposed", "ordinary", **options)
    for direction, (run, source) in {"denoising": pair, "noising": pair[::-1]}.items():
        with torch.no_grad():
            other = hooks.record(model, source.ids, [*hooks.z_names(model), *hooks.mlp_names(model)])

            def scores(added, run=run, source=source):
                logits = model.run_with_hooks(run.ids, fwd_hooks=added, prepend_bos=False)
                return np.stack([log_probs(logits, t.ids)[:, run.inducible].mean(1).numpy() for t in (run, source)])

            clean = scores([])
            now = found.sel(direction=direction)
            assert now.clean.values == pytest.approx(clean, abs=1e-4)
            for sender in found.sender.values:
                for via in ("q", "k", "v"):
                    for receiver in found.receiver.values:
                        to = receivers if receiver == "all" else [named(receiver)]
                        added = hooks.path_patch(model, run.ids, other, [named(sender)], to, via=via)
                        got = now.effect.sel(sender=sender, via=via, receiver=receiver).values
                        assert got == pytest.approx(scores(added) - clean, abs=2e-4), (sender, via, receiver)
            for writer in found.writer.values:
                added = hooks.path_patch(model, run.ids, other, [named(writer)])
                assert now.direct.sel(writer=writer).values == pytest.approx(scores(added) - clean, abs=2e-4)
    assert float(abs(found.effect).max()) > 1


# --- head_attribution ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attribution(organism):
    options = {"batch": 4, "length": 8, "seed": 1}
    return options, interp.run("head_attribution", organism, ["ordinary"], steps=64, top=3, **options).isel(pool=0)


@pytest.mark.experiment
def test_the_exact_column_is_that_of_the_ablation(organism, attribution):
    options, found = attribution
    ablated = interp.run("head_ablation", organism, ["ordinary"], kind="mean", **options).isel(pool=0)
    exact = found.lost.sel(estimate="exact").values
    assert exact == pytest.approx(ablated.lost.values, abs=1e-6)


def test_the_gradient_is_that_of_transformer_lens(organism, attribution):
    from transformer_lens.tools.analysis.attribution_patching import cache_activation_and_gradient

    options, found = attribution
    tokens, others = drawn(organism, "ordinary", **options), over_64(organism, options)

    def metric(logits):
        return log_probs(logits, tokens.ids)[:, tokens.inducible].mean(1).sum()

    names = hooks.z_names(organism)
    # with something above them: it sees no gradient of the first of those asked for
    asked = {"hook_embed", *names}
    cache = cache_activation_and_gradient(organism, tokens.ids, metric, names_filter=lambda name: name in asked)
    with torch.no_grad():
        known = hooks.record(organism, others, names)
        for layer, name in enumerate(names):
            change = cache.activations[name] - known[name].mean(0, keepdim=True)
            expected = (change * cache.gradients[name]).sum((1, 3)).T
            got = found.lost.sel(estimate="gradient", layer=layer).values
            assert np.abs(expected.numpy()).max() > 0.01
            assert got == pytest.approx(expected.numpy(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_integrated_gradients_sum_to_the_layers_effect(organism, attribution, layer):
    """Mean-ablating all heads of the layer at once; of plain gradients, the sum is far from it."""
    options, found = attribution
    tokens, others = drawn(organism, "ordinary", **options), over_64(organism, options)
    with torch.no_grad():
        known = hooks.record(organism, others, hooks.z_names(organism))
        added = hooks.ablate_heads(organism, [(layer, h) for h in range(4)], kind="mean", record=known)
        scores = [
            log_probs(organism.run_with_hooks(tokens.ids, fwd_hooks=a, prepend_bos=False), tokens.ids)[
                :, tokens.inducible
            ]
            for a in ([], added)
        ]
    whole = (scores[0] - scores[1]).mean(1).numpy()
    sums = found.lost.sel(layer=layer).sum("head")
    assert whole.mean() > 5
    assert sums.sel(estimate="integrated").values == pytest.approx(whole, rel=0.02)
    assert np.abs(sums.sel(estimate="gradient").values - whole).min() > 1


def test_agreement_is_what_it_says(organism, attribution):
    from scipy.stats import spearmanr

    _, found = attribution
    assert found.fit.values.tolist() == ["spearman", "pearson", "top3", "error"]
    assert found.agreement.sel(estimate="exact").values == pytest.approx([1, 1, 1, 0], abs=1e-6)
    exact, other = (found.lost.sel(estimate=e).mean("batch").values.ravel() for e in ("exact", "gradient"))
    best = set(np.argsort(-exact)[:3]) & set(np.argsort(-other)[:3])
    expected = [
        spearmanr(exact, other).statistic,
        np.corrcoef(exact, other)[0, 1],
        len(best) / 3,
        abs(exact - other).max(),
    ]
    assert found.agreement.sel(estimate="gradient").values == pytest.approx(expected, abs=1e-5)


def over_64(model, options):
    """The sequences of ordinary tokens that a mean is over: as many streams as make 64 or more."""
    streams = range(-(-64 // options["batch"]))
    return torch.cat([drawn(model, "ordinary", **options | {"seed": options["seed"] + 1 + i}).ids for i in streams])


def test_one_step_integrates_at_the_middle(organism):
    """Of steps at midpoints: one step is the gradient halfway, which neither end's is."""
    options = {"batch": 3, "length": 6, "seed": 1}
    found = interp.run("head_attribution", organism, ["ordinary"], steps=1, **options).isel(pool=0)
    tokens = drawn(organism, "ordinary", **options)
    others = over_64(organism, options)
    name = "blocks.1.attn.hook_z"
    with torch.no_grad():
        mean = hooks.record(organism, others, [name])[name].mean(0, keepdim=True)
        own = hooks.record(organism, tokens.ids, [name])[name]
    halfway = ((own + mean) / 2).requires_grad_()
    with torch.enable_grad():
        logits = organism.run_with_hooks(tokens.ids, fwd_hooks=[(name, lambda z, hook: halfway)], prepend_bos=False)
        scores = log_probs(logits, tokens.ids)[:, tokens.inducible].mean(1)
        (gradient,) = torch.autograd.grad(scores.sum(), [halfway])
    expected = ((own - mean) * gradient).sum((1, 3)).T.numpy()
    assert found.lost.sel(estimate="integrated", layer=1).values == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_gradients_of_a_frozen_model():
    """Parameters that ask for no gradient: their activations do."""
    model = models.load("organism")
    options = {"batch": 2, "length": 5, "steps": 2}
    expected = interp.run("head_attribution", model, ["ordinary"], **options)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = interp.run("head_attribution", model, ["ordinary"], **options)
    assert found.lost.values == pytest.approx(expected.lost.values, abs=1e-5)


# --- logit_attribution, logit_lens ----------------------------------------------------------------------------------------


def test_the_wired_induction_head_writes_the_answer(wired):
    found = interp.run("logit_attribution", wired, ["1:65"], batch=4, length=9).isel(pool=0)
    assert found.total.values == pytest.approx(np.full(4, -WRONG), rel=1e-4)
    assert found.by_head.sel(layer=1, head=0).values == pytest.approx(np.full(4, -WRONG), rel=1e-4)
    assert abs(found.by_head).drop_sel(layer=1).max() < 0.01
    assert abs(found.by_head.sel(layer=1, head=1)).max() < 0.01
    at = {str(name): row.values for name, row in zip(found.component.values, found.by_component, strict=True)}
    (attention,) = [name for name in at if "1" in name and "attn" in name]
    assert at.pop(attention) == pytest.approx(np.full(4, -WRONG), rel=1e-4)
    assert all(np.abs(row).max() < 0.01 for row in at.values())
    assert np.abs(found.bias).max() < 0.01


@pytest.mark.parametrize("name", ["organism", "organism-untied", "organism-llama"])
@pytest.mark.parametrize("edited", [False, True])
def test_attributions_sum_to_the_logit(name, edited):
    """Components and bias, on models edited in memory too; the logit is that of the raw weights."""
    model = models.load(name)
    if edited:
        model.original_model.get_input_embeddings().weight.data[:1000] *= 1.5
    options = {"batch": 5, "length": 9}
    for pool in ("ordinary", "unexposed"):
        found = interp.run("logit_attribution", model, [pool], **options, batch_size=2).isel(pool=0)
        tokens = drawn(model, pool, **options)
        with torch.no_grad():
            logits = model(tokens.ids, prepend_bos=False)
        centred = (logits - logits.mean(-1, keepdim=True))[:, :-1].gather(-1, tokens.ids[:, 1:, None])[..., 0]
        expected = centred[:, torch.from_numpy(tokens.inducible[1:])].mean(1)
        assert found.total.values == pytest.approx(expected.numpy(), abs=1e-3)
        assert (found.by_component.sum("component") + found.bias).values == pytest.approx(expected.numpy(), abs=1e-3)
        assert np.abs(expected).max() > 1
        # of each layer's attention, the heads are all but what no head writes: the same at every sequence where there are no biases
        for layer in range(2):
            whole = found.by_component.sel(component=f"{layer}_attn_out")
            parts = found.by_head.sel(layer=layer).sum("head")
            if name == "organism-llama":
                assert parts.values == pytest.approx(whole.values, abs=1e-3)


def test_the_lens_on_the_wired_model(wired):
    """Nothing is known before layer 1, everything after it."""
    found = interp.run("logit_lens", wired, ["1:65"], batch=4, length=7).isel(pool=0)
    assert found.after.values.tolist() == ["embed", "layer 0", "layer 1"]
    known = (found.half == 2) & (found.offset > 0)
    after = found.log_prob_after
    assert after.isel(position=0).isnull().all()
    assert abs(after.sel(after=["embed", "layer 0"]).isel(position=slice(1, None)) - UNKNOWN).max() < 1e-4
    assert abs(after.sel(after="layer 1").where(known, drop=True)).max() < 1e-4
    assert abs(after.sel(after="layer 1").where(~known & (found.half > 0), drop=True) - UNKNOWN).max() < 1e-4
    assert (found.rank_after.where(known, drop=True) == 0).all()


@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_the_lens_equals_the_norm_and_the_unembedding(name, request):
    model = request.getfixturevalue("organism") if name == "organism" else models.load(name)
    options = {"batch": 4, "length": 6}
    found = interp.run("logit_lens", model, ["ordinary"], batch_size=3, **options).isel(pool=0)
    tokens = drawn(model, "ordinary", **options)
    with torch.no_grad():
        names = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
        seen = hooks.record(model, tokens.ids, names)
        for depth, stream in enumerate(names):
            logits = model.original_model.get_output_embeddings()(model.ln_final(seen[stream]))
            expected = log_probs(logits, tokens.ids)
            got = found.log_prob_after.isel(after=depth).values
            assert got == pytest.approx(expected.numpy(), abs=1e-3, nan_ok=True)
            right = logits[:, :-1].gather(-1, tokens.ids[:, 1:, None])
            ranks = (logits[:, :-1] > right).sum(-1)
            assert (found.rank_after.isel(after=depth).values[:, 1:] == ranks.numpy()).mean() > 0.99
        own = log_probs(model(tokens.ids, prepend_bos=False), tokens.ids)
    assert found.log_prob_after.sel(after="layer 1").values == pytest.approx(own.numpy(), abs=1e-4, nan_ok=True)


# --- attention_pattern ----------------------------------------------------------------------------------------------------


def test_the_patterns_of_the_wired_circuit(wired):
    """By default the classified heads; each row attends to one key, with the texts of the requested sequence."""
    found = interp.run("attention_pattern", wired, ["a=1:65", "b=1:40"], batch=3, length=6, sequence=2)
    assert found.component.values.tolist() == ["L0H0", "L1H0"]
    size = 13
    for pool in ("a", "b"):
        tokens = drawn(wired, {"a": "1:65", "b": "1:40"}[pool], batch=3, length=6)
        assert found.token_text.sel(pool=pool).values.tolist() == [f"w{i}" if i else "<bos>" for i in tokens.ids[2]]
        previous, induction = (found.pattern.sel(pool=pool, component=c).values for c in ("L0H0", "L1H0"))
        for query in range(1, size):
            assert previous[query] == pytest.approx(np.eye(size)[query - 1], abs=1e-6)
            key = query - 5 if query > 6 else 0  # in the first copy nothing matches: it rests
            if query != 12:
                assert induction[query] == pytest.approx(np.eye(size)[key], abs=1e-6), query
        # the last of the block was followed by the first of the second copy
        assert induction[12] == pytest.approx(np.eye(size)[7], abs=1e-6)
    assert found.half.values.tolist() == [0] + [1] * 6 + [2] * 6


def test_heads_asked_for_by_name(organism):
    options = {"batch": 2, "length": 5, "sequence": 1}
    found = interp.run("attention_pattern", organism, ["ordinary"], heads="l1h2, L0H3,L1H2", **options)
    assert found.component.values.tolist() == ["L0H3", "L1H2"]
    for heads in (["L1H2", "L0H3"], [(1, 2), (0, 3)], [[0, 3], [1, 2]]):
        again = interp.run("attention_pattern", organism, ["ordinary"], heads=heads, **options)
        xr.testing.assert_identical(again.drop_attrs(), found.drop_attrs())
    tokens = drawn(organism, "ordinary", batch=2, length=5)
    with torch.no_grad():
        known = hooks.record(organism, tokens.ids, hooks.pattern_names(organism))
    assert found.pattern.values[0, 1] == pytest.approx(known["blocks.1.attn.hook_pattern"][1, 2].numpy(), abs=1e-6)
    assert found.pattern.sum("key").values == pytest.approx(1, abs=1e-5)


# --- induction_heads ----------------------------------------------------------------------------------------------------


def test_all_that_is_known_of_the_wired_circuit(wired):
    """Classification, copying, matching through the previous-token head, composition, in one result for several pools."""
    found = interp.run("induction_heads", wired, ["a=1:65", "b=1:40", "few=1:6"], batch=4, length=8, baseline_draws=5)
    for pool in ("a", "b"):
        called = found.classified.sel(pool=pool)
        assert [(str(kind), *map(int, at)) for kind in KINDS for at in np.argwhere(called.sel(kind=kind).values)] == [
            ("induction", 1, 0),
            ("previous", 0, 0),
        ]
    assert not found.classified.sel(pool="few").any()
    assert found.threshold.sel(pool="few").isnull().all()
    assert found.through.values.tolist() == ["L0H0", "embedding"]
    assert (found.matching.sel(through="L0H0", layer=1, head=0) == 1).all()
    assert (found.matching.sel(through="embedding") == 0).all()
    assert found.copying_together.sel(measure=["eigenvalues", "top1"]).values == pytest.approx(
        np.ones((3, 2, 2)), abs=1e-4
    )
    assert (found.copying_together == found.copying.sel(layer=1, head=0)).all()
    assert float(found.composition.sel(mode="K", from_layer=0, from_head=0, layer=1, head=0)) > 0.06
    assert found.attrs["distance"] == 7
    assert found.in_context_learning.isnull().all()  # a context of 256
    plain = interp.heads.classify_heads(wired, drawn(wired, "1:65", batch=4, length=8))
    for name in ("score", "argmax_share", "null", "threshold"):
        assert found[name].sel(pool="a").values == pytest.approx(plain[name].values, abs=1e-6, nan_ok=True)


@pytest.mark.experiment
def test_the_in_context_learning_score(organism, tmp_path):
    """Loss at token 500 minus loss at token 50, after BOS, for these and for the twenty around; windows evenly spaced."""
    text = tmp_path / "text.py"
    text.write_text("".join(f"def function_{i}(value, other={i % 7}):\n    return value + {i}\n\n" for i in range(400)))
    found = interp.run(
        "induction_heads", organism, ["ordinary"], batch=2, length=4, text=str(text), windows=3, baseline_draws=2
    ).in_context_learning
    ids = organism.tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    count = len(ids) // 500
    assert count > 6
    rows = [[2047, *ids[i * 500 : (i + 1) * 500]] for i in (0, round((count - 1) / 2), count - 1)]
    rows = torch.tensor(rows)
    with torch.no_grad():
        loss = -log_probs(organism(rows, prepend_bos=False), rows)
    assert loss.shape == (3, 501)
    single = (loss[:, 500] - loss[:, 50]).mean()
    assert float(found.sel(span="single", bound="mean")) == pytest.approx(float(single), abs=1e-4)
    twenty = (loss[:, 481:501].mean(1) - loss[:, 40:60].mean(1)).mean()
    assert float(found.sel(span="twenty", bound="mean")) == pytest.approx(float(twenty), abs=1e-4)
    for span in ("single", "twenty"):
        low, mean, high = (float(found.sel(span=span, bound=b)) for b in ("low", "mean", "high"))
        assert low <= mean <= high
    assert float(twenty) < 0  # context helps on a text this repetitive


@pytest.mark.experiment
@pytest.mark.parametrize("family", ["GPTNeoX", "Llama", "GPT2"])
def test_every_experiment_runs_on_every_shape(family, tmp_path):
    """Random weights of a Pythia, a Llama with grouped queries and a GPT-2, without a tokenizer; sums hold there too."""
    import transformers

    size = {"vocab_size": 200, "bos_token_id": 1, "eos_token_id": 1}
    if family == "GPT2":
        size |= {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    else:
        size |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        size |= {"max_position_embeddings": 64}
    if family == "Llama":
        size["num_key_value_heads"] = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**size)
        network = getattr(transformers, family + ("LMHeadModel" if family == "GPT2" else "ForCausalLM"))(config)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
        network.save_pretrained(tmp_path / family)
    model = models.load(tmp_path / family)
    options = {"batch": 3, "length": 6}
    for experiment, own in {
        "head_ablation": {"reference": "2:190"}, "activation_patching": {"reference": "2:190", "head": "v"},
        "head_attribution": {"steps": 2}, "logit_attribution": {}, "logit_lens": {}, "attention_pattern": {"reference": "2:190"},
        "induction_heads": {"baseline_draws": 2},
    }.items():  # fmt: skip
        found = interp.run(experiment, model, ["2:190"], **options, **own).isel(pool=0)
        if experiment == "logit_attribution":
            sums = (found.by_component.sum("component") + found.bias).values
            assert sums == pytest.approx(found.total.values, abs=1e-3)
        if experiment == "head_attribution":
            assert found.lost.notnull().all()
        if experiment == "induction_heads":
            assert not found.classified.any()


@pytest.mark.parametrize(
    "name",
    [
        "activation_patching", "attention_pattern", "attention_scores", "head_ablation", "head_attribution", "induction_heads",
        "logit_attribution", "logit_lens", "path_patching", "repeated_tokens", "edge_attribution", "score_attribution",
    ],
)  # fmt: skip
def test_every_parameter_is_described_and_typed(name):
    """`--help` is made of these lines."""
    experiment = find(name)
    described = {entry.arg_name: entry.description for entry in docstring_parser.parse(experiment.__doc__).params}
    signature = inspect.signature(experiment)
    assert list(described) == list(signature.parameters)
    assert all(text.endswith(".") for text in described.values())
    assert set(get_type_hints(experiment)) == {*signature.parameters, "return"}


# --- invalid requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "options", "said"),
    [
        ("activation_patching", {"stream": "resid"}, "stream 'resid', head 'z': use one of resid_pre"),
        ("activation_patching", {"head": "result"}, "head 'result': use one of .* and one of z, q, k, v, pattern"),
        ("activation_patching", {"sequences": 0}, "sequences 0: use a positive integer"),
        ("activation_patching", {"reference": "60:65"}, "pool '60:65' has . tokens that are not in a sequence, too few to pair its 6"),
        ("activation_patching", {"length": 40}, "pool 'text' has 24 tokens that are not in a sequence, too few to pair its 40"),
        ("activation_patching", {"reference": "nonsense"}, "unknown pool 'nonsense'"),
        ("head_ablation", {"kind": "median"}, "unknown ablation 'median': use zero, mean or resample"),
        ("head_ablation", {"draws": 0}, "draws 0: use a positive integer"),
        ("head_ablation", {"reference": "nonsense"}, "unknown pool 'nonsense'"),
        ("head_ablation", {"length": 1}, "length and copies of 2 or more"),
        ("head_ablation", {"heads": "L1H0"}, "has no parameter 'heads'"),
        ("head_attribution", {"steps": 0}, "steps 0, top 5: use positive integers"),
        ("head_attribution", {"top": 0}, "top 0: use positive integers"),
        ("path_patching", {"reference": "1:10"}, "no sequences without a repeat can be drawn from '1:10'"),
        ("path_patching", {"most": 0}, "most 0"),
        ("path_patching", {"controls": -1}, "controls -1"),
        ("induction_heads", {"baseline_draws": 0}, "windows 200, baseline draws 0, most 8, tokens_asked 512: use positive integers, and 2 windows or more"),
        ("induction_heads", {"windows": 1, "baseline_draws": 2}, "windows 1, baseline draws 2, most 8, tokens_asked 512: use positive integers, and 2 windows"),
        ("induction_heads", {"most": 0}, "most 0, tokens_asked 512: use positive integers"),
        ("attention_pattern", {"heads": "L2H0"}, "no layer 2: this model has layers 0 to 1"),
        ("attention_pattern", {"heads": "L1H2"}, "no head 2 in layer 1: this model has heads 0 to 1"),
        ("attention_pattern", {"heads": "first"}, "'first' is not a head: write L1H2"),
        ("attention_pattern", {"heads": "L1H0,"}, "'' is not a head"),
        ("attention_pattern", {"heads": "L-1H0"}, "'L-1H0' is not a head"),
        ("attention_pattern", {"heads": "L¹H0"}, "is not a head"),
        ("attention_pattern", {"sequence": 4}, "no sequence 4: the batch has 0 to 3"),
        ("attention_pattern", {"sequence": -1}, "no sequence -1"),
        ("logit_lens", {"batch_size": 0}, "batch size 0"),
        ("logit_attribution", {"batch_size": "many"}, "batch size many"),
    ],
)  # fmt: skip
def test_invalid_requests_are_refused(wired, experiment, options, said):
    with pytest.raises(InterpError, match=said) as error:
        interp.run(experiment, wired, ["1:65"], **{"batch": 4, "length": 6} | options)
    assert "\n" not in str(error.value)


def test_the_article_draws_too_little(wired):
    """One sequence has no others to take means from, nor pairs."""
    with pytest.raises(InterpError, match="the article draws one sequence, and this experiment needs many") as error:
        interp.run("head_ablation", wired, ["1:65"], protocol="article")
    assert "\n" not in str(error.value)
    assert interp.run("logit_lens", wired, ["1:65"], protocol="article").sizes["batch"] == 1


def test_capped_logits_are_no_sums(tmp_path):
    """Where a soft cap follows the unembedding, components do not add up to the logit: an error, not a table."""
    import transformers

    size = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    size |= {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.Gemma2Config(**size, final_logit_softcapping=30.0, max_position_embeddings=64)
        transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path / "capped")
    model = models.load(tmp_path / "capped")
    with pytest.raises(InterpError, match="caps its logits") as error:
        interp.run("logit_attribution", model, ["2:110"], batch=2, length=5)
    assert "\n" not in str(error.value)


def test_texts_that_cannot_be_read(organism, tmp_path):
    for text, said in (("nowhere.txt", "cannot read nowhere.txt"), ("short.txt", "fewer than one window of 500")):
        if text == "short.txt":
            (tmp_path / text).write_text("too short")
            text = str(tmp_path / text)
        with pytest.raises(InterpError, match=said):
            interp.run("induction_heads", organism, ["ordinary"], batch=2, length=4, text=text, baseline_draws=2)
