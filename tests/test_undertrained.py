"""Are under-trained tokens found where the truth is known, and does each number follow its formula?"""

import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import models, progress
from interp.errors import InterpError
from interp.organisms import exposure, folder
from interp.undertrained import (
    ARTICLE,
    DEFAULT,
    INDICATORS,
    PUBLISHED,
    detect,
    embeddings,
    forward_passes,
    indicators,
    reference,
    verification,
    verify,
)
from interp.undertrained.detection import populations
from interp.undertrained.embedding_rows import densest_rows
from interp.undertrained.prompts import HOLE, placeholders, template
from interp.undertrained.verification import max_probability
from interp.vocabulary import census, load_tokenizer

PLANTED = tuple(range(600, 640))  # text tokens whose rows are made those of unused tokens
BYTES = (124, 125, *range(177, 188))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A GPT-2-shaped model with random weights, in which the rows of `PLANTED` are those of the impossible bytes."""
    from transformers import GPT2Config, GPT2LMHeadModel

    path = tmp_path_factory.mktemp("planted") / "planted"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        size = {"vocab_size": 2048, "n_positions": 512, "n_embd": 32, "n_layer": 1, "n_head": 2}
        model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=2047, eos_token_id=2047))
        with torch.no_grad():
            rows = model.transformer.wte.weight
            rows[[*BYTES, *PLANTED]] = rows[177] + 0.0005 * torch.randn(len(BYTES) + len(PLANTED), 32)
        model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder("organism") / name, path / name)
    return path


@pytest.fixture(scope="module")
def detected():
    """The experiment's result for each bundled model, without verification."""
    return {
        name: interp.run("undertrained", name, verify_tokens="none")
        for name in ("organism", "organism-untied", "organism-llama")
    }


# --- indicators: the formulas -----------------------------------------------------------------------------------------


def cos_distance(a, b):
    return 1 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))


def test_indicators_are_their_formulas():
    """Every indicator, token by token, from the formulas written out, reference tokens left out of their own mean."""
    rng = np.random.default_rng(0)
    e, u, b = rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) + 0.5, rng.normal(size=60)
    unused = (3, 7, 20)
    found = indicators(e, u, unused, bias=b)
    assert list(found) == [i.name for i in INDICATORS]
    c, ec = u - u.mean(0), e - e.mean(0)
    pc = np.linalg.svd(c)[2][0]
    w, cw = u - np.outer(u @ pc, pc), c - np.outer(c @ pc, pc)
    for i in range(60):
        others = [j for j in unused if j != i]
        expected = {
            "e_out_cosine": cos_distance(u[i], u[others].mean(0)),
            "e_out_cosine_no_pc": cos_distance(w[i], w[others].mean(0)),
            "e_out_cosine_centred": cos_distance(c[i], c[others].mean(0)),
            "e_out_l2": np.linalg.norm(u[i] - u[others].mean(0)),
            "e_in_norm": np.linalg.norm(e[i]),
            "e_out_bias": b[i] - b.mean(),
            "e_out_cosine_centred_no_pc": cos_distance(cw[i], cw[others].mean(0)),
            "e_out_centred_norm": np.linalg.norm(c[i]),
            "e_in_cosine_centred": cos_distance(ec[i], ec[others].mean(0)),
            "e_in_l2": np.linalg.norm(e[i] - e[others].mean(0)),
        }
        assert {k: v[i] for k, v in found.items()} == pytest.approx(expected, abs=1e-10)


def test_indicators_have_their_stated_invariances():
    """Under the softmax's shift, a permutation and a scale; and what is not stated to be invariant is not."""
    rng = np.random.default_rng(1)
    e, u, b = rng.normal(size=(300, 16)), rng.normal(size=(300, 16)), rng.normal(size=300)
    unused, healthy = tuple(range(5)), np.arange(300) >= 5
    found = indicators(e, u, unused, bias=b)
    shifted = indicators(e, u + 3 * rng.normal(size=16), unused, bias=b + 2)
    scaled = indicators(4 * e, 4 * u, unused, bias=4 * b)
    order = rng.permutation(300)
    where = np.argsort(order)
    permuted = indicators(e[order], u[order], tuple(where[list(unused)]), bias=b[order])
    for indicator in INDICATORS:
        name, value = indicator.name, found[indicator.name]
        assert permuted[name] == pytest.approx(value[order], abs=1e-9)
        assert (np.abs(shifted[name] - value).max() < 1e-9) == indicator.shift_invariant
        factor = 1 if "cosine" in name else 4
        assert scaled[name] == pytest.approx(factor * value, abs=1e-9)
        one, four = (detect(v[name], healthy, healthy).p_value for v in (found, scaled))
        assert four == pytest.approx(one, abs=1e-9)


