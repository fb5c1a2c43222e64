"""Does `emission` measure what is known by construction: sums of probabilities, divergences, loops, echoes, text?"""

import io
import itertools
import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings, strategies as st
from rich.console import Console

import interp
from interp import models, results, views
from interp.errors import InterpError
from interp.experiments.emission import experiment as emission
from interp.experiments.emission.continuations import CYCLES, LEAST, OUTCOMES, RUN, Unigram, outcome, period
from interp.sampling import AS_THE_ARTICLE, DECODINGS, GREEDY, PURE, choose, continued, uniforms
from interp.undertrained.forward_passes import fastest

QUIET = {"log": lambda line: None}
SMALL = {"contexts": 4, "steps": 8, "resamples": 20}


# --- the rule, on made-up sequences ------------------------------------------------------------------------------------

PROMPT = [901, 902, 903, 904, 905, 906, 907, 999]
TEXT = Unigram.of(np.tile(np.arange(50), 80), 1000)  # words 0..49 alike, and none of the others
SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, p=st.integers(1, 8), more=st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_a_loop_is_called_with_its_period(seed, p, more):
    """Distinct tokens again and again, after a prefix no longer than the loop."""
    rng = np.random.default_rng(seed)
    length = max(CYCLES * p, LEAST) + more
    before = rng.integers(0, 1000, rng.integers(0, length + 1)).tolist()
    cycle = rng.permutation(1000)[:p].tolist()
    assert outcome([*before, *(cycle[i % p] for i in range(length))], PROMPT, TEXT) == ("loop", p)


@given(seed=SEEDS, p=st.integers(3, 10))
@settings(max_examples=100, deadline=None)
def test_shorter_repetition_is_not_a_loop(seed, p):
    """Two and a bit periods of distinct tokens, or a loop that one token breaks in the last half."""
    rng = np.random.default_rng(seed)
    cycle = rng.permutation(1000)[:p].tolist()
    assert period([cycle[i % p] for i in range(CYCLES * p - 1)]) == 0
    whole = [cycle[i % p] for i in range(2 * CYCLES * p)]
    at = int(rng.integers(CYCLES * p, len(whole) - 1))
    assert period(whole) == p
    assert period([*whole[:at], 1001, *whole[at + 1 :]]) == 0
    assert period(rng.permutation(1000)[:30].tolist()) == 0


@given(seed=SEEDS, count=st.integers(20, 30))
@settings(max_examples=100, deadline=None)
def test_echoes_text_and_other_are_distinguished(seed, count):
    rng = np.random.default_rng(seed)
    words, rare = rng.permutation(50)[:count].tolist(), (100 + rng.permutation(700)[:count]).tolist()
    at, start = int(rng.integers(1, count + 1)), int(rng.integers(0, len(PROMPT) - RUN + 1))
    copied = PROMPT[start : start + RUN]
    for said, name in ((words, "text"), (rare, "other")):
        assert outcome(said, PROMPT, TEXT) == (name, 0)
        assert outcome([PROMPT[-1], *said], PROMPT, TEXT) == ("echo", 0)
        assert outcome([said[0], PROMPT[-1], *said[1:]], PROMPT, TEXT)[0] != "echo"  # later, it may be chance
        assert outcome([*said[:at], *copied, *said[at:]], PROMPT, TEXT) == ("echo", 0)
        assert outcome([*said[:at], *copied[:-1], *said[at:]], PROMPT, TEXT)[0] != "echo"
        assert outcome([*said[: LEAST - 1], 998, *said], PROMPT, TEXT, {998}) == ("ended", 0)
        # after an end nothing counts
        assert outcome([*said[:LEAST], 998, *[PROMPT[-1]] * 30], PROMPT, TEXT, {998}) == (name, 0)
        assert outcome(said, PROMPT, None) == ("", 0)


def test_the_texts_own_windows_are_text():
    text = Unigram.of(np.random.default_rng(0).zipf(1.5, 8000).clip(0, 999), 1000)
    assert 0.97 <= np.mean([text.is_text(window) for window in text.ids.reshape(-1, 20)]) <= 0.98
    assert text.share([1, 0]) == (text.ids == 1).mean()
    small = Unigram.of(np.array([0, 0, 0, 1]), 3)
    assert np.exp(small.log_probs) == pytest.approx([3.5 / 5.5, 1.5 / 5.5, 0.5 / 5.5])


# --- the divergence, by hand --------------------------------------------------------------------------------------------


def test_the_divergence_is_the_predictions_from_the_unigram_distribution():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    there, back = emission.divergence(p.log(), q.log()), emission.divergence(q.log(), p.log())
    assert float(there) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))  # 0.1438
    assert float(back) == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2))  # 0.1308
    assert float(emission.divergence(torch.tensor([0.0, -torch.inf]), q.log())) == pytest.approx(math.log(4))


