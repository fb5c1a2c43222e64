"""Is every architecture handled correctly, or refused in one line? Tiny random models against plain Hugging Face, and wired ones."""

from __future__ import annotations

import inspect
import re
import warnings
from functools import cache
from pathlib import Path

import architectures
import numpy as np
import pytest
import torch
import xarray as xr
from architectures import ARCHITECTURES, LAYERS, VOCABULARY
from transformers import AutoConfig, AutoModelForCausalLM

import interp
from interp import catalog, hooks, identities, models, organisms, views
from interp.circuits import copying, rotations
from interp.errors import InterpError
from interp.residual import Readout, head_writes, write_hooks, writes
from interp.tokens import Pool

pytestmark = pytest.mark.experiment
# structural kinds that the expensive experiments run on in every test run; all others among the slow tests
KINDS = (
    "gpt2", "llama-grouped-tied", "bloom", "gpt_neox", "gemma3_text", "qwen3", "mistral-window", "mixtral", "granite", "jamba",
)  # fmt: skip
# of a single short run each
CHEAP = ("repeated_tokens", "logit_lens", "logit_attribution", "attention_scores", "census", "unused_logits")
REFUSED = {  # what TransformerLens 4.3 does not boot or run: docs/upstream.md
    "falcon": "does not load as a model",
    "phimoe": "TransformerLens has no bridge for .*PhimoeForCausalLM",
    "opt-behind": "loads, but does not run",
    "granitemoehybrid": "loads, but does not run",
}
RIGHT = [name for name in ARCHITECTURES if name not in REFUSED]
HYBRID = {"qwen3_next": [1], "jamba": [1], "bamba": [1], "lfm2": [1]}
WITHOUT = ("mamba", "mamba2", "falcon_mamba", "nemotron_h", "recurrent_gemma", "rwkv")
SMALL = {"batch": 4, "length": 10}
POOLS = {"few": list(range(64, 80)), "plain": list(range(100, 200))}
OPTIONS = {"draws": 4, "fits": 1, "reference": "100:200", "windows": 2, "baseline_draws": 3, "contexts": 4}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder of each architecture, made on first use."""
    folder, made = tmp_path_factory.mktemp("architectures"), {}

    def of(name):
        return made[name] if name in made else made.setdefault(name, architectures.save(name, folder / name))

    return of


@pytest.fixture(scope="session")
def loaded(saved):
    known = {}

    def of(name):
        return known[name] if name in known else known.setdefault(name, models.load(saved(name)))

    return of


def run(name, model, **given):
    """An experiment with small numbers, and all that is shown of it; an `InterpError` where it refuses."""
    function = catalog.find(name)
    wants = inspect.signature(function).parameters
    options = {key: value for key, value in OPTIONS.items() if key in wants}
    options |= {"steps": 2} if name in ("embedding_repair", "edge_attribution") else {}
    options |= {"heads": "L1H0"} if name == "score_attribution" else {}  # random models have no induction head
    options |= SMALL if {"tokens", "draw"} & set(wants) else {}
    if name == "undertrained":
        options.pop("reference", None)
    pools = POOLS if {"tokens", "pools"} & set(wants) else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = interp.run(name, model, pools, log=lambda line: None, **(options | given))
        assert list(views.tables(result))
        views.figures(result, log=lambda line: pytest.fail(line))
    return result


# --- correct, or refused in one line ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_run_is_refused_in_one_line(saved, name):
    with pytest.raises(InterpError, match=REFUSED[name]) as refusal:
        models.load(saved(name))
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("name", RIGHT)
def test_log_probs_are_those_of_plain_hugging_face(loaded, saved, name):
    """On longer texts than the identity's own, and against a network that the package does not load."""
    model, network = loaded(name), AutoModelForCausalLM.from_pretrained(saved(name), attn_implementation="eager")
    ids = torch.randint(VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        right = network.eval()(ids, use_cache=False).logits.log_softmax(-1)
        own = model(ids, return_type="logits", prepend_bos=False).log_softmax(-1)
    assert hooks.relative_error(right, own) < 1e-3
    assert identities.outcome(model, "log_probs").holds


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("experiment", CHEAP)
def test_cheap_experiments_are_correct_or_give_a_reason_on_each_kind(loaded, name, experiment):
    _right_or_one_line(loaded(name), experiment)


@pytest.mark.architectures
@pytest.mark.parametrize("name", [name for name in RIGHT if name not in KINDS])
@pytest.mark.parametrize("experiment", CHEAP)
def test_cheap_experiments_are_correct_or_give_a_reason(loaded, name, experiment):
    _right_or_one_line(loaded(name), experiment)


# the slowest on every other kind, so that each kind has some of them; the other pairs by hand
SLOWEST = (
    "undertrained", "edge_attribution", "glitch_attribution", "occurrences", "repeat_prompt", "activation_patching",
    "emission",
)  # fmt: skip
ON_KINDS = [
    pytest.param(
        experiment,
        name,
        marks=[pytest.mark.everything] if experiment in SLOWEST and (i + SLOWEST.index(experiment)) % 2 else [],
    )
    for experiment in catalog.names()
    if experiment not in CHEAP
    for i, name in enumerate(KINDS)
]


@pytest.mark.architectures
@pytest.mark.parametrize(("experiment", "name"), ON_KINDS)
def test_each_kind_of_architecture_is_correct_or_gives_a_reason(loaded, name, experiment):
    _right_or_one_line(loaded(name), experiment)


@pytest.mark.everything
@pytest.mark.parametrize("name", [name for name in RIGHT if name not in KINDS])
@pytest.mark.parametrize("experiment", [name for name in catalog.names() if name not in CHEAP])
def test_every_experiment_is_correct_or_gives_a_reason(loaded, name, experiment):
    _right_or_one_line(loaded(name), experiment)


def _right_or_one_line(model, experiment):
    try:
        result = run(experiment, model)
    except InterpError as refusal:
        text = str(refusal)
        assert "\n" not in text, text
        assert len(text) < 600, text
        assert "what holds on it" not in text, text  # the safety net is not one of our answers
        return
    if experiment == "logit_attribution":
        assert _error(result["total"], result["by_component"].sum("component") + result["bias"]) < 1e-3
    if experiment == "score_attribution":
        reached = result["score"].notnull()
        assert bool(reached.all()) or result.attrs["out_of_reach"] == "L1H0"  # a window of eight
        parts = result["part"].sum(["query_writer", "key_writer"]).where(reached, 0)
        assert np.abs(parts - result["score"].fillna(0)).max() < 1e-3 * max(1.0, float(result["score"].fillna(0).std()))
    if experiment == "edge_attribution":
        assert result["faithfulness"].isel(size=-1).mean("batch").values == pytest.approx(1, abs=1e-2)
    if experiment == "logit_lens":
        last = result["log_prob_after"].isel(after=-1).values
        assert np.isfinite(last[..., 1:]).all()
        log_prob = run("repeated_tokens", model)["log_prob"].values
        assert last[..., 1:] == pytest.approx(log_prob[..., 1:], abs=1e-2)
    if experiment == "attention_scores":
        attending = hooks.attention_layers(model)
        scores = result["score"].sel(key_kind="induction")
        assert scores.isel(layer=attending).notnull().all()
        assert scores.drop_sel(layer=attending).isnull().all()


def _error(right: xr.DataArray, other: xr.DataArray) -> float:
    return float(np.abs(right - other).max() / np.abs(right).mean())


# --- layers without attention -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HYBRID)
def test_attention_layers_of_hybrids_are_analysed_and_the_others_nan(loaded, name):
    model = loaded(name)
    assert hooks.attention_layers(model) == HYBRID[name]
    lost = run("head_attribution", model, steps=1)["lost"]
    assert lost.sel(layer=HYBRID[name]).notnull().all()
    assert lost.drop_sel(layer=HYBRID[name]).isnull().all()
    with pytest.raises(InterpError, match="layer 0 of this model has no attention: layers 1 have"):
        hooks.name_of(model, 0, "pattern")
    with pytest.raises(InterpError, match="layer 0 of this model has no attention"):
        hooks.ablate_heads(model, "L0H1")


@pytest.mark.experiment
@pytest.mark.parametrize("name", WITHOUT)
def test_models_without_attention_say_what_can_run(loaded, name):
    model = loaded(name)
    for experiment in ("attention_scores", "head_ablation", "path_patching", "induction_heads", "glitch_attribution"):
        with pytest.raises(InterpError, match=r"no layer of this model has attention .* repeated_tokens, logit_lens"):
            run(experiment, model)
    assert np.isfinite(run("activation_patching", model)["by_position"]).all()


# --- attribution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["granite", "olmo2", "gemma3_text", "xglm", "cohere", "glm4", "gpt2", "exaone4"])
def test_heads_and_biases_sum_to_their_layers_attention(loaded, name):
    """Scaled logits, norms after blocks, sinusoidal positions: the parts sum to the whole."""
    model, ids = loaded(name), hooks.probe_ids(loaded(name))
    seen = hooks.record(model, ids, write_hooks(model, heads=True))
    for layer in range(LAYERS):
        by_head, biases = head_writes(model, layer, seen)
        attention = seen[f"blocks.{layer}.hook_attn_out"]
        assert hooks.relative_error(attention, by_head.sum(-2) + biases) < 1e-5
        # what heads do not write is the same at every place, up to the scale of a later norm
        if f"blocks.{layer}.ln1_post.hook_out" not in model.hook_dict:
            assert biases.std((0, 1)).max() < 1e-4 * attention.std()
    total = sum(writes(model, seen).values())
    assert hooks.relative_error(seen["ln_final.hook_in"], total) < 1e-5


@pytest.mark.parametrize(("name", "factor"), [("granite", 1 / 4), ("cohere", 1 / 2), ("gpt2", 1), ("gemma2", 1)])
def test_the_factor_after_the_unembedding_is_measured(loaded, name, factor):
    readout = Readout.of(loaded(name))
    assert readout.factor == pytest.approx(factor, rel=1e-4)
    assert readout.cap == (30 if name == "gemma2" else None)


def test_removing_a_head_removes_its_attribution(loaded):
    """By plain subtraction from the residual stream of OLMo 2, whose norm comes after the attention."""
    model, ids = loaded("olmo2"), hooks.probe_ids(loaded("olmo2"))
    seen = hooks.record(model, ids, write_hooks(model, heads=True))
    by_head, _ = head_writes(model, 1, seen)
    z, attention = seen["blocks.1.attn.hook_z"], model.blocks[1].attn
    own = torch.einsum("bpe,ed->bpd", z[:, :, 2], attention.W_O[2])
    total = torch.einsum("bphe,hed->bpd", z, attention.W_O)
    gain = model.blocks[1].ln1_post.weight
    scale = (total.square().mean(-1, keepdim=True) + AutoConfig.for_model("olmo2").rms_norm_eps).rsqrt()
    assert hooks.relative_error(own * scale * gain, by_head[:, :, 2]) < 1e-4


# --- hooks have their documented effect -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "gptj", "gpt_neox", "gemma2", "mamba", "jamba", "mixtral"])
def test_patching_each_hook_has_its_documented_effect(loaded, name):
    """A stream put in at all positions gives the other run's logits; anything else changes them; or it is refused."""
    model = loaded(name)
    one, two = (hooks.probe_ids(model, seed=seed) for seed in (5, 6))
    logits = {seed: model(ids, return_type="logits", prepend_bos=False) for seed, ids in ((1, one), (2, two))}
    names = sorted(n for n in model.hook_dict if n.startswith("blocks.1."))
    refused, unseen = {}, []
    for hook in names:
        try:
            known = hooks.record(model, two, [hook])
        except InterpError as refusal:
            unseen.append(str(refusal))
            continue
        if hook not in known or not isinstance(known[hook], torch.Tensor) or not known[hook].is_floating_point():
            continue
        try:
            patched = hooks.patch(model, hook, known)
        except InterpError as refusal:
            refused[hook.removeprefix("blocks.1.")] = str(refusal)
            continue
        changed = model.run_with_hooks(one, fwd_hooks=[patched], prepend_bos=False)
        if "hook_resid_" in hook:
            assert hooks.relative_error(logits[2], changed) < 1e-3, hook
        else:
            own = hooks.record(model, one, [hook])[hook]
            assert torch.equal(own, known[hook]) or not torch.equal(changed, logits[1]), hook
    assert all(re.search("set_use_|holds a tuple, not a tensor", line) for line in unseen)
    assert all(re.search("one branch alone|read by nothing|not reached", line) for line in refused.values())
    if name in ("gpt2", "llama"):
        assert "hook_resid_mid" in refused
        assert not {"hook_resid_pre", "hook_resid_post", "attn.hook_z", "attn.hook_pattern", "attn.hook_v"} & set(
            refused
        )
    if name == "gptj":  # its attention is computed by plain Hugging Face, and the pattern only shown
        assert "attn.hook_pattern" in refused


def test_resid_mid_is_refused_on_the_bundled_models(organism):
    """A6: the skip connection would keep the old value."""
    ids = torch.arange(20).reshape(2, 10)
    for model in (organism, models.load("organism-llama")):
        name = hooks.name_of(model, 1, "resid_mid")
        with pytest.raises(InterpError, match="use resid_pre or resid_post"):
            hooks.patch(model, name, hooks.record(model, ids, [name]))


# --- circuits ---------------------------------------------------------------------------------------------------------


def test_scores_beyond_the_window_are_not_a_number(loaded):
    """A4: a window of 8 does not reach 9 back; it reaches 7 back."""
    model = loaded("mistral-window")
    assert all(turn.isfinite().all() for turn in rotations(model, 7).values())
    assert all(turn.isnan().all() for turn in rotations(model, 9).values())
    result = run("induction_heads", model, length=12)
    assert result["matching"].isnull().all()
    assert result.attrs["out_of_reach"] == "0 1"
    assert not np.isinf(result["matching"]).any()


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text", "olmo2", "cohere-norm", "stablelm-parallel", "olmoe"])
def test_matching_counts_the_norms_of_queries_and_keys(loaded, name):
    """A5: by weights, and as the model's own attention has it; without the norms they would differ."""
    model = loaded(name)
    assert identities.outcome(model, "matching").holds
    attention = model.blocks[1].attn
    norm = attention.k_norm.original_component
    weights = [w for w in norm.parameters()] if norm is not None else []
    assert weights
    kept = weights[0].data.clone()
    try:
        from interp.circuits import keys_of

        rows = torch.randn(5, architectures.WIDTH, generator=torch.Generator().manual_seed(0))
        before = keys_of(model, 1, rows)
        weights[0].data *= torch.linspace(0.5, 2, weights[0].numel()).view_as(weights[0])
        assert hooks.relative_error(before, keys_of(model, 1, rows)) > 0.1
    finally:
        weights[0].data.copy_(kept)


def test_latent_attention_gives_a_reason_against_weight_circuits(loaded):
    model = loaded("deepseek_v3")
    result = run("induction_heads", model)
    assert np.isfinite(result["score"].sel(key_kind="induction")).all()
    assert result["copying"].isnull().all()
    assert "latent attention" in result.attrs["no_copying"]
    with pytest.raises(InterpError, match="latent attention"):
        run("head_ablation", model)


# --- a copying circuit in other architectures -------------------------------------------------------------------------


def _as(kind, tmp_path, change=lambda weights: None, **options):
    """The bundled Llama's weights in another architecture, which must then be the same function."""
    source = AutoModelForCausalLM.from_pretrained(organisms.folder("organism-llama"))
    config = {k: v for k, v in source.config.to_dict().items() if k not in ("model_type", "architectures")}
    network = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**config, **options}))
    weights = source.state_dict()
    change(weights)
    found = network.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    for name in found.missing_keys:  # biases of what has none in Llama
        assert name.endswith("bias")
        network.get_parameter(name).data.zero_()
    network.save_pretrained(tmp_path)
    for file in organisms.folder("organism-llama").glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return models.load(tmp_path)