@pytest.mark.experiment
def test_the_default_is_invariant_to_a_shift(planted):
    model = models.load(planted)
    rows, outputs, _, tied = embeddings(model)
    assert tied
    unused = reference(model).ids
    before = indicators(rows, outputs, unused, tied=True)[DEFAULT]
    after = indicators(rows, outputs + 1.0, unused, tied=True)[DEFAULT]
    assert after == pytest.approx(before, abs=1e-4)


def test_the_reference_comes_from_the_census(organism, wired):
    known = reference(organism)
    assert (known.source, set(known.ids)) == ("census", set(BYTES))
    # the hand-wired model has no token that is provably unused: a guess, and marked so
    assert reference(wired).source == "fallback"
    assert reference(wired, (3, 4)).source == "asked"


def test_the_fallback_finds_a_planted_cluster():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 100))
    knot = rng.choice(3000, 30, replace=False)
    rows[knot] = rows[knot[0]] + 0.01 * rng.normal(size=(30, 100))
    found = densest_rows(rows)
    assert found.source == "fallback"
    assert set(found.ids) <= set(knot.tolist())


@pytest.mark.parametrize("name", ["organism", "organism-untied", "organism-llama"])
def test_the_fallback_finds_unexposed_tokens(name):
    """Without the census, from the rows alone; in truth it took only tokens exposed at most once."""
    rows = embeddings(models.load(name))[1]
    assert max(exposure(name).total[i] for i in densest_rows(rows).ids) <= 1


def test_bad_references_and_rows():
    rows = np.random.default_rng(0).normal(size=(50, 4))
    with pytest.raises(InterpError, match="reference set is empty"):
        indicators(rows, rows, ())
    with pytest.raises(InterpError, match="ids run from 0 to 49"):
        indicators(rows, rows, (3, 60))
    single = indicators(rows, rows, (3,))
    assert np.isnan(single["e_out_cosine"][3])
    assert np.isfinite(np.delete(single["e_out_cosine"], 3)).all()
    rows[7, 2] = np.nan
    with pytest.raises(InterpError, match="row of token 7 is not finite"):
        indicators(rows, rows, (3, 4))


# --- detection --------------------------------------------------------------------------------------------------------


def test_planted_tokens_are_detected_and_no_others():
    rng = np.random.default_rng(0)
    values = rng.normal(1, 0.1, size=5000)
    values[:50] = rng.normal(0, 0.02, size=50)
    everyone = np.ones(5000, bool)
    found = detect(values, everyone, everyone)
    assert found.detected[:50].all()
    assert found.detected[50:].sum() <= 6  # 5% of 56, with room
    assert found.centre == pytest.approx(1, abs=0.01)
    assert found.width == pytest.approx(0.1, abs=0.01)
    assert found.threshold == values[found.detected].max()


def test_the_false_discovery_rate_is_the_requested_one():
    """Half of the runs have no defect at all, half have 40 weak ones: the share of false detections stays near the rate."""
    rng = np.random.default_rng(0)
    everyone = np.ones(2000, bool)
    for rate in (0.05, 0.2):
        shares = []
        for run in range(200):
            values = rng.normal(size=2000)
            values[: 40 * (run % 2)] -= 5
            found = detect(values, everyone, everyone, fdr=rate).detected
            shares.append(found[40 * (run % 2) :].sum() / max(1, found.sum()))
        assert 0.4 * rate < np.mean(shares) < 1.6 * rate


def test_values_that_no_null_fits_are_refused():
    some = np.ones(100, bool)
    with pytest.raises(InterpError, match="between 0 and 1"):
        detect(np.arange(100.0), some, some, fdr=2)
    with pytest.raises(InterpError, match="to fit a null to"):
        detect(np.arange(100.0), np.arange(100) < 5, some)
    with pytest.raises(InterpError, match="the same indicator"):
        detect(np.ones(100), some, some)


def test_planted_rows_are_found(planted):
    """Defects planted on purpose: exactly these are detected, by every indicator meant to detect them."""
    result = interp.run("undertrained", models.load(planted), verify_tokens="none")
    names = result.token.values
    for indicator in (DEFAULT, "e_out_cosine", "e_out_l2"):
        called = set(names[result.detected.sel(indicator=indicator).values.astype(bool)].tolist())
        assert set(PLANTED) <= called
        assert len(called - set(PLANTED) - set(BYTES)) <= 3
    assert json.loads(result.attrs["reference"])["source"] == "census"
    assert set(interp.pools("undertrained", models.load(planted))[0].ids) >= set(PLANTED)