def _made_up(own, other, entropies=(1.0, 1.0)):
    """A result of one pool, with these divergences in each sequence."""
    dims = ("role", "batch")
    entropy = np.outer(entropies, np.ones(len(own))) + 0.01 * np.arange(2 * len(own)).reshape(2, -1) % 0.03
    data = {"divergence": (dims, np.array([own, other])), "entropy": (dims, entropy)}
    return xr.Dataset(data, {"role": list(emission.ROLES)})


def test_a_model_hedges_only_where_its_prediction_is_closer():
    other = np.linspace(2, 4, 40)
    noise = np.random.default_rng(0).normal(0, 0.2, 40)
    open_too = (3.0, 1.0)
    assert "closer to" in emission._hedges(_made_up(other - 1 + noise, other))
    assert "hedges" not in emission._hedges(_made_up(other - 1 + noise, other))
    said = emission._hedges(_made_up(other - 1 + noise, other, open_too))
    assert said.startswith("The entropy of the prediction differs from the control's by +2.00 nats")
    assert said.endswith("the model hedges.")
    for own, words in (
        (other + 1 + noise, "farther from"),
        (other + noise / 10, "within 0.1 nats"),
        (other + 5 * noise, "no significant difference"),
        (other + np.nan, "cannot be determined"),
    ):
        said = emission._hedges(_made_up(own, other, open_too))
        assert words in said
        assert "hedges" not in said


# --- sampling -----------------------------------------------------------------------------------------------------------


def test_every_token_is_chosen_as_often_as_it_is_likely():
    """Evenly spaced numbers in place of random ones: shares are the softmax, up to one in a thousand."""
    logits = torch.tensor([1.0, -torch.inf, 0.0, 2.5, -torch.inf]).expand(1000, -1)
    even = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    chosen = choose(PURE, torch.zeros(1000, 1, dtype=torch.long), logits, even)
    shares = chosen.bincount(minlength=5) / 1000
    assert (shares - logits[0].softmax(-1)).abs().max() < 2e-3
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert choose(PURE, torch.zeros(2, 1, dtype=torch.long), logits[:2, :4], ends).tolist() == [0, 3]


@pytest.fixture(scope="module")
def started(organism):
    with torch.no_grad():
        ids = torch.tensor([[2047, 2, 315, 9, 12, 553], [2047, 948, 26, 267, 707, 12]])
        way = fastest(organism, [*ids[0, :-1].tolist(), -1], [553, 12])
        yield way, ids, way.forward(ids, None)


def test_settings_match_transformers_generate(organism, started):
    """Greedy decoding generates the same; the article's leaves the same tokens with the same probabilities at every step."""
    way, ids, first = started
    network = models.plain_network(organism)
    common = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "pad_token_id": 2047, "eos_token_id": None}
    greedy = continued(way, ids, first, GREEDY, uniforms(0, 2, 12))
    assert (network.generate(ids, do_sample=False, **common)[:, 6:] == greedy).all()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = network.generate(
            ids,
            do_sample=True,
            **AS_THE_ARTICLE.settings,
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
            **common,
        )
    for step, (logits, scores) in enumerate(zip(made.logits, made.scores, strict=True)):
        ours = AS_THE_ARTICLE.processors(made.sequences[:, : 6 + step], logits.clone())
        assert torch.equal(ours, scores)


def test_only_the_article_sampling_never_repeats_a_pair(started):
    way, ids, first = started
    for decoding in DECODINGS:
        whole = torch.cat([ids, continued(way, ids, first, decoding, uniforms(0, 2, 30))], 1)
        pairs = [list(itertools.pairwise(row)) for row in whole.tolist()]
        repeats = any(len(set(row)) < len(row) for row in pairs)
        assert repeats is not (decoding is AS_THE_ARTICLE) or decoding is PURE
        assert decoding.allows_loops is (decoding is not AS_THE_ARTICLE)


# --- models that are known ----------------------------------------------------------------------------------------------


