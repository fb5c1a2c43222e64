"""Does the workbench find what is known about a public model? A short suite; `interp reproduce smollm2` has more."""

import numpy as np
import pytest
import torch

import interp
from interp import models, results, undertrained
from interp.first_token import first_token
from interp.heads import classify_heads, heads_of_kind
from interp.reproduce import reproduce
from interp.statistics import mean_interval
from interp.tokens import Pool, repeated
from interp.vocabulary import census

pytestmark = pytest.mark.public
# names of classes and packages of programs, on which the tokenizer was trained and the model hardly
GLITCH = (36744, 48047, 45175, 36743, 43858, 39145, 36902, 45139, 43420, 45691, 39121, 34047, 39362, 46687, 40264)
ORDINARY = (504, 2365, 6354, 8985, 27240)
CALLED = {(18, 6), (17, 4), (17, 5), (17, 3)}  # the four induction heads with the largest scores


@pytest.fixture(scope="module")
def smollm2():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        models.fetch("smollm2")
    return interp.load("smollm2")


def test_it_is_the_published_network(smollm2):
    about = interp.origin(smollm2)
    assert about["name"] == "smollm2"
    assert about["sha256"] == "b179c9523d0e6a0f"
    assert sum(about["quantization"].values()) == 272
    assert about["quantization"]["Q4_1"] > 200
    ids = torch.tensor([[1, 504, 2365, 6354, 8985, 27240, 690, 260, 23790, 2767]])
    with torch.no_grad():
        one, two = (network(ids) for network in (smollm2, models.published_network(smollm2)))
    assert float((one.log_softmax(-1) - two.logits.log_softmax(-1)).abs().max()) < 1e-3


def test_its_glitch_tokens_are_detected_and_ordinary_ones_are_not(smollm2):
    table = census(smollm2)
    assert len(table) == 49152
    assert table["text"][36744] == "ManagementPlaneProtection"
    detected = set(undertrained.detected(smollm2))
    assert set(GLITCH) <= detected
    assert not detected & set(ORDINARY)
    assert 130 < len(detected) < 160


def test_it_repeats_ordinary_tokens_on_request_but_no_glitch_tokens(smollm2):
    some = [*GLITCH[::3], *ORDINARY]
    score = undertrained.max_probability(undertrained.verify(smollm2, some)["probability"]).values
    assert (score[:5] < 0.01).all()
    assert (score[5:] > 0.01).all()


def test_the_values_recorded_by_this_release_are_reproduced(smollm2, tmp_path):
    found = reproduce("smollm2", model=smollm2, out=tmp_path)
    assert found["reproduced"].all(), found["check"].values[~found["passed"].values]
    assert found.sizes["check"] == 19


def test_ordinary_tokens_are_copied_best_after_the_end_of_text_token(smollm2):
    found = first_token(smollm2)
    assert found.id == 0
    means = {facts["id"]: facts["mean"] for facts in found.tried.values()}
    assert set(means) == {0, 1, 2, None}
    assert means[0] - means[1] > 1  # the chat marker, which the tokenizer gives as BOS


def test_its_induction_heads_are_classified(smollm2):
    text = [i for i in range(1000, 20_000) if i not in GLITCH]
    tokens = repeated(Pool("ordinary", tuple(text)), batch=8, length=25, bos=0)
    found = heads_of_kind(classify_heads(smollm2, tokens), "induction")
    assert set(found) >= CALLED
    assert 10 <= len(found) <= 40
    assert set(found[:6]) & CALLED  # the strongest come first


def test_the_budget_is_quick_and_the_gap_is_there(smollm2):
    pools = {"glitch": GLITCH, "ordinary": range(2000, 2100)}
    found = interp.run("repeated_tokens", smollm2, pools, length=10, bos=0, log=lambda line: None)
    assert results.provenance(found)["budget"] == {"name": "quick", "decides": {"batch": 16}}
    second = found["summary"].sel(definition="inducible", part="second", bound="mean")
    glitch, ordinary = (second.sel(pool=pool) for pool in pools)
    assert float(glitch.sel(measure="correct")) < 0.05 < 0.4 < float(ordinary.sel(measure="correct"))
    assert float(ordinary.sel(measure="log_prob") - glitch.sel(measure="log_prob")) > 10


def test_indirect_objects_are_named_by_heads_that_attend_to_them(smollm2):
    """As published of GPT-2: name movers look at the indirect object and write it, a negative one writes against it."""
    written = interp.run("logit_attribution", smollm2, prompts="ioi:32").isel(pool=0)
    looked = interp.run("attention_scores", smollm2, prompts="ioi:32").score.isel(pool=0).mean("batch")
    low, high = mean_interval(written["total"].values)[1:]
    assert low > 3
    assert high < 6
    writes = written["by_head"].transpose("batch", "layer", "head").values
    io = looked.sel(key_kind="io")
    layer, head = map(int, np.unravel_index(int(io.values.argmax()), io.shape))
    assert (layer, head) == (24, 4)  # the negative one
    assert mean_interval(writes[:, 24, 4])[2] < -0.3
    for head in (0, 1, 2, 7):  # name movers, all of one layer
        assert float(io.sel(layer=23, head=head)) > 0.3
        assert mean_interval(writes[:, 23, head])[1] > 0.1
    # the head that writes most looks at the subject where it comes again, and writes against it
    assert np.unravel_index(np.abs(writes.mean(0)).argmax(), writes.shape[1:]) == (23, 3)
    assert float(looked.sel(key_kind="s2", layer=23, head=3)) > 0.4


def test_larger_numbers_follow_and_heads_attend_to_the_number(smollm2):
    """As published of GPT-2: answers above the number are preferred, and heads of the middle layers look back at it."""
    written = interp.run("logit_attribution", smollm2, prompts="greater_than:32").isel(pool=0)
    assert mean_interval(written["total"].values)[1] > 2.5
    looked = interp.run("attention_scores", smollm2, prompts="greater_than:32").score.isel(pool=0).mean("batch")
    number = looked.sel(key_kind="number")
    for layer, head in ((20, 8), (17, 5), (18, 6)):
        assert float(number.sel(layer=layer, head=head)) > 0.6