@cache
def _of_llama(experiment, pool, **given):
    return interp.run(experiment, models.load("organism-llama"), [pool], batch=4, length=12, **given)


def _scaled(weights):
    weights["lm_head.weight"] = 8 * weights["lm_head.weight"]


@pytest.mark.architectures
@pytest.mark.parametrize(
    ("kind", "change", "options"),
    [
        ("mistral", lambda weights: None, {"sliding_window": None}),
        ("qwen2", lambda weights: None, {}),
        ("granite", _scaled, {"logits_scaling": 8.0, "tie_word_embeddings": False}),
    ],
)
def test_heads_of_a_copying_circuit_are_the_same_in_another_architecture(tmp_path, kind, change, options):
    llama = models.load("organism-llama")
    if kind == "granite":
        options = options | {
            "attention_multiplier": float(llama.cfg.d_head) ** -0.5,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
        }
    other = _as(kind, tmp_path, change, **options)
    pool = Pool("ordinary", tuple(range(300, 600)))
    for experiment in ("induction_heads", "logit_attribution", "head_ablation"):
        given = {"reference": "300:600", "draws": 2} if experiment == "head_ablation" else {}
        one = _of_llama(experiment, pool, **given)
        two = interp.run(experiment, other, [pool], batch=4, length=12, **given)
        for name in one.data_vars:
            # transformers reads another tokenizer from the same files for Qwen 2
            if one[name].dtype.kind == "f" and name != "in_context_learning":
                assert two[name].values == pytest.approx(one[name].values, abs=2e-3, nan_ok=True), (experiment, name)
        if "classified" in one:
            assert bool(one["classified"].sel(kind="induction").any())
    assert copying(other, [pool]).copying.max() > 0.5


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_model_that_disagrees_with_its_files_is_refused(saved, tmp_path, monkeypatch):
    """The reference comes from the files, so a loader that changed a tensor is detected."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    model = models.load(saved("qwen2"))
    with torch.no_grad():
        model.blocks[0].attn.W_V[0, :4] += 1.0
    models.LOADED[model] = models.weights_state(model)  # as if it had been loaded like this
    with pytest.raises(InterpError, match=r"log-probs are those of the published network.*off by"):
        run("repeated_tokens", model)
    assert not list(tmp_path.rglob("*"))
    assert not bool(run("check", model)["holds"].sel(identity="log_probs"))


def test_passed_checks_are_remembered_across_processes(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    run("repeated_tokens", models.load(saved("qwen2")))
    assert len(list((tmp_path / "checked").iterdir())) == 1
    monkeypatch.setattr("interp.identities.tested.published_network", lambda *_: pytest.fail("loaded a second time"))
    run("repeated_tokens", models.load(saved("qwen2")))


def test_edited_and_hooked_models_are_not_compared_with_their_files(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    model = models.load(saved("qwen2"))
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight[5] *= 2
    run("repeated_tokens", model)
    found = identities.outcome(model, "log_probs")
    assert found.holds
    assert "not tested: its weights were changed" in found.reason
    assert not (tmp_path / "checked").exists()


def test_differing_attention_implementations_are_reported(loaded, tmp_path, monkeypatch):
    """L7: Falcon with ALiBi; Hugging Face's own two implementations differ, and the eager one is used."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    said = []
    result = interp.run("repeated_tokens", loaded("falcon-alibi"), POOLS, log=said.append, **SMALL)
    assert any("plain transformers disagrees with itself" in line and "'eager'" in line for line in said)
    assert "'eager'" in interp.results.record(result)["note"]


def test_an_identity_is_tested_again_when_weights_change(saved):
    model = models.load(saved("llama"))
    first = identities.outcome(model, "residual")
    assert identities.outcome(model, "residual") is first
    with torch.no_grad():
        model.original_model.get_input_embeddings().weight.mul_(2)
    assert identities.outcome(model, "residual") is not first


def test_the_models_page_matches_the_measurements():
    page = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    for name in ARCHITECTURES:
        assert f"| `{name}` |" in page