def test_sums_and_divergences_on_the_wired_model_are_exact(wired, tmp_path):
    """It is sure of what it copies, and knows nothing of all else: 1 in 65 each."""
    file = tmp_path / "words.txt"
    file.write_text("w61 w62 w63 w64 " * 30)
    pools = {"a": "1:31", "control(a)": "31:61", "some": "40:50"}
    found = interp.run("emission", wired, pools, text=str(file), window=4, **SMALL, **QUIET)
    assert found["pool"].values.tolist() == ["a", "some"]  # a's control is no pool of its own
    mass = found["mass"].sel(pool="a")
    unknown, copied, positions = 26, 25, 51  # of BOS and two blocks of 25
    expected = {
        ("text", "pool"): 30 / 65,
        ("text", "control"): 30 / 65,
        ("after pool", "pool"): 30 / 65,
        ("after control", "pool"): 30 / 65,
        ("pool blocks", "pool"): (unknown * 30 / 65 + copied) / positions,
        ("pool blocks", "control"): unknown * 30 / 65 / positions,
        ("control blocks", "control"): (unknown * 30 / 65 + copied) / positions,
    }
    for (context, role), value in expected.items():
        assert mass.sel(context=context, role=role).values == pytest.approx(value, abs=1e-5), (context, role)
    assert found["mass"].sel(pool="some", role="pool", context="text").values == pytest.approx(10 / 65, abs=1e-5)
    assert found["occurs"].values == pytest.approx(np.zeros((2, 2)))
    assert found["size"].values.tolist() == [[30, 30], [10, 10]]
    counts = np.full(65, 0.5)
    counts[61:65] += 30
    by_hand = (np.log(1 / 65) - np.log(counts / counts.sum())).mean()
    assert found["divergence"].values == pytest.approx(np.full(found["divergence"].shape, by_hand), abs=1e-4)
    assert found["entropy"].values == pytest.approx(np.full(found["entropy"].shape, math.log(65)), abs=1e-4)
    assert "exposure counts are not known" in found.attrs["not_tested"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A network without attention that predicts a successor for each token: 3 of them in a circle, one its own, a chain."""
    import transformers

    follows = {i: i + 1 for i in range(60, 99)} | {10: 11, 11: 12, 12: 10, 20: 20} | {i: i + 40 for i in range(22, 30)}
    config = transformers.GPT2Config(
        vocab_size=100, n_positions=64, n_embd=100, n_layer=1, n_head=2, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    network = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.zero_()
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                weight.fill_(1)
        network.transformer.wte.weight.copy_(torch.eye(100))
        for token, successor in follows.items():
            network.lm_head.weight[successor, token] = 10.0
    path = tmp_path_factory.mktemp("chain") / "model"
    network.save_pretrained(path)
    return models.load(path)


def test_loops_of_a_known_period_are_found_in_generated_text(chain):
    """Without a tokenizer, text outcomes and the missing control are not tested."""
    pools = {"circle": "10:13", "itself": "20", "chain": "22:26"}
    found = interp.run("emission", chain, pools, contexts=5, window=6, steps=18, **QUIET)
    own = found.sel(role="pool")
    for decoding in ("pure", "greedy"):
        at = own.sel(decoding=decoding)
        assert (at["period"].sel(pool="circle") == 3).all()
        assert (at["period"].sel(pool="itself") == 1).all()
        assert (at["is_outcome"].sel(pool=["circle", "itself"], outcome="loop") == 1).all()
        assert (at["is_outcome"].sel(pool="chain", outcome=["ended", "loop", "echo"]) == 0).all()
    assert (own["generated"].sel(pool="chain", decoding="greedy").diff("new_token") == 1).all()
    assert own["is_outcome"].sel(decoding="article", outcome="loop").isnull().all()
    assert own["is_outcome"].sel(outcome=["text", "other"]).isnull().all()
    assert own["divergence"].isnull().all()
    # after one of the circle another of it comes, after a token of the chain none of the pool
    after = own["mass"].sel(context="after pool")
    assert after.sel(pool=["circle", "itself"]).values == pytest.approx(np.ones((2, 5)), abs=1e-6)
    assert after.sel(pool="chain").values == pytest.approx(np.zeros(5), abs=1e-6)
    assert found["mass"].sel(role="control").isnull().all()
    reasons = found.attrs["not_tested"]
    assert all(said in reasons for said in ("circle: no control", "needs a tokenizer", "never repeats a pair"))
    assert "there is no control to compare with" in found.attrs["verdict"]
    assert set(views.figures(found)) == {"probability_held", "what_follows"}
    assert list(views.tables(found))


# --- the organism -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(organism):
    """Of 4 windows, and the same of 7 with another pool beside it."""
    one = interp.run("emission", organism, ["unexposed"], **SMALL, **QUIET)
    two = interp.run("emission", organism, ["dose=30", "unexposed"], **SMALL | {"contexts": 7}, **QUIET)
    return one, two


@pytest.mark.experiment
def test_sums_are_those_of_a_plain_softmax(organism, small):
    found = small[0].isel(pool=0)
    windows = emission._Source.of(organism, "", 24, 4, 2047, 0).windows
    pool = interp.pools("unexposed", organism)[0]
    with torch.no_grad():
        p = organism(windows, prepend_bos=False).double().softmax(-1)
        by_hand = p[..., list(pool.ids)].sum(-1).mean(-1)
        own = found.sel(role="pool")
        ids = torch.cat([windows, torch.from_numpy(own["token_id"].values)[:, None]], 1)
        last = organism(ids, prepend_bos=False)[:, -1].double().log_softmax(-1)
    assert own["mass"].sel(context="text").values == pytest.approx(by_hand.numpy(), rel=1e-3)
    after = last.exp()[:, list(pool.ids)].sum(-1)
    assert own["mass"].sel(context="after pool").values == pytest.approx(after.numpy(), rel=1e-3)
    assert own["entropy"].values == pytest.approx(-(last.exp() * last).sum(-1).numpy(), abs=1e-3)
    assert (own["generated"].sel(decoding="greedy", new_token=1).values == last.argmax(-1).numpy()).all()
    assert set(own["token_id"].values.tolist()) <= set(pool.ids)
    assert (own["exposure"] == 0).all()
    told = found["is_outcome"].transpose("outcome", ...)
    assert (told.sum("outcome") == 1).all()  # each is one thing


@pytest.mark.experiment
def test_a_sequence_depends_on_the_seed_and_on_itself_alone(organism, small, monkeypatch):
    """Not on how many there are, nor on what other pools are asked, nor on how many are run in a pass."""
    one, two = (found.sel(pool="unexposed").isel(batch=slice(4)) for found in small)
    monkeypatch.setattr(emission._Study, "rows", 3)
    three = interp.run("emission", organism, ["unexposed"], **SMALL, **QUIET).isel(pool=0)
    for other in (two, three):
        for name in ("generated", "token_id", "is_outcome", "period", "answer"):
            assert (one[name].astype(str) == other[name].astype(str)).all(), name
        for name in ("divergence", "entropy", "mass"):
            assert one[name].values == pytest.approx(other[name].values, rel=1e-3), name
    again = interp.run("emission", organism, ["unexposed"], **SMALL, seed=1, **QUIET).isel(pool=0)
    assert not (again["generated"].values == one["generated"].values).all()


@pytest.mark.experiment
def test_tables_and_figures_show_the_result(small):
    for found in small:
        said = io.StringIO()
        for line in views.tables(found):
            Console(file=said, width=110).print(line)
        words = " ".join(said.getvalue().split())
        assert "How much probability do all tokens of a pool hold together?" in words
        assert "unexposed: holds" in words
        assert "Not tested: loops with the article's sampling" in words
        drawn = views.figures(found)
        assert all(figure.to_json() for figure in drawn.values())
        assert {"probability_held", "what_follows", "divergence_after"} <= set(drawn)
    assert "divergence_by_exposure" in views.figures(small[1])


@pytest.mark.resumption
def test_it_resumes_from_any_part(wired, tmp_path, monkeypatch):
    monkeypatch.setattr(emission._Study, "rows", 2)
    plain, saved = results.save, []

    def counted(dataset, path):
        made = plain(dataset, path)
        saved.append(path)
        if len(saved) == stop_at:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(results, "save", counted)
    (tmp_path / "words.txt").write_text("w61 w62 w63 w64 " * 30)
    asked = {"pools": "1:21", "text": str(tmp_path / "words.txt"), "window": 4, **SMALL, **QUIET}
    stop_at = None
    whole = interp.run("emission", wired, out=tmp_path / "whole", **asked)
    count = len(saved)
    assert count > 4
    for stop in (1, count - 1):
        stop_at = stop
        saved.clear()
        with pytest.raises(KeyboardInterrupt):
            interp.run("emission", wired, out=tmp_path / str(stop), **asked)
        stop_at = None
        found = interp.run("emission", wired, out=tmp_path / str(stop), **asked)
        assert len(saved) == count
        xr.testing.assert_identical(found, whole)


# --- bad input ----------------------------------------------------------------------------------------------------------


def test_bad_input_gets_a_one_line_message(wired, tmp_path):
    (tmp_path / "short.txt").write_text("w1 w2 w3 w4 w5 w6")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 40)
    (tmp_path / "foreign.txt").write_text("no word of it is known here " * 20)
    for options, message in (
        ({"contexts": 0}, "use 1 or more contexts"),
        ({"steps": 7}, "8 or more steps"),
        ({"window": 1}, "windows of 2 or more"),
        ({"window": 250}, "use a smaller --window or fewer --steps"),
        ({"text": str(tmp_path / "none.txt")}, "give a UTF-8 text file"),
        ({"text": str(tmp_path / "latin.txt")}, "give a UTF-8 text file"),
        ({"text": str(tmp_path / "short.txt")}, "fewer than one window"),
        ({"text": str(tmp_path / "short.txt"), "window": 3, "contexts": 4}, "fewer than 4 contexts: use a longer text"),
        ({"text": str(tmp_path / "foreign.txt"), "contexts": 2}, "cannot write this text"),
    ):
        with pytest.raises(InterpError, match=message) as raised:
            interp.run("emission", wired, ["1:5"], **SMALL | options, **QUIET)
        assert "\n" not in str(raised.value)


def test_outcome_names_are_unique():
    assert len(set(OUTCOMES)) == len(OUTCOMES) == 5
