"""Does `load` take networks that are loaded already, and spread a model over devices, with the same results?"""

import json

import pytest
import torch

import interp
from interp import models, results
from interp.cache import model_fingerprint
from interp.errors import InterpError
from interp.models import published_tokenizer

pytestmark = pytest.mark.experiment

IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture
def network(tiny_gpt2):
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(tiny_gpt2)


@pytest.fixture
def tokenizer(tiny_gpt2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_gpt2)


def logits(model):
    with torch.no_grad():
        found = model(IDS)
    return getattr(found, "logits", found)


def test_a_network_in_memory_gives_the_numbers_of_its_files(network, tokenizer, tiny_gpt2):
    model = models.load(network, tokenizer=tokenizer)
    assert torch.equal(logits(model), logits(models.load(tiny_gpt2)))
    about = interp.origin(model)
    assert about["name"] == "tiny-gpt2"  # and no path of this machine
    assert about["source"] == "a network in memory"
    assert (about["dtype"], about["tied"], about["attention"]) == ("float32", True, "eager")
    assert models.location(model) is None
    result, same = (interp.run("repeated_tokens", m, ["0:60"], batch=2) for m in (model, models.load(tiny_gpt2)))
    assert result.log_prob.equals(same.log_prob)
    assert interp.provenance(result)["model"]["sha256"] == about["sha256"]


def test_its_hash_is_that_of_its_weights(network):
    first = interp.origin(models.load(network))["sha256"]
    assert interp.origin(models.load(network))["sha256"] == first
    with torch.no_grad():
        network.transformer.ln_f.bias[3] += 1
    assert interp.origin(models.load(network))["sha256"] != first


def test_the_network_stays_as_it_is_and_shares_its_weights(network):
    network.train()
    keys, parts, before = list(network.state_dict()), [type(m) for m in network.modules()], logits(network.eval())
    network.train()
    model = models.load(network)
    folded = models.load(network, weights="folded")
    assert list(network.state_dict()) == keys
    assert [type(m) for m in network.modules()] == parts
    assert network.training
    assert not model.training
    assert network.config._attn_implementation == "sdpa"
    assert torch.equal(logits(network.eval()), before)
    assert (logits(folded).log_softmax(-1) - logits(model).log_softmax(-1)).abs().max() < 1e-4
    with torch.no_grad():
        network.transformer.wte.weight[0] += 1
    assert torch.allclose(logits(model), logits(network), atol=1e-4)


def test_its_tokenizer_is_kept_as_it_was_given(network, tokenizer):
    model = models.load(network, tokenizer=tokenizer)
    assert published_tokenizer(model) is tokenizer
    assert model.tokenizer is not tokenizer
    assert models.load(network).tokenizer is None


def test_its_own_dtype_is_kept(network):
    assert interp.origin(models.load(network.to(torch.bfloat16)))["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float32"}, {"revision": "main"}, {"device": "cpu"}, {"allow_pickle": True}, {"device_map": "auto"}],
)
def test_options_of_files_are_refused_for_a_network(network, options):
    with pytest.raises(InterpError, match=f"is loaded already: leave {next(iter(options))} out"):
        models.load(network, **options)


def test_networks_that_are_not_transformers_decoders_are_refused(tokenizer):
    from transformers import BertConfig, BertForMaskedLM

    with pytest.raises(InterpError, match="a Linear is not a transformers network"):
        models.load(torch.nn.Linear(2, 2))
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    with pytest.raises(InterpError, match="is an encoder"):
        models.load(BertForMaskedLM(BertConfig(**size, intermediate_size=64)))
    with torch.device("meta"):
        empty = BertForMaskedLM(BertConfig(**size, intermediate_size=64))
    with pytest.raises(InterpError, match="weights are not all in one place"):
        models.load(empty)
    with pytest.raises(InterpError, match="a TransformerBridge is not a transformers network"):
        models.load(models.load("wired"))
    with pytest.raises(InterpError, match="already belongs to a TransformerLens model"):
        models.load(models.load("wired").original_model)
    with pytest.raises(InterpError, match="a tokenizer goes with a network"):
        models.load("wired", tokenizer=tokenizer)


# --- L6: weights on several devices, as far as a CPU allows -----------------------------------------------------------

EVERYWHERE = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "lm_head": "cpu", "transformer.ln_f": "disk"}
EVERYWHERE |= {"transformer.h.0": "cpu", "transformer.h.1": "disk"}


@pytest.mark.parametrize("device_map", ["auto", {"": "disk"}, EVERYWHERE])
def test_a_model_spread_over_devices_gives_the_same_numbers(tiny_gpt2, device_map, tmp_path):
    plain, spread = models.load(tiny_gpt2, device="cpu"), models.load(tiny_gpt2, device_map=device_map)
    assert torch.equal(logits(spread), logits(plain))
    assert interp.origin(spread) == interp.origin(plain) | {"device_map": device_map}
    assert any(weight.is_meta for weight in spread.parameters()) == (device_map != "auto")
    assert model_fingerprint(spread) == model_fingerprint(models.load(tiny_gpt2, device_map=device_map))
    for experiment in ("repeated_tokens", "attention_scores"):
        one, other = (interp.run(experiment, m, ["0:60"], batch=2) for m in (plain, spread))
        assert one.drop_attrs().equals(other.drop_attrs())
    # through the cache, and back to a command
    result = interp.run("repeated_tokens", spread, ["0:60"], batch=2, out=tmp_path)
    request = interp.Request.from_json(interp.provenance(results.load(tmp_path))["request"])
    assert request.model.device_map == device_map
    assert interp.Request.from_argv(request.to_argv()) == request
    assert interp.provenance(result)["model"]["device_map"] == device_map


def test_device_map_on_a_command_line():
    words = ["run", "repeated_tokens", "--device-map", json.dumps(EVERYWHERE)]
    assert interp.Request.from_argv(words).model.device_map == EVERYWHERE
    assert interp.Request.from_argv(["run", "repeated_tokens", "--device-map", "auto"]).model.device_map == "auto"


def test_experiments_that_need_undivided_weights_are_refused_with_a_remedy(tiny_gpt2):
    model = models.load(tiny_gpt2, device_map=EVERYWHERE)
    for call in (
        lambda: models.folded(model),
        lambda: models.plain_network(model),
        lambda: models.load(tiny_gpt2, device_map=EVERYWHERE, weights="folded"),
        lambda: interp.run("head_attribution", model, ["0:60"], batch=2),
        lambda: interp.run("undertrained", models.load(tiny_gpt2, device_map={"": "disk"}), verify_tokens="none"),
    ):
        with pytest.raises(InterpError, match="device_map spreads") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_invalid_device_maps_are_refused(tiny_gpt2):
    with pytest.raises(InterpError, match="device and device_map both say"):
        models.load(tiny_gpt2, device="cpu", device_map="auto")
    wrong = {
        "leave device_map out": "everywhere",
        "meta target": {"": "meta"},
        "has no part 'nothing': leave it out of device_map": {"": "cpu", "nothing": "cpu"},
        "transformer.wte.weight of .* has no place: add it": {"transformer.h": "cpu"},
    }
    for message, device_map in wrong.items():
        with pytest.raises(InterpError, match=message) as caught:
            models.load(tiny_gpt2, device_map=device_map)
        assert "\n" not in str(caught.value)