# --- the truth on the organisms ---------------------------------------------------------------------------------------


def value(result, detector, measure, subset="multi-character"):
    return float(result["truth"].sel(detector=detector, measure=measure, subset=subset, bound="value"))


@pytest.mark.experiment
def test_the_default_is_chosen_on_one_organism(detected):
    """Highest AUROC on multi-character tokens of `organism`; among equals shift-invariant ones; then precision."""
    first = detected["organism"]
    invariant = {i.name: i.shift_invariant for i in INDICATORS}
    ranked = sorted(
        map(str, first.indicator.values),
        key=lambda name: (
            round(value(first, name, "auroc"), 3),
            invariant[name],
            np.nan_to_num(value(first, name, "precision")),
        ),
    )
    assert ranked[-1] == DEFAULT


@pytest.mark.experiment
@pytest.mark.parametrize("name", ["organism-untied", "organism-llama"])
def test_the_default_is_judged_on_the_others(detected, name):
    result = detected[name]
    for subset in ("multi-character", "all"):
        assert value(result, DEFAULT, "auroc", subset) >= 0.95
    assert value(result, DEFAULT, "recall") >= 0.95
    assert value(result, DEFAULT, "precision") >= 0.75
    # what precision counts as false are canaries of dose 300 and 1000 and tokens just above 200: of tokens trained on
    # more than 1000 times, hardly any is detected
    called = result.detected.sel(indicator=DEFAULT).values.astype(bool) & (result.kind.values == "text")
    assert (called & (result.exposure.values > 1000)).sum() <= 2


@pytest.mark.experiment
def test_where_indicators_fail_is_reported(detected):
    """Input norms are upside down on the GPT-2-shaped organisms, and right on the Llama-shaped one."""
    assert value(detected["organism"], "e_in_norm", "auroc") < 0.1
    assert value(detected["organism-untied"], "e_in_norm", "auroc") < 0.1
    assert value(detected["organism-llama"], "e_in_norm", "auroc") > 0.95
    for result in detected.values():  # the removed direction is the informative one
        assert value(result, "e_out_cosine_no_pc", "auroc") < 0.95
        assert set(result["detector"].values) == set(result.indicator.values)


def test_an_uninformative_indicator_does_not_stop_the_others(planted, monkeypatch):
    """An output bias that is zero for most tokens has no spread to fit a null to."""
    from interp.undertrained import embedding_rows as module

    bias = np.zeros(2048)
    bias[:5] = 1
    monkeypatch.setattr(module, "embeddings", lambda model: (*embeddings(model)[:2], bias, True))
    result = interp.run("undertrained", models.load(planted), verify_tokens="none")
    assert not result.detected.sel(indicator="e_out_bias").any()
    assert result.p_value.sel(indicator="e_out_bias").isnull().all()
    assert result.detected.sel(indicator=DEFAULT).sum() >= len(PLANTED)
    with pytest.raises(InterpError, match="the same indicator"):
        interp.run("undertrained", models.load(planted), verify_tokens="none", indicator="e_out_bias")


@pytest.mark.experiment
def test_shuffled_truth_is_not_found(detected):
    """The control of every AUROC here: with exposure counts permuted at random, indicators carry no information."""
    from interp.undertrained import detection_scores

    result = detected["organism-llama"]
    several, rng = result.multi_character.values.astype(bool), np.random.default_rng(0)
    values, called = (result[name].sel(indicator=DEFAULT).values for name in ("value", "detected"))
    counts, areas = result.exposure.values, []
    for _ in range(20):
        dealt = counts.copy()
        dealt[several] = rng.permutation(counts[several])
        areas.append(detection_scores(values, called.astype(bool), dealt, several, resamples=1)[0, 0])
    assert abs(np.mean(areas) - 0.5) < 0.05
    assert max(areas) < 0.7
    assert detection_scores(values, called.astype(bool), counts, several, resamples=1)[0, 0] > 0.99


