"""Does every experiment run in half precision, and how far are its numbers from those of float32?

The tolerances are those of the table in docs/adding_a_model.md.
"""

import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp import catalog, models
from interp.errors import InterpError
from interp.final_norm import last_norm

DTYPES = ("float16", "bfloat16")
SMALL = {
    "activation_patching": {"sequences": 2},
    "dose_response": {"contexts": 1, "block": 8, "resamples": 20},
    "edge_attribution": {"steps": 2, "sizes": 4, "draws": 1},
    "embedding_repair": {"steps": 2, "windows": 2},
    "emission": {"contexts": 2, "steps": 8, "resamples": 20},
    "false_demonstrations": {"count": 16, "draws": 1},
    "glitch_attribution": {"pairings": 1, "fits": 1},
    "glitch_heads": {"exact": 99, "steps": 28, "fits": 1},
    "head_ablation": {"draws": 1},
    "head_attribution": {"steps": 2},
    "induction_heads": {"windows": 5, "baseline_draws": 20},
    "massive_activations": {"rotations": 2, "shuffles": 9, "draws": 1},
    "near_match": {"neighbours": 1},
    "path_patching": {"most": 1, "controls": 1},
    "repeated_token": {"members": 2, "longest": 16},
    "repeat_prompt": {"most": 3, "steps": 3},
    "undertrained": {"verify_tokens": "none"},
    "unused_logits": {"contexts": 4, "most_windows": 20},
}
# experiment: the variables compared, and how far each may be off in float16 and in bfloat16
TOLERANCES = {
    "activation_patching": ({"by_position", "by_head", "clean_position", "clean_head"}, 0.5, 3.0),
    "argmaxability": ({"margin", "pool_margin"}, 0.02, 0.2),
    "attention_pattern": ({"pattern"}, 0.01, 0.1),
    "attention_scores": ({"score"}, 0.003, 0.02),
    "census": (set(), 0.0, 0.0),
    "dose_response": ({"log_prob"}, 0.2, 1.0),
    "edge_attribution": ({"clean", "corrupted", "effect"}, 1.0, 5.0),
    "embedding_repair": ({"log_prob"}, 0.5, 1.0),
    "emission": ({"divergence", "entropy", "mass"}, 0.1, 0.3),
    "false_demonstrations": ({"direct", "head_score", "margin_intact", "margin_without"}, 0.2, 1.5),
    "glitch_attribution": ({"share", "value", "deficit"}, 0.3, 0.3),  # rows fitted to two sequences
    "glitch_heads": ({"deficit", "does", "level"}, 0.05, 0.3),
    "head_ablation": ({"lost", "curve", "gain"}, 0.03, 0.2),
    "head_attribution": ({"lost"}, 0.2, 2.0),
    "induction_heads": ({"score", "copying", "matching", "in_context_learning"}, 0.03, 0.2),
    "logit_attribution": ({"by_component", "by_head", "total"}, 0.3, 1.0),
    "logit_lens": ({"log_prob_after"}, 0.3, 2.0),
    "massive_activations": ({"largest", "level", "median"}, 0.3, 2.0),
    "near_match": ({"cosine_in"}, 0.1, 0.1),  # for neighbours that nearly coincide, rounding decides which is nearest
    "occurrences": ({"count", "value"}, 0.005, 0.05),
    "path_patching": ({"effect", "direct"}, 0.2, 1.0),
    "repeat_prompt": ({"probability"}, 0.01, 0.05),
    "repeated_token": ({"log_prob", "cosine", "share"}, 0.3, 2.0),
    "repeated_tokens": ({"log_prob", "single_log_prob"}, 0.3, 2.0),
    "row_distances": ({"distance", "norm"}, 0.005, 0.05),
    "score_attribution": ({"part", "score", "source_part"}, 0.1, 1.0),
    "undertrained": ({"value", "threshold"}, 0.005, 0.05),
    "unused_logits": ({"largest"}, 0.05, 0.3),
}


@cache
def model_of(name, dtype):
    return models.load(name, dtype=dtype)


def options_of(experiment):
    """The smallest request that measures everything."""
    wants = set(inspect.signature(catalog.find(experiment)).parameters)
    return SMALL.get(experiment, {}) | ({"batch": 2} if {"tokens", "draw"} & wants else {})


