"""Are the numbers on an accelerator those of the CPU? Skipped where there is none.

All other tests run on the CPU on every machine (tests/conftest.py), so that they ask the same of each.
"""

import numpy as np
import pytest
import torch
from test_half_precision import CASES, TOLERANCES, model_of, options_of

import interp
from interp import cache, circuits, heads, hooks, measure, models, sweep
from interp.pool_names import pools
from interp.tokens import repeated

OTHERS = [kind for kind, there in (("cuda", torch.cuda), ("mps", torch.backends.mps)) if there.is_available()]
needs_one = pytest.mark.skipif(not OTHERS, reason="this machine has no accelerator")
# tolerances as for float16: products of float32 are rounded in another order, and nothing else differs
PART = 0.02
# fitted rows and discrete thresholds propagate that rounding
FITTED = {"embedding_repair": 1.0, "glitch_attribution": 1.0}


@needs_one
@pytest.mark.experiment
@pytest.mark.parametrize("device", OTHERS)
@pytest.mark.parametrize(("experiment", "name"), CASES)
def test_every_experiment_gives_the_numbers_of_the_cpu(experiment, name, device):
    options = options_of(experiment)
    exact = interp.run(experiment, model_of(name, "float32"), **options)
    found = interp.run(experiment, models.load(name, device=device), **options)
    compared, half, _ = TOLERANCES[experiment]
    for variable in compared:
        one, other = exact[variable].values, found[variable].values
        assert (np.isnan(one) == np.isnan(other)).all(), variable
        off = float(np.nanmax(np.abs(one - other)))
        assert off <= half * FITTED.get(experiment, PART), (variable, off)


@needs_one
@pytest.mark.parametrize("device", OTHERS)
def test_sequences_on_the_cpu_are_accepted(device, tiny_gpt2):
    exact, model = (models.load(tiny_gpt2, device=kind) for kind in ("cpu", device))
    (pool,) = pools(["0:60"], exact)
    tokens = repeated(pool, batch=2, length=8, bos=None)
    assert tokens.ids.device.type == "cpu"

    def close(of):
        one, other = of(exact), of(model)
        return np.allclose(np.asarray(one.cpu()), np.asarray(other.cpu()), atol=1e-4, equal_nan=True)

    name = "blocks.1.hook_resid_post"
    assert close(lambda m: hooks.record(m, tokens, [name])[name])
    assert close(lambda m: sweep.sweep(m, tokens, [[]], tokens.inducible))
    assert close(lambda m: measure.log_probs(m(tokens.ids, prepend_bos=False).detach(), tokens.ids))
    assert close(lambda m: circuits.keys_of(m, 1, torch.ones(3, m.cfg.d_model)))
    one, other = (heads.classify_heads(m, tokens) for m in (exact, model))
    assert np.allclose(one["score"], other["score"], atol=1e-4, equal_nan=True)


def test_a_model_moves_its_inputs_to_its_device(tiny_gpt2):
    """To a device that every machine has: "meta" tensors have a shape and nothing else."""
    model = models.load(tiny_gpt2, device="cpu")
    assert not cache.has_hooks(model)
    network = model.original_model.to("meta")
    ids, fed = torch.arange(8).reshape(2, 4), []
    # "meta" accepts ids of the CPU, so what arrives is inspected
    network.get_input_embeddings().register_forward_pre_hook(lambda _, given: fed.append(given[0].device.type))
    for found in (model(ids, prepend_bos=False), network(ids).logits, network(input_ids=ids).logits):
        assert found.device.type == "meta"
        assert found.shape == (2, 4, 2048)
    assert fed == ["meta"] * 3


def test_the_default_device_is_the_one_in_the_environment(monkeypatch, tiny_gpt2):
    monkeypatch.setenv("INTERP_DEVICE", "nowhere")
    with pytest.raises(interp.InterpError, match="no device 'nowhere' on this machine: use 'cpu'"):
        models.load(tiny_gpt2)
    assert models.load(tiny_gpt2, device="cpu").cfg.device == "cpu"
