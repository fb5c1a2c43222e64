"""What can be asked of a model without a tokenizer, and is the advice true where something cannot?"""

import pytest
import torch
import transformers

import interp
from interp import models
from interp.errors import InterpError
from interp.report import report


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A network of 200 tokens, and nothing beside it."""
    place = tmp_path_factory.mktemp("plain") / "model"
    size = {"vocab_size": 200, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.GPT2Config(**size, bos_token_id=None, eos_token_id=None)
        transformers.GPT2LMHeadModel(config).save_pretrained(place)
    return models.load(place)


RUNS = ["attention_scores", "head_attribution", "logit_attribution", "logit_lens", "repeated_tokens", "unused_logits"]


@pytest.mark.parametrize("experiment", RUNS)
def test_experiments_that_need_no_text_run(plain, experiment):
    options = {} if experiment == "unused_logits" else {"batch": 4}
    found = interp.run(experiment, plain, ["0:100"], log=lambda line: None, **options)
    assert found.data_vars
    if experiment == "unused_logits":
        assert found.attrs["source"] == "random tokens, of which none is known to be ordinary"


def test_advice_works(plain):
    """What a message tells to give is an option of that experiment, and gets it to run."""
    with pytest.raises(InterpError, match=r"or give reference, e\.g\. 0:400"):
        interp.run("head_ablation", plain, ["0:100"], batch=4)
    assert "lost" in interp.run("head_ablation", plain, ["0:100"], batch=4, reference="100:200", log=lambda line: None)
    with pytest.raises(InterpError, match=r"or give among, e\.g\. 0:400"):
        interp.run("logit_lens", plain, ["0:100"], batch=4, mixed=True)
    assert interp.run("logit_lens", plain, ["0:100"], batch=4, mixed=True, among="100:200").data_vars


@pytest.mark.parametrize("experiment", ["repeat_prompt", "census", "undertrained"])
def test_no_missing_option_is_suggested(plain, experiment):
    with pytest.raises(InterpError, match=r"no(ne)?( tokenizer)?: save one in the model's folder") as error:
        interp.run(experiment, plain)
    assert "--" not in str(error.value)


def test_no_unnamed_pool_is_blamed(plain):
    with pytest.raises(
        InterpError, match=r"a pool of ordinary tokens needs a tokenizer .*: save one in the model's folder"
    ) as error:
        interp.pools("control(0:100)", plain)
    assert "'text'" not in str(error.value)


@pytest.mark.experiment
def test_a_report_has_the_available_sections(plain, tmp_path):
    said = []
    page = report(plain, tmp_path, log=said.append).read_text(encoding="utf-8")
    assert {"argmax", "heads", "gap"} & {path.parent.name for path in tmp_path.glob("*/result.nc")} >= {"heads", "gap"}
    assert "Traceback" not in page
    blamed = [line for line in said if "tokenizer" in line]
    assert len(blamed) == 3  # vocabulary, found, causes
    assert all("save one in the model's folder" in line for line in blamed)
