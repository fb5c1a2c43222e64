"""The hand-wired flip-flop model attends, and errs, exactly as its margin says."""

import math

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError
from interp.languages.register import FIRST_VALUE, flip_flop
from interp.organisms.wired_register import TIED, wired_flip_flop


def attention(model, ids):
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(ids, output_attentions=True, use_cache=False)
    return output.logits, output.attentions


@pytest.mark.experiment
@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("p", [0.1, 0.8])
def test_attention_on_the_last_write_and_errors_follow_from_the_margin(margin, p):
    model, _ = wired_flip_flop(margin)
    tokens = flip_flop(p, batch=24, length=128, seed=4)
    logits, patterns = attention(model, tokens.ids)
    wrong_where_it_should = 0
    for i, at in tokens.read.nonzero().tolist():
        last, n = int(tokens.last_write[i, at]), int(tokens.writes[i, at]) - 1
        seen = patterns[1][i, 0, at - 1]
        assert float(seen[last]) == pytest.approx(1 / (1 + n * math.exp(-margin)), abs=1e-5)
        earlier = tokens.written[i].clone()
        earlier[last:] = False
        for key in earlier.nonzero()[:, 0].tolist():
            assert float(seen[key]) == pytest.approx(math.exp(-margin) / (1 + n * math.exp(-margin)), abs=1e-5)
        same = int((tokens.ids[i, earlier] == tokens.ids[i, at]).sum())
        excess = (n - same) - same - math.exp(margin)
        if abs(excess) > 1e-3:  # a tie at margin 0 goes either way
            wrong = int(logits[i, at - 1].argmax()) != int(tokens.ids[i, at])
            assert wrong == (excess > 0)
            wrong_where_it_should += wrong
    if margin == 0.0:
        assert wrong_where_it_should > 10


def test_the_other_heads_attend_where_documented():
    model, _ = wired_flip_flop()
    tokens = flip_flop(0.5, batch=4, length=64, seed=1)
    _, patterns = attention(model, tokens.ids)
    previous = patterns[0][:, 0].diagonal(-1, 1, 2)
    assert torch.allclose(previous, torch.ones_like(previous), atol=1e-6)
    last = tokens.last_write - 1  # the instruction
    assert torch.allclose(patterns[0][:, 1].gather(-1, last[..., None]), torch.ones(4, 64, 1), atol=1e-6)


@pytest.mark.experiment
@pytest.mark.parametrize("context", [4, 64, 512])
def test_it_is_right_with_a_margin_above_all_distractors(context):
    model, _ = wired_flip_flop(math.log(context), context=context)
    tokens = flip_flop(0.5, batch=8, length=context, seed=2)
    logits, _ = attention(model, tokens.ids)
    found = logits.argmax(-1)[:, :-1]
    assert torch.equal(found[tokens.read[:, 1:]], tokens.ids[tokens.read])


@pytest.mark.experiment
def test_each_defect_breaks_what_it_names():
    tokens = flip_flop(0.5, batch=32, length=128, seed=3)
    read = tokens.read.nonzero()
    last = tokens.last_write[read[:, 0], read[:, 1]]
    several = tokens.writes[read[:, 0], read[:, 1]] > 1

    model, _ = wired_flip_flop(5.0, defect="first write")
    _, patterns = attention(model, tokens.ids)
    assert (patterns[1][read[:, 0], 0, read[:, 1] - 1].argmax(1)[several] == 1).all()

    model, _ = wired_flip_flop(5.0, defect="positional tie")
    _, patterns = attention(model, tokens.ids)
    on_last = patterns[1][read[:, 0], 0, read[:, 1] - 1].gather(1, last[:, None])[:, 0]
    tied = torch.tensor(
        [int(tokens.written[i, place // TIED * TIED : place].sum()) for (i, _), place in zip(read, last, strict=True)]
    )
    n = tokens.writes[read[:, 0], read[:, 1]] - 1 - tied
    assert torch.allclose(on_last, 1 / (1 + tied + n * math.exp(-5.0)), atol=1e-5)
    assert (tied > 0).float().mean() > 0.5

    model, _ = wired_flip_flop(5.0, defect="blind value")
    _, patterns = attention(model, tokens.ids)
    whole, _ = wired_flip_flop(5.0)
    assert torch.allclose(patterns[1][:, 0], attention(whole, tokens.ids)[1][1][:, 0], atol=1e-6)
    model, _ = wired_flip_flop(5.0, defect="inverted readout")
    inverted = model(tokens.ids).logits.argmax(-1)[read[:, 0], read[:, 1] - 1]
    assert np.array_equal(inverted.numpy(), 2 * FIRST_VALUE + 1 - tokens.ids[read[:, 0], read[:, 1]].numpy())


def test_it_loads_by_its_name_and_gives_the_same_logits():
    model = interp.load("wired-flipflop")
    tokens = flip_flop(0.5, batch=3, length=64, seed=1)
    network, tokenizer = wired_flip_flop()
    with torch.no_grad():
        assert torch.allclose(model(tokens.ids), network(tokens.ids).logits, atol=1e-4)
    assert tokenizer.encode(" ".join(tokens.text[0])) == tokens.ids[0].tolist()


def test_bad_input_gets_a_one_line_message():
    with pytest.raises(InterpError, match="even number from 4"):
        wired_flip_flop(context=3)
    with pytest.raises(InterpError, match="unknown defect"):
        wired_flip_flop(defect="bent")