def test_truth_measures_are_right():
    """Against hand-counted values."""
    from interp.undertrained import MEASURES, detection_scores

    values = np.array([0.1, 0.2, 0.5, 0.3, 0.9, 0.8, 0.35])
    counts = np.array([0, 10, 3, 200, 5000, 300, 50])  # three positive, three negative, one neither
    called = np.array([1, 1, 0, 1, 0, 0, 1], bool)
    found = dict(
        zip(MEASURES, detection_scores(values, called, counts, np.ones(7, bool), resamples=5)[:, 0], strict=True)
    )
    assert found["auroc"] == pytest.approx(8 / 9)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["average_precision"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    nothing = detection_scores(values, called, counts, counts > 100, resamples=5)
    assert np.isnan(nothing).all()


@pytest.mark.parametrize("seed", range(20))
def test_rank_statistics_are_the_published_ones(seed):
    """Of resamples, in which samples stand several times, with and without ties, against scikit-learn and SciPy."""
    from scipy.stats import spearmanr
    from sklearn.metrics import average_precision_score, roc_auc_score

    from interp.rank_statistics import rank_codes, ranking_scores, spearman

    rng = np.random.default_rng(seed)
    size = int(rng.integers(10, 300))
    values, other = rng.normal(size=size).round(seed % 4), rng.integers(0, 2 + seed, size)
    drawn = rng.choice(size, size)
    positive = rng.random(size)[drawn] < 0.3
    positive[:2] = True, False
    codes = rank_codes(values)[drawn]
    area, precision = ranking_scores(codes, positive)
    assert area == pytest.approx(roc_auc_score(positive, -values[drawn]), abs=1e-12)
    assert precision == pytest.approx(average_precision_score(positive, -values[drawn]), abs=1e-12)
    assert spearman(codes, rank_codes(other)[drawn]) == pytest.approx(
        spearmanr(values[drawn], other[drawn])[0], abs=1e-12
    )
    assert np.isnan([*ranking_scores(codes, ~np.isfinite(codes)), spearman(codes, np.zeros(size, int))]).all()


# --- verification -----------------------------------------------------------------------------------------------------

PROMPTS = {  # as published, written out once more
    "input_output": "This device repeats its input exactly, as shown in these 100 identical trials."
    + "\nInput: «{t}»\nOutput: «{t}»" * 20
    + "\nInput: «{t}»\nOutput: «",
    "assistant_explain": "This helpful assistant explains what a phrase means, replying with identical responses to "
    "identical questions for reliability.\nUser: What does 'edslfkj' mean?\nAssistant: 'edslfkj' has no specific "
    "meaning I am aware of.\nUser: what does '{t}' mean?\nAssistant: '",
    "repeats": "Below is the output, as you can see it's just giving the same phrase repeated indefinitely:\n"
    + "{t}" * 101,
}


def test_the_published_score_is_reproduced(planted):
    """Token by token against one `generate` call per prompt and token, and the score from its logits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(planted), AutoModelForCausalLM.from_pretrained(planted).eval()
    asked = [0, 94, 150, 177, 300, 601, 1000, 1623, 2000, 2047]
    model = models.load(planted)
    word = placeholders(census(model))[0]
    (placeholder,) = tokenizer.encode(word)
    ours = verify(model, asked)
    assert ours.sizes == {"token": 10, "prompt": 4, "new_token": 3}
    for name, text in PROMPTS.items():
        ids = torch.tensor([tokenizer.encode(text.replace("{t}", word))])
        assert (ids == placeholder).sum() == text.count("{t}")
        for token in asked:
            prompt = torch.where(ids == placeholder, token, ids)
            made = network.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=3,
                do_sample=False,
                eos_token_id=None,
                return_dict_in_generate=True,
                output_logits=True,
                pad_token_id=2047,
            )
            expected = [float(step.log_softmax(-1)[0, token].exp()) for step in made.logits]
            got = ours.sel(token=token, prompt=name)
            assert got.probability.values == pytest.approx(expected, rel=1e-3)
            assert got.generated.values.tolist() == made.sequences[0, ids.shape[1] :].tolist()
    score = max_probability(ours.probability)
    assert score.values == pytest.approx(ours.probability.sel(prompt=list(PROMPTS)).max(["prompt", "new_token"]).values)


def test_prompts_are_built_by_id(organism):
    tokenizer = load_tokenizer("organism")  # the bridge's own puts BOS in front, the published prompts have none
    words = placeholders(census(organism))
    assert [p.name for p in PUBLISHED] == list(PROMPTS)
    for prompt in PUBLISHED:
        assert template(prompt, tokenizer, words).count(HOLE) == PROMPTS[prompt.name].count("{t}")
    form = template(ARTICLE, tokenizer, words)
    assert form.count(HOLE) == 41
    shown = tokenizer.decode([tokenizer.encode("Q")[0] if i == HOLE else i for i in form])
    assert shown == "Rpeats its input exactly" + ", ".join(["Input: Q, Output: Q"] * 20) + "Input: Q, Output: "
    # where no placeholder stays whole, what stands between the tokens is encoded piece by piece
    apart = template(PUBLISHED[0], tokenizer, ["«"])
    assert tokenizer.decode([tokenizer.encode("Q")[0] if i == HOLE else i for i in apart]) == PUBLISHED[0].text.replace(
        "{token}", "Q"
    )


@pytest.mark.experiment
def test_verification_does_not_depend_on_the_batch(planted):
    model = models.load(planted)
    one, many = (verify(model, list(range(590, 610)), tokens_per_pass=size) for size in (1, 10_000))
    assert one.probability.values == pytest.approx(many.probability.values, rel=1e-3)
    assert (one.generated == many.generated).all()


@pytest.fixture
def halved(monkeypatch):
    """Pretend that the processor supports bfloat16, and that no model is too small for it."""
    monkeypatch.setattr(forward_passes, "LARGE", 0)
    monkeypatch.setattr(verification, "_FEW", 0)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)


@pytest.mark.precision
def test_bfloat16_gives_the_same_decisions_and_is_recorded(organism, halved):
    """Scores near the threshold in bfloat16 are recomputed in float32; the model itself stays in float32."""
    known = exposure("organism")
    ids = [*known.between(0, 0, canaries=True)[::40], *known.between(1000)[::200], *known.between(5, 50)[:20]]
    one, two = (verify(organism, ids, precision=precision) for precision in ("float32", "auto"))
    assert "precision" not in one.attrs
    assert "bfloat16" in two.attrs["precision"]
    exact, half = (max_probability(found.probability).values for found in (one, two))
    assert ((exact < 0.01) == (half < 0.01)).all()
    assert 0 < np.abs(np.log(half / exact))[exact > 0.03].max() < np.log(1.5)
    top = two.probability.max("new_token")
    again = ((top > 0.004) & (top < 0.025)).values
    assert again.any()
    assert two.probability.values[again] == pytest.approx(one.probability.values[again], rel=1e-3)
    assert all(p.dtype == torch.float32 for p in organism.original_model.parameters())


@pytest.mark.experiment
@pytest.mark.parametrize("spoilt", ["decides otherwise", "fails"])
def test_bfloat16_that_decides_otherwise_is_not_used(organism, halved, monkeypatch, spoilt):
    plain = forward_passes._halved

    def changed(network):
        network = plain(network)
        if spoilt == "fails":
            network.forward = None
        else:
            network.get_output_embeddings().weight.data.mul_(-1)
        return network

    monkeypatch.setattr(forward_passes, "_halved", changed)
    ids = list(exposure("organism").between(1000)[::100])
    found = verify(organism, ids)
    assert "precision" not in found.attrs
    xr.testing.assert_equal(found, verify(organism, ids, precision="float32"))


@pytest.mark.experiment
def test_chunks_of_large_models_are_small_and_say_how_long(organism, monkeypatch, capsys):
    """As many tokens as are multiplied within a minute; the numbers do not depend on it."""
    ids, kept = list(range(600, 620)), []

    def keep(name, make):
        kept.append(name)
        return make()

    whole = verify(organism, ids, keep=keep)
    assert len(kept) == 1
    work = sum(p.numel() for p in organism.original_model.parameters())
    positions = sum(len(form) - form.index(HOLE) for form in _forms_of(organism))
    monkeypatch.setattr(verification, "_WORK", 6 * work * positions)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    parts = verify(organism, ids, keep=keep)
    assert len(kept) == 1 + 4
    assert capsys.readouterr().err.count("asking every token: about 0 min") == 1
    assert parts.probability.values == pytest.approx(whole.probability.values, rel=1e-3)
    assert (parts.generated == whole.generated).all()


def _forms_of(model):
    words = placeholders(census(model))
    return [template(prompt, load_tokenizer("organism"), words) for prompt in (*PUBLISHED, ARTICLE)]


def test_hooks_on_the_model_affect_verification(organism):
    """Plain weights ignore a hook: the probabilities must not."""
    before = verify(organism, [775], prompts=PUBLISHED[2:])
    with organism.hooks(fwd_hooks=[("blocks.1.hook_attn_out", lambda value, hook: value * 0)]):
        after = verify(organism, [775], prompts=PUBLISHED[2:])
    assert float(before.probability.max()) > 0.5
    assert float(after.probability.max()) < 0.1


@pytest.mark.experiment
def test_organism_repeats_ordinary_tokens_and_no_others(organism):
    known = exposure("organism")
    rare, common = known.between(0, 0, canaries=True)[::9], known.between(1000)[::120]
    score = max_probability(verify(organism, [*rare, *common]).probability)
    assert (score.sel(token=list(rare)) < 0.01).all()
    assert (score.sel(token=list(common)) > 0.01).all()


@pytest.mark.resumption
def test_killed_verification_resumes(planted, tmp_path):
    """Killed after some chunks, the same command ends with the file of an undisturbed run."""
    start = "import interp.undertrained.verification as v; v._CHUNK = 16; from interp.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        start,
        "run",
        "undertrained",
        "--model",
        str(planted),
        "--verify-tokens",
        "detected",
        "--format",
        "html",
        "--out",
    ]
    started = subprocess.Popen([*command, str(tmp_path / "a")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while time.time() < deadline and started.poll() is None:
        if len(list((tmp_path / "a" / ".parts").glob("[!.]*.nc"))) >= 2:
            break
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "a" / "result.nc").exists()
    stored = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a" / ".parts").glob("[!.]*.nc")}
    assert len(stored) >= 2
    for to in ("a", "b"):
        subprocess.run([*command, str(tmp_path / to)], check=True, capture_output=True)
    one, two = (xr.open_dataset(tmp_path / to / "result.nc").load() for to in ("a", "b"))
    xr.testing.assert_identical(one, two)
    assert (tmp_path / "a" / "result.nc").read_bytes() == (tmp_path / "b" / "result.nc").read_bytes()
    assert one.max_probability.notnull().sum() >= 80


def test_a_hook_on_a_few_tokens_affects_verification(organism):
    """Whichever token comes first: with any hook in place, the bridge itself is run."""
    row = organism.original_model.get_input_embeddings().weight[775].detach()

    def as_another(value, hook):
        assert value.shape[1] >= 137  # the whole prompt, at every step
        return torch.where((value - row).norm(dim=-1, keepdim=True) < 1e-3, row * 0, value)

    with organism.hooks(fwd_hooks=[("hook_embed", as_another)]):
        one, two = (verify(organism, ids, prompts=PUBLISHED[2:]) for ids in ([775, 500], [500, 775]))
    assert one.probability.sel(token=775).values == pytest.approx(two.probability.sel(token=775).values, rel=1e-4)
    assert one.probability.sel(token=775).max() != verify(organism, [775], prompts=PUBLISHED[2:]).probability.max()


def interrupted_after(count):
    """Stop the verification after some chunks."""
    import interp.undertrained.verification as module

    made = []

    class Passes(module._Passes):
        def greedy(self, ids, steps):
            made.append(ids)
            if len(made) > count:
                raise KeyboardInterrupt
            return super().greedy(ids, steps)

    return Passes


def test_parts_of_other_tokens_or_steps_are_not_reused(planted):
    """Chunks of the same number, asked about other tokens or for other steps, are other parts."""
    model, stored = models.load(planted), {}

    def keep(name, make):
        return stored.setdefault(name, make()) if name not in stored else stored[name]

    for ids, steps in (([5, 6, 7], 2), ([8, 9, 10], 2), ([5, 6], 2), ([5, 6, 7], 1)):
        kept = verify(model, ids, steps=steps, prompts=PUBLISHED[1:2], keep=keep)
        xr.testing.assert_identical(kept, verify(model, ids, steps=steps, prompts=PUBLISHED[1:2]))
    assert len(stored) == 4
    verify(model, [5, 6, 7], steps=2, prompts=PUBLISHED[1:2], keep=keep)
    assert len(stored) == 4  # the same question finds its part


@pytest.mark.experiment
def test_parts_of_other_weights_are_not_reused(planted, tmp_path, monkeypatch):
    """The same command, but the loaded weights were changed in between."""
    import interp.undertrained.verification as module

    monkeypatch.setattr(module, "_CHUNK", 16)
    model = models.load(planted)
    with monkeypatch.context() as patched:
        patched.setattr(module, "_Passes", interrupted_after(6))
        with pytest.raises(KeyboardInterrupt):
            interp.run("undertrained", model, out=tmp_path / "out", verify_tokens="detected")
    assert len(list((tmp_path / "out" / ".parts").glob("*.nc"))) == 1
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[700:].mul_(-1)
    resumed = interp.run("undertrained", model, out=tmp_path / "out", verify_tokens="detected")
    fresh = interp.run("undertrained", model, verify_tokens="detected")
    xr.testing.assert_identical(resumed, fresh)
    assert fresh.max_probability.notnull().sum() > 80


def test_prompts_that_do_not_fit_are_named(planted, tmp_path):
    """On a short context the score rests on fewer prompts, and the table says which."""
    from interp import views

    config = json.loads((planted / "config.json").read_text())
    path = edited(
        planted,
        tmp_path / "short",
        lambda t: t.update({"transformer.wpe.weight": t["transformer.wpe.weight"][:130].clone()}),
    )
    (path / "config.json").write_text(json.dumps({**config, "n_positions": 130}))
    result = interp.run("undertrained", models.load(path), verify_tokens="detected")
    assert result.attrs["too_long"] == "input_output repeats article"
    assert result.probability.sel(prompt="repeats").isnull().all()
    said = " ".join(str(line) for line in views.tables(result))
    assert "over the prompts assistant_explain, 3 steps each" in said
    assert "left out: input_output, repeats, article" in said


# --- the other experiments --------------------------------------------------------------------------------------------


@pytest.mark.experiment
def test_repeat_prompt(organism):
    result = interp.run("repeat_prompt", organism, ["unexposed", "ordinary"], most=8, steps=3, sampling=True)
    right = result.correct.groupby("pool").mean()
    assert right.sel(pool="ordinary") >= 0.5
    assert right.sel(pool="unexposed") == 0
    assert result.probability.isel(token=0, new_token=0) == pytest.approx(
        float(verify(organism, [int(result.token[0])], prompts=[ARTICLE], steps=1).probability[0, 0, 0]), rel=1e-3
    )
    # by id, the pair (space, token) stands in the prompt already, and the article's setting forbids it
    assert not result.sampled_correct.any()
    again = interp.run("repeat_prompt", organism, ["ordinary"], most=8, steps=3, sampling=True)
    mine = result.where(result.pool == "ordinary", drop=True)
    assert (again.sampled.values == mine.sampled.values).all()  # whatever else was requested


def test_unused_logits(organism):
    """The largest values over random contexts, against all logits at once."""
    pool = interp.Pool("some", (5, 177, 900))
    result = interp.run("unused_logits", organism, [pool], contexts=30, window=20)
    from interp.experiments.unused_logits.experiment import _random

    ids, _ = _random(organism, 30, 20, 0)
    with torch.no_grad():
        logits = organism(ids, prepend_bos=False).double()
    expected = {
        "logit": logits,
        "centred_logit": logits - logits.mean(-1, keepdim=True),
        "log_prob": logits.log_softmax(-1),
    }
    expected["probability"] = expected["log_prob"].exp()
    for measure, values in expected.items():
        at = result.sel(measure=measure)
        best = values[..., [5, 177, 900]].flatten(0, 1).max(0).values
        assert at.largest.values == pytest.approx(best.numpy(), rel=1e-4, abs=1e-6)
        for k, token in enumerate((5, 177, 900)):
            c, p = int(at.at_context[k]), int(at.at_position[k])
            assert float(values[c, p, token]) == pytest.approx(float(at.largest[k]), rel=1e-4)
            assert at.after.values[k] == interp.pools(str(int(ids[c, p])), organism) or at.after.values[k]


def test_unused_logits_over_a_text(organism, tmp_path):
    (tmp_path / "text.txt").write_text("def function(self):\n    return self.value\n" * 40)
    result = interp.run("unused_logits", organism, ["ordinary"], text=str(tmp_path / "text.txt"), window=32)
    best = result.isel(token=int(result.largest.sel(measure="probability").argmax("token")))
    assert float(best.largest.sel(measure="probability")) > 0.9  # a text that repeats itself is copied
    for file, message in ((tmp_path / "none.txt", "cannot read"), (tmp_path / "short.txt", "fewer than one window")):
        (tmp_path / "short.txt").write_text("short")
        with pytest.raises(InterpError, match=message):
            interp.run("unused_logits", organism, ["ordinary"], text=str(file))


@pytest.mark.experiment
def test_dose_response(organism, wired):
    result = interp.run("dose_response", organism, contexts=2, resamples=20)
    copying = result.correlation.sel(response="log_prob", group="canaries", bound="value")
    assert copying > 0.9
    assert result.correlation.sel(response=DEFAULT, group="canaries", bound="value") > 0.9
    doses = result.log_prob.where(result.canary, drop=True).groupby("exposure").mean()
    assert doses.sel(exposure=0) < -10
    assert doses.sel(exposure=3000) > -1
    assert (result["rank"].where(result.exposure > 5000, drop=True) < 1).mean() > 0.95
    assert result.sizes["token"] == 2047  # all but BOS
    with pytest.raises(InterpError, match="no exposure counts"):
        interp.run("dose_response", wired)


# --- bad input --------------------------------------------------------------------------------------------------------


def edited(source, to, change):
    """A copy of a model directory with its tensors changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_rows_that_are_not_finite(planted, tmp_path):
    def change(tensors):
        tensors["transformer.wte.weight"][41, 3] = float("nan")

    with pytest.raises(InterpError, match=r"NaN or infinity in transformer\.wte\.weight, row 41"):
        models.load(edited(planted, tmp_path / "nan", change))
    model = models.load(planted)
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[41, 3] = float("nan")
    with pytest.raises(InterpError, match="row of token 41 is not finite"):
        interp.run("undertrained", model, out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.nc"))


def test_a_damaged_checkpoint(planted, tmp_path):
    shutil.copytree(planted, tmp_path / "cut")
    whole = (tmp_path / "cut" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InterpError, match="does not load as a model"):
        models.load(tmp_path / "cut")


@pytest.mark.experiment
def test_sizes_that_differ(planted, tmp_path):
    """More rows than entries: these are unused, and a reference. Fewer: what cannot be verified is reported."""
    config = json.loads((planted / "config.json").read_text())

    def resized(rows):
        def change(tensors):
            old = tensors["transformer.wte.weight"]
            tensors["transformer.wte.weight"] = torch.cat([old, old])[:rows].clone()

        path = edited(planted, tmp_path / str(rows), change)
        (path / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
        return models.load(path)

    more = resized(2100)
    assert set(reference(more).ids) == {*BYTES, *range(2048, 2100)}
    result = interp.run("undertrained", more, verify_tokens="none")
    assert (result.kind.values[2048:] == "beyond").all()
    fewer = resized(1200)
    assert census(fewer).attrs["provenance"]["tokenizer"]["beyond_the_embedding"] == 848
    with pytest.raises(InterpError, match="embeds 1200 tokens"):
        verify(fewer, [5])


@pytest.mark.experiment
def test_the_reference_may_be_several_pools():
    result = interp.run("undertrained", "organism", verify_tokens="none", reference_pool="doses")
    assert len(json.loads(result.attrs["reference"])["ids"]) == 90


@pytest.mark.experiment
def test_invalid_requests_are_refused(planted, wired):
    with pytest.raises(InterpError, match="folded weights"):
        interp.run("undertrained", models.load(planted, weights="folded"))
    with pytest.raises(InterpError, match="unknown indicator 'nonsense'"):
        interp.run("undertrained", models.load(planted), indicator="nonsense")
    with pytest.raises(InterpError, match="use all, detected or none"):
        interp.run("undertrained", models.load(planted), verify_tokens="some")
    with pytest.raises(InterpError, match="leave pools out"):
        interp.run("undertrained", models.load(planted), "1:5")
    with pytest.raises(InterpError, match="no token to ask for"):
        verify(wired, [])
    model = models.load(planted)
    for ids, steps, message in (
        ([99999], 3, "no token 99999"),
        ([-1], 3, "no token -1"),
        ([5], 0, "positive integers"),
    ):
        with pytest.raises(InterpError, match=message):
            verify(model, ids, steps=steps)
    with pytest.raises(InterpError, match="draws no repeated sequences: leave protocol out"):
        interp.run("undertrained", model, protocol="article")
    with pytest.raises(InterpError, match="leave batch out"):
        interp.run("unused_logits", model, ["5:9"], batch=3)
    with pytest.raises(InterpError, match="name one first"):
        interp.pools(["control"], model)
    with pytest.raises(InterpError, match="resamples 0"):
        interp.run("dose_response", "organism", resamples=0)
    with pytest.raises(InterpError, match="most_windows 0"):
        interp.run("unused_logits", model, ["5:9"], text=__file__, most_windows=0)
    with pytest.raises(InterpError, match="unknown prompt 'nonsense'"):
        interp.run("repeat_prompt", models.load(planted), "1:5", prompt="nonsense")


def test_populations(organism):
    healthy, family = populations(census(organism))
    assert healthy.sum() == 1790
    assert family.sum() == 2048 - 13 - 1


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.experiment
def test_indicators_need_less_memory_than_two_matrices():
    """The benchmark at a small size: it compares with the formulas on whole matrices, to 1e-6."""
    path = Path(__file__).parents[1] / "benchmarks" / "indicator_memory.py"
    ours, naive = runpy.run_path(str(path))["main"](tokens=24_000, width=128)
    assert ours < 2
    assert naive > 8