@cache
def measured(experiment, name, dtype):
    return interp.run(experiment, model_of(name, dtype), **options_of(experiment))


REFUSED = ("flip_flop", "flip_flop_cures", "flip_flop_doses")  # they count errors, and rounding makes some
_ON = {  # the organisms' vocabulary, of code, has no labels of tasks; every token of the vocabulary takes a minute
    "false_demonstrations": ("demonstrations",),
    "argmaxability": ("demonstrations",),
    "dose_response": ("organism",),
}
CASES = [
    (experiment, name)
    for experiment in catalog.names()
    if experiment not in ("check", *REFUSED)  # the numbers of check are the rounding itself
    for name in _ON.get(experiment, ("organism", "organism-llama"))
]


# each experiment in both precisions on one model, every other one on each; the other pairs by hand
_SLOWEST = {"dose_response", "glitch_attribution", "glitch_heads"}  # in bfloat16 alone
_ALONE = {experiment for experiment, _ in CASES} - {
    experiment for experiment, name in CASES if name == "organism-llama"
}
_ON_LLAMA = set(sorted({experiment for experiment, _ in CASES} - _ALONE - _SLOWEST)[::2])


def _by_hand(case, dtype):
    experiment, name = case
    slow = experiment in _SLOWEST and dtype == "float16"
    return slow or (name == "organism-llama") != (experiment in _ON_LLAMA)


PAIRS = [
    pytest.param(*case, dtype, marks=[pytest.mark.everything] if _by_hand(case, dtype) else [])
    for case in CASES
    for dtype in DTYPES
]


@pytest.mark.precision
@pytest.mark.parametrize(("experiment", "name", "dtype"), PAIRS)
def test_every_experiment_agrees_with_float32(experiment, name, dtype):
    exact, found = measured(experiment, name, "float32"), measured(experiment, name, dtype)
    assert interp.provenance(found)["model"]["dtype"] == dtype
    compared, *tolerances = TOLERANCES[experiment]
    assert compared <= set(exact.data_vars), set(exact.data_vars)
    for variable, values in exact.data_vars.items():
        # few samples that are all equal have no interval, and rounding makes them differ
        if values.dtype.kind == "f" and not variable.endswith(("_low", "_high")):
            assert (np.isnan(values.values) == np.isnan(found[variable].values)).all(), variable
    for variable in compared:
        off = float(np.nanmax(np.abs(exact[variable].values - found[variable].values)))
        assert off <= tolerances[DTYPES.index(dtype)], (variable, off)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("experiment", REFUSED)
def test_experiments_that_count_errors_are_refused_in_one_line(experiment, dtype):
    model = model_of("flipflop-doses" if experiment.endswith("doses") else "flipflop", dtype)
    with pytest.raises(InterpError, match="in half precision, rounding makes reads wrong: load the model in float32"):
        interp.run(experiment, model)


def test_the_page_lists_these_tolerances():
    page = (Path(__file__).parent.parent / "docs" / "adding_a_model.md").read_text()
    for experiment, (compared, half, brain) in TOLERANCES.items():
        names = ", ".join(f"`{variable}`" for variable in sorted(compared)) or "all, exactly"
        assert f"| `{experiment}` | {names} | {half:g} | {brain:g} |" in page


@pytest.mark.parametrize("name", ["organism", "organism-llama", "organism-untied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_last_norm_is_recognised(name, dtype):
    gain, bias, centres = last_norm(model_of(name, dtype))
    exact, exact_bias, exact_centres = last_norm(model_of(name, "float32"))
    assert centres == exact_centres == (name != "organism-llama")
    assert torch.allclose(gain, exact, rtol=0.02, atol=0.02)
    assert torch.allclose(bias, exact_bias, rtol=0.02, atol=0.1)


@pytest.mark.experiment
def test_rows_are_trained_in_float16():
    """And no entry is NaN, as with an optimiser in half precision."""
    from interp.pool_names import pools
    from interp.repairs.rows import new_rows
    from interp.tokens import repeated

    model = model_of("organism", "float16")
    pool, healthy = pools(["dose=3", "ordinary"], model)

    def draw(pool, stream):
        return repeated(pool, batch=2, length=10, bos=2047, seed=stream)

    rows = new_rows(model, "gradient", pool, healthy, draw, steps=2)
    assert all(value.isfinite().all() for value in rows.values())
