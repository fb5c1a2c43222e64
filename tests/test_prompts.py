"""Are a user's prompts measured as blocks are, and as in TransformerLens? Is a mistake in a file reported in one line?"""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import interp
from interp import cache, prompts as making
from interp.errors import InterpError
from interp.metrics import scores
from interp.request import Request
from interp.tokens import Answered, Paired, Pool, Repeated, Sequences, paired, repeated

WORDS = Pool("words", tuple(range(1, 65)))
CODE = {"text": "def f(a, b):\n    return a", "answer": " +", "rivals": [" -"], "spans": {"args": "a, b"}}


def written_out(tokens, other=None):
    """Repeated blocks as lines of a file of prompts."""
    pairs = [{}] * len(tokens.ids) if other is None else [{"corrupted": row.tolist()} for row in other.ids]
    return [
        {"ids": row.tolist(), "read": np.flatnonzero(read).tolist(), **pair}
        for row, read, pair in zip(tokens.ids, tokens.inducible_tested, pairs, strict=True)
    ]


@pytest.fixture(scope="module")
def blocks(organism):
    return repeated(interp.pools("ordinary", organism)[0], batch=6, length=8, bos=2047)


# --- the same numbers as repeated blocks ------------------------------------------------------------------------------


def test_the_lens_and_direct_attribution_are_those_of_repeated_blocks(organism, blocks):
    given = written_out(blocks)
    options = {"batch": 6, "length": 8}
    lens = interp.run("logit_lens", organism, "ordinary", **options)
    at = (lens["half"] == 2) & (lens["offset"] > 0)
    for metric, name in (("log_prob", "log_prob_after"), ("rank", "rank_after")):
        found = interp.run("logit_lens", organism, prompts=given, metric=metric)["score_after"].isel(pool=0)
        right = lens[name].where(at).mean("position").isel(pool=0)
        assert found.values == pytest.approx(right.transpose("after", "batch").values, abs=2e-6, rel=1e-6)
    right = interp.run("logit_attribution", organism, "ordinary", **options).isel(pool=0)
    found = interp.run("logit_attribution", organism, prompts=given).isel(pool=0)
    for name in ("by_component", "by_head", "bias", "total"):
        assert found[name].values == pytest.approx(right[name].values, abs=1e-6), name


@pytest.mark.parametrize("model", ["wired", "organism"])
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_ablation_is_that_of_repeated_blocks(request, model, kind):
    """The means are over other sequences, so that both are given the same ones."""
    model = request.getfixturevalue(model)
    tokens = repeated(WORDS, batch=6, length=8, bos=0)
    [given] = making.prompt_sets(making.spec_texts(written_out(tokens)), model, first=None)
    from interp.baselines import mean_of_others
    from interp.hooks import ablate_heads, heads_of, record, z_names
    from interp.sweep import sweep

    known = record(model, tokens, z_names(model))
    if kind == "mean":
        known, over = mean_of_others(known, given)
        assert over == "positions"
    way = "zero" if kind == "zero" else "resample"
    plans = [[], *(ablate_heads(model, [at], kind=way, record=known) for at in heads_of(model))]
    right = sweep(model, tokens, plans, tokens.inducible_tested).nanmean(-1).numpy()
    made = interp.run("head_ablation", model, prompts=written_out(tokens), kind=kind).isel(pool=0)
    assert made["clean"].values == pytest.approx(right[0], abs=1e-6)
    lost = made["lost"].transpose("layer", "head", "batch").values.reshape(right[1:].shape)
    assert lost == pytest.approx(right[0] - right[1:], abs=1e-6, rel=1e-6)


@pytest.mark.experiment
def test_zero_ablation_and_gradients_are_those_of_repeated_blocks(organism, blocks):
    given = written_out(blocks)
    right = interp.run("head_ablation", organism, "ordinary", batch=6, length=8, kind="zero").isel(pool=0)
    found = interp.run("head_ablation", organism, prompts=given, kind="zero").isel(pool=0)
    for name in ("lost", "clean"):
        assert found[name].values == pytest.approx(right[name].values, abs=1e-6), name
    # the baselines are other sequences there and the other prompts here: a prompt's exact loss is what both must find
    found = interp.run("head_attribution", organism, prompts=given).isel(pool=0)
    ablated = interp.run("head_ablation", organism, prompts=given, kind="mean").isel(pool=0)
    assert found["lost"].sel(estimate="exact").values == pytest.approx(ablated["lost"].values, abs=1e-6)
    assert float(found["agreement"].sel(estimate="integrated", fit="spearman")) > 0.9


@pytest.mark.experiment
@pytest.mark.parametrize("head", ["z", "v", "pattern"])
def test_activation_patching_is_that_of_repeated_blocks(organism, head):
    """Noising runs on the ordinary sequence and reads its own token, as a clean prompt's answer is read."""
    found, tokens, other = _patched(organism, "activation_patching", head=head)
    right = interp.run("activation_patching", organism, "unexposed", batch=5, length=7, head=head, sequences=5)
    right = right.isel(pool=0)
    pairs = {"denoising": "other", "noising": "own"}  # the ordinary sequence's token in either
    for direction, target in pairs.items():
        at = right.sel(direction=direction, target=target)
        mine = found.sel(direction=direction)
        assert mine["by_head"].values == pytest.approx(at["by_head"].values, abs=1e-5), direction
        assert mine["clean"].values == pytest.approx(at["clean_head"].values, abs=1e-5)
    # the last token alone is read position by position there
    last = [{**line, "read": line["read"][-1:]} for line in written_out(other, tokens)]
    found = interp.run("activation_patching", organism, prompts=last, head=head).isel(pool=0)
    for direction, target in pairs.items():
        at = right.sel(direction=direction, target=target)["by_position"]
        mine = found.sel(direction=direction)["by_position"]
        fed = mine.sizes["position"]
        assert mine.values == pytest.approx(at.transpose("layer", "position", "pair").values[:, :fed], abs=1e-5)


@pytest.mark.experiment
def test_path_patching_is_that_of_repeated_blocks(organism):
    right = interp.run("path_patching", organism, "unexposed", batch=5, length=7, most=2, controls=1).isel(pool=0)
    receivers = [str(name) for name in right["receiver"].values if name != "all"]
    found, _, _ = _patched(organism, "path_patching", receivers=",".join(receivers))
    for direction, target in {"denoising": "other", "noising": "own"}.items():
        at, mine = right.sel(direction=direction, target=target), found.sel(direction=direction)
        for sender in map(str, right["sender"].values):
            layer, head = map(int, sender[1:].split("H"))
            for via in ("q", "k", "v"):
                assert mine["effect"].sel(via=via, layer=layer, head=head).values == pytest.approx(
                    at["effect"].sel(via=via, sender=sender, receiver="all").values, abs=1e-5
                )
        for writer in map(str, right["writer"].values):
            layer, head = map(int, writer[1:].split("H"))
            right_one = at["direct"].sel(writer=writer).values
            assert mine["direct"].sel(layer=layer, head=head).values == pytest.approx(right_one, abs=1e-5)


def _patched(model, name, **options):
    """An experiment on pairs that `activation_patching` would draw, written out as prompts."""
    pools = interp.pools("unexposed", model)
    tokens = repeated(pools[0], batch=5, length=7, bos=2047)
    from interp.pool_names import ordinary_pool

    other = paired(tokens, ordinary_pool(model), seed=0)
    found = interp.run(name, model, prompts=written_out(other, tokens), **options)
    return found.isel(pool=0), tokens, other


def test_attention_is_that_of_repeated_blocks(wired):
    tokens = repeated(WORDS, batch=4, length=6, bos=0)
    given = [{**line, "spans": {"first": [1, 7]}} for line in written_out(tokens)]
    made = interp.run("attention_scores", wired, prompts=given).score.isel(pool=0)
    blocks = interp.run("attention_scores", wired, [WORDS], batch=4, length=6).score.isel(pool=0)
    for kind in ("previous", "current"):
        assert made.sel(key_kind=kind).values == pytest.approx(blocks.sel(key_kind=kind).values, abs=1e-6)
    # every query of the second copy looks back into the first: the induction key is there
    assert made.sel(key_kind="first", layer=1, head=0).values == pytest.approx(np.ones(4), abs=1e-6)
    pattern = interp.run("attention_pattern", wired, prompts=given, heads="L1H0", sequence=2).pattern
    right = interp.run("attention_pattern", wired, [WORDS], batch=4, length=6, heads="L1H0", sequence=2).pattern
    size = pattern.sizes["query"]
    assert pattern.values == pytest.approx(right.values[..., :size, :size], abs=1e-6)


# --- the same numbers as TransformerLens ------------------------------------------------------------------------------


@pytest.mark.experiment
@pytest.mark.parametrize("metric", ["logit_difference", "log_prob"])
def test_patching_is_that_of_transformer_lens_cell_by_cell(tiny_gpt2, metric):
    from transformer_lens import patching

    model = interp.load(str(tiny_gpt2))
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(5, 2000, (3, 7), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 3] = torch.randint(5, 2000, (3,), generator=generator)
    right, wrong = (
        torch.randint(5, 1000, (3,), generator=generator),
        torch.randint(1000, 2000, (3,), generator=generator),
    )
    lines = [
        {"ids": c.tolist(), "corrupted": k.tolist(), "answer": int(a), "rivals": [int(b)], "spans": {"third": [3, 4]}}
        for c, k, a, b in zip(clean, corrupted, right, wrong, strict=True)
    ]

    def of_tl(logits):
        last = logits[:, -1] if metric == "logit_difference" else logits[:, -1].log_softmax(-1)
        own = last.gather(1, right[:, None])
        return (own - last.gather(1, wrong[:, None]) if metric == "logit_difference" else own).mean()

    with torch.no_grad():
        _, seen = model.run_with_cache(clean, prepend_bos=False)
        streams = {
            "resid_pre": patching.get_act_patch_resid_pre,
            "attn_out": patching.get_act_patch_attn_out,
            "mlp_out": patching.get_act_patch_mlp_out,
        }
        for stream, theirs in streams.items():
            found = interp.run("activation_patching", model, prompts=lines, metric=metric, stream=stream)
            mine = found["by_position"].sel(direction="denoising").isel(pool=0).mean("batch")
            assert mine.shape == (2, 7)
            assert mine.values == pytest.approx(theirs(model, corrupted, seen, of_tl).numpy(), abs=1e-4), stream
            named = found["by_name"].sel(direction="denoising", named="third").isel(pool=0).mean("batch")
            assert named.values == pytest.approx(mine.sel(position=3).values, abs=1e-6)
        heads = {
            "z": patching.get_act_patch_attn_head_out_all_pos,
            "q": patching.get_act_patch_attn_head_q_all_pos,
            "k": patching.get_act_patch_attn_head_k_all_pos,
            "v": patching.get_act_patch_attn_head_v_all_pos,
            "pattern": patching.get_act_patch_attn_head_pattern_all_pos,
        }
        for head, theirs in heads.items():
            found = interp.run("activation_patching", model, prompts=lines, metric=metric, head=head)
            mine = found["by_head"].sel(direction="denoising").isel(pool=0).mean("batch")
            assert mine.values == pytest.approx(theirs(model, corrupted, seen, of_tl).numpy(), abs=1e-4), head


@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_metrics_are_those_of_the_model_alone(name):
    """Padding at the right, answers after the prompt and shared passes change nothing: each prompt on its own agrees."""
    organism = interp.load(name)
    lines = [
        CODE,
        {"text": "import os\nimport", "answer": [" sys", " re"], "rivals": [" os", " in"]},
        {"text": "for i in range(10):\n    print(i)\n\nfor", "answer": " i", "rivals": " x"},
    ]
    [given] = making.prompt_sets(making.spec_texts(lines), organism, first=2047)
    assert given.present.sum(1).tolist() != [given.ids.shape[1]] * 3
    made = {
        metric: scores(organism, given, [[]], metric)[0]
        for metric in ("log_prob", "logit_difference", "probability", "rank", "kl")
    }
    for i in range(3):
        size = int(given.present[i].sum()) - 1
        with torch.no_grad():
            last = organism(given.ids[i : i + 1, :size], prepend_bos=False)[0, -1]
        answers, rivals = ([t for t in row[i, size].tolist() if t >= 0] for row in (given.answers, given.rivals))
        probability = float(last.softmax(-1)[answers].sum())
        assert made["probability"][i] == pytest.approx(probability, abs=1e-6)
        assert made["log_prob"][i] == pytest.approx(math.log(probability), abs=1e-4)
        assert made["logit_difference"][i] == pytest.approx(float(last[answers].mean() - last[rivals].mean()), abs=1e-4)
        assert made["rank"][i] == min(int((last > last[a]).sum()) for a in answers)
        assert made["kl"][i] == pytest.approx(0, abs=1e-6)


def test_the_divergence_from_the_clean_run_is_torchs(organism, blocks):
    from interp.hooks import ablate_heads

    hooks = ablate_heads(organism, "L0H0", kind="zero")
    made = scores(organism, blocks, [hooks], "kl")[0]
    with torch.no_grad():
        clean = organism(blocks.ids, prepend_bos=False).log_softmax(-1)
        changed = organism.run_with_hooks(blocks.ids, fwd_hooks=hooks, prepend_bos=False).log_softmax(-1)
    each = torch.nn.functional.kl_div(changed, clean, log_target=True, reduction="none").sum(-1)
    queries = torch.from_numpy(np.append(blocks.inducible[1:], False))
    assert made == pytest.approx(each[:, queries].mean(1).numpy(), abs=1e-5)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "a" * 700, "answer": " +"}, r"line 2: \d+ tokens .* context of this model is \d+: shorten"),
        ({"text": "return", "answer": " not one token"}, "line 2: the answer ' not one token' is .* tokens here"),
        ({"text": "return", "answer": 5000}, "line 2: answer 5000: this model has ids 0 to 2047"),
        ({"text": "def f(", "answer": "a", "corrupted": "def"}, "line 2: the corrupted prompt has 2 tokens and the prompt"),
        ({"ids": [1, 2, 3000], "answer": 5}, "line 2: token id 3000, and this model has ids 0 to 2047"),
        ({"ids": [1, -2], "answer": 5}, "line 2: ids must hold non-negative integers"),
        ({"text": "return a", "spans": {"who": "Mary"}}, "line 2: span 'who' does not exist: 'Mary' is not in the text"),
        ({"text": "a a", "spans": {"who": "a"}}, "line 2: span 'who' is ambiguous: 'a' is in the text 2 times"),
        ({"text": "a a", "spans": {"who": ["a", 3]}}, "line 2: span 'who' does not exist: 'a' is in the text 2 times, not 3"),
        ({"ids": [1, 2], "spans": {"who": [1, 3]}}, r"line 2: span 'who' \[1, 3\] does not exist: the prompt has tokens 0"),
        ({"ids": [1, 2], "spans": {"who": "a"}}, "line 2: span 'who' is a text, and the prompt is ids"),
        ({"ids": [1, 2], "spans": {"who": 5}}, "line 2: span 'who' 5: give a part of the text"),
        ({"ids": [1, 2], "read": "who"}, "line 2: read names the span 'who', which does not exist: use all"),
        ({"ids": [1, 2], "read": [0]}, "line 2: nothing predicts the first token"),
        ({"ids": [1, 2], "read": [2]}, "line 2: read names position 2, and the prompt has 0 to 1"),
        ({"ids": [1, 2], "read": [1], "answer": 3}, "line 2: answer is read after the prompt, and read names tokens"),
        ({"ids": [1, 2], "answer": 3, "rivals": [3]}, "line 2: 3 is an answer and a rival"),
        ({"ids": [1, 2], "answer": 478, "rivals": " +"}, "line 2: token 478 is an answer and a rival"),
        ({"ids": [1, 2], "rivals": [3]}, "line 2: rivals need an answer to be compared with"),
        ({"ids": [1], "text": "a"}, "line 2: give either text or ids"),
        ({"answer": "a"}, "line 2: give either text or ids"),
        ({"ids": []}, "line 2: ids is empty"),
        ({"text": ""}, "line 2: text must be a non-empty text"),
        ({"text": "a", "answr": "b"}, "line 2: unknown field 'answr': use text, ids, answer"),
        ({"text": "a", "answer": None}, "line 2: answer None is not a token"),
        ({"text": "a", "corrupted": [1]}, "line 2: corrupted must be a non-empty text"),
        ({"text": "return ", "answer": "not"}, "line 2: the text ends with a space"),
        ([1, 2], "line 2: a list is not a prompt"),
        ("{text: 5}", "line 2: this is not JSON"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_file_is_reported_with_its_line_number(organism, tmp_path, line, said):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(CODE) + "\n" + (line if isinstance(line, str) else json.dumps(line)) + "\n")
    with pytest.raises(InterpError, match=said) as error:
        interp.run("attention_scores", organism, prompts=path)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ("", {}, "no prompts at "),
        ([], {}, "no prompts are given"),
        ("nowhere.jsonl", {}, "no prompts at nowhere.jsonl: give a JSON-lines file"),
        ("ioi", {}, "'ioi': say how many, as ioi:32"),
        ("ioi:x:4", {}, "'ioi:x:4': say how many, as ioi:32"),
        ("blocks", {}, "'blocks': say how many, as blocks:32"),
        ("blocks:doses:4", {}, "'doses' means 9 pools: name one"),
        ("blocks:nothing:4", {}, "nothing"),
        ("ioi:4", {}, "ioi needs 8 words such as 'Adam' that are one token"),
        ("greater_than:0", {}, "0 prompts: use a positive integer"),
        (5, {}, "a int is not a set of prompts"),
        ("text:nowhere.txt", {}, "cannot read nowhere.txt"),
        (CODE, {"pools": "1:5"}, "prompts replace pools"),
        (CODE, {"mixed": True}, "mixed applies to repeated blocks"),
        (CODE, {"batch": 4}, "batch and length apply to windows of a text"),
        (CODE, {"metric": "best"}, "metric 'best': use log_prob|unknown metric 'best'"),
        ({"text": "a", "answer": " +"}, {"metric": "logit_difference"}, "needs rivals, and not every line of 'prompts'"),
        ({"text": "a"}, {}, "logit_lens needs answers, and line 1 of 'prompts' has none"),
        ({"text": "a", "answer": " + b"}, {}, "is 2 tokens here, .*--answer-tokens each"),
    ],
)  # fmt: skip
def test_invalid_requests_on_prompts_get_a_one_line_message(organism, prompts, options, said):
    with pytest.raises(InterpError, match=said) as error:
        interp.run("logit_lens", organism, prompts=prompts, **options)
    assert "\n" not in str(error.value)


def test_an_empty_file_is_refused(organism, tmp_path):
    for text in ("", "\n\n"):
        (tmp_path / "mine.jsonl").write_text(text)
        with pytest.raises(InterpError, match=r"mine\.jsonl is empty: write a prompt a line"):
            interp.run("logit_lens", organism, prompts=tmp_path / "mine.jsonl")
    (tmp_path / "mine.txt").write_text("a")
    with pytest.raises(InterpError, match="fewer tokens than one window of 64"):
        interp.run("logit_lens", organism, prompts=f"text:{tmp_path / 'mine.txt'}")


def test_an_experiment_is_given_what_its_annotation_asks_for(organism):
    def blocks(model, tokens):
        """`x` [batch]."""

    def repeats(model, tokens: Repeated):
        """`x` [batch]."""

    def anything(model, tokens: Sequences, *, seen=None):
        return interp.label("size", [float(len(row)) for row in tokens.ids], "batch")

    def answers(model, tokens: Answered):
        return anything(model, tokens)

    def pairs(model, tokens: Paired):
        return anything(model, tokens)

    alone, whole = {"text": "a"}, {"text": "a", "answer": " +"}
    for refused in (blocks, repeats):
        with pytest.raises(InterpError, match="needs a repeat, which prompts are not"):
            interp.run(refused, organism, prompts=whole)
    assert interp.run(anything, organism, prompts=alone)["size"].shape == (1, 1)
    assert interp.run(anything, organism, "ordinary", batch=3)["size"].shape == (1, 3)
    with pytest.raises(InterpError, match="answers needs answers, and line 1 of 'prompts' has none"):
        interp.run(answers, organism, prompts=alone)
    assert interp.run(answers, organism, prompts=whole)["size"].shape == (1, 1)
    with pytest.raises(InterpError, match="pairs needs pairs"):
        interp.run(pairs, organism, prompts=whole)
    assert interp.run(pairs, organism, prompts=whole | {"corrupted": "b"})["size"].shape == (1, 1)
    with pytest.raises(InterpError, match="answer_tokens has no effect without prompts"):
        interp.run(anything, organism, "ordinary", answer_tokens="each")


def test_parameters_that_do_nothing_are_refused(wired):
    tokens = repeated(WORDS, batch=2, length=5, bos=0)
    given = written_out(tokens, paired(tokens, Pool("all", tuple(range(1, 65)))))
    for name in ("head_ablation", "activation_patching", "path_patching", "attention_pattern"):
        with pytest.raises(InterpError, match="reference applies to repeated blocks"):
            interp.run(name, wired, prompts=given, reference="1:60")
    for name, odd in (("activation_patching", {"sequences": 3}), ("path_patching", {"controls": 1})):
        with pytest.raises(InterpError, match=f"{min(odd)} applies to repeated blocks"):
            interp.run(name, wired, prompts=given, **odd)
    for name in ("head_ablation", "activation_patching", "path_patching", "head_attribution"):
        with pytest.raises(InterpError, match="metric applies to prompts"):
            interp.run(name, wired, [WORDS], metric="rank")
    with pytest.raises(InterpError, match="query names positions of prompts"):
        interp.run("attention_scores", wired, [WORDS], query="last")


def test_unsupported_options_get_a_one_line_message(organism):
    one = {"text": "a", "answer": " +"}
    for name, options, said in (
        ("head_ablation", {}, "is one prompt, and the mean is over the other prompts"),
        ("head_ablation", {"kind": "resample"}, "resampling needs another of the same length"),
        ("head_attribution", {"metric": "rank"}, "metric 'rank' has no gradient"),
        ("attention_pattern", {"sequence": 1}, "no sequence 1"),
        ("attention_scores", {"query": "who"}, "no positions of 'prompts' are named 'who'"),
        ("logit_attribution", {"against": "rivals"}, "against rivals, and not every line"),
    ):
        with pytest.raises(InterpError, match=said):
            interp.run(name, organism, prompts=one, **options)
    with pytest.raises(InterpError, match="not every prompt has one: name heads"):
        interp.run("attention_pattern", organism, prompts={"text": "a"})


# --- requests and stored results --------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@pytest.mark.experiment
@given(
    prompts=st.lists(st.one_of(texts, st.sampled_from(["ioi:4", "text:a.txt", '{"text": "a"}', "--x", "a=b.jsonl"])), min_size=1, max_size=3),
    each=st.booleans(),
    metric=st.sampled_from(["rank", "kl"]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_request_on_prompts_roundtrips_through_argv_and_json(prompts, each, metric):
    request = Request.of("logit_lens", prompts=prompts, answer_tokens="each" if each else "one", metric=metric)
    assert Request.from_argv(request.to_argv()) == request
    assert Request.from_json(request.to_json()) == request
    assert Request.from_json(json.dumps(request.to_json())) == request


@given(
    ids=st.lists(st.lists(st.integers(0, 64), min_size=2, max_size=9), min_size=1, max_size=4),
    answer=st.integers(0, 30), rival=st.one_of(st.none(), st.integers(31, 64)), named=st.booleans(), pair=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_prompts_roundtrip_through_lines(wired, ids, answer, rival, named, pair):
    lines = [
        {"ids": row, "answer": answer}
        | ({} if rival is None else {"rivals": [rival]})
        | ({"spans": {"two": [0, 2]}} if named else {})
        | ({"corrupted": row[::-1]} if pair else {})
        for row in ids
    ]
    [made] = making.prompt_sets(making.spec_texts(lines), wired, first=None)
    [again] = making.prompt_sets(making.spec_texts(made), wired, first=None)
    assert making.digest(made) == making.digest(again)
    assert again.source.tolist() == list(range(1, len(ids) + 1))


def test_text_is_short_for_windows_of_a_text():
    assert Request.from_argv(["run", "logit_lens", "--text", "a.txt"]) == Request.of("logit_lens", prompts="text:a.txt")
    # where an experiment has an option of that name, it is the experiment's
    assert Request.from_argv(["run", "unused_logits", "--text", "a.txt"]).parameters == {"text": "a.txt"}


def test_a_result_on_prompts_can_be_typed_again_and_says_what_it_was_made_on(organism, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(CODE) + "\n")
    made = interp.run("logit_lens", organism, prompts=path, metric="logit_difference")
    record = interp.provenance(made)
    assert record["prompts"]["mine"]["file_sha256"] == cache.file_sha256(path)
    assert record["prompts"]["mine"]["size"] == 1
    request = Request.from_json(record["request"])
    again = interp.run_request(Request.from_argv(request.to_argv()), organism)
    assert again.identical(made)
    from_python = interp.run("logit_lens", organism, prompts=CODE, metric="logit_difference")
    assert from_python["score_after"].values == pytest.approx(made["score_after"].values)
    request = Request.from_json(interp.provenance(from_python)["request"])
    assert interp.run_request(Request.from_argv(request.to_argv()), organism).identical(from_python)


def test_a_stored_result_is_reused_until_the_file_changes(organism, tmp_path):
    path, said = tmp_path / "mine.jsonl", []
    path.write_text(json.dumps(CODE) + "\n")
    options = {"prompts": path, "out": tmp_path / "out", "log": said.append}
    first = interp.run("logit_lens", organism, **options)
    assert interp.run("logit_lens", organism, **options).identical(first)
    assert "taken from an earlier run" in said[-1]
    path.write_text(json.dumps(CODE | {"answer": " -", "rivals": " +"}) + "\n")
    changed = interp.run("logit_lens", organism, **options)
    assert "belongs to another request" in said[-1]
    assert changed["score_after"].values != pytest.approx(first["score_after"].values)


# --- makers -----------------------------------------------------------------------------------------------------------


def test_spans_and_answers_are_where_the_text_has_them(organism):
    line = {"text": "import os\nimport sys", "spans": {"second": ["import", 2]}, "answer": "\n"}
    [made] = making.prompt_sets(making.spec_texts(line), organism, first=2047)
    at = made.labels["second"][0].nonzero()[:, 0].tolist()
    assert [str(made.text[0, i]) for i in at] == ["import"]
    assert at[0] > 2
    assert made.read[0].nonzero().tolist() == [[int(made.present[0].sum()) - 1]]
    assert made.labels["last"][0].nonzero().tolist() == made.queries[0].nonzero().tolist()
    assert str(made.text[0, -1]) == "\n"


def test_answers_of_several_tokens_are_read_one_by_one_where_that_is_asked(organism):
    line = {"text": "x = a", "answer": " + b"}
    with pytest.raises(InterpError, match="is 2 tokens here"):
        making.prompt_sets(making.spec_texts(line), organism, first=2047)
    [made] = making.prompt_sets(making.spec_texts(line), organism, first=2047, answer_tokens="each")
    assert int(made.read.sum()) == 2
    with torch.no_grad():
        logits = organism(made.ids, prepend_bos=False)[0].log_softmax(-1)
    size = made.ids.shape[1]
    right = np.mean([float(logits[p - 1, made.ids[0, p]]) for p in (size - 2, size - 1)])
    assert scores(organism, made, [[]], "log_prob")[0, 0] == pytest.approx(right, abs=1e-5)


def test_a_text_is_read_window_by_window_and_no_further_than_needed(organism, tmp_path):
    from interp.models import published_tokenizer
    from interp.prompts.windows import windows

    tokenizer, path = published_tokenizer(organism), tmp_path / "mine.txt"
    text = "def f(a, b):\n    return a + b\n\n" * 4000
    path.write_text(text)
    found = windows(tokenizer, str(path), 32, 10**6)
    whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    assert [i for row in found for i in row] == whole[: len(found) * 32]
    assert len(whole) - 32 < len(found) * 32
    [made] = making.prompt_sets([f"text:{path}"], organism, first=2047, length=32, batch=3)
    assert made.ids[:, 1:].tolist() == found[:3]
    assert made.read.sum().item() == 3 * 32


def test_greater_than_pairs_a_number_with_the_lowest(organism):
    [made] = making.prompt_sets(["greater_than:6"], organism, first=2047)
    assert made.pair is not None
    assert made.rivals is not None
    for i in range(6):
        number = "".join(str(made.text[i, p]) for p in made.labels["number"][i].nonzero()[:, 0].tolist())
        at = int(made.read[i].nonzero())
        tokens = dict(zip(made.ids[i].tolist(), made.text[i], strict=True))
        answers, rivals = ([t for t in row[i, at].tolist() if t >= 0] for row in (made.answers, made.rivals))
        assert len(answers) + len(rivals) == 10
        differ = (made.ids[i] != made.pair.ids[i]) & made.present[i]
        assert differ.equal(made.labels["number"][i]) or number == "0"
        assert tokens


@pytest.mark.experiment
def test_repeated_blocks_as_prompts_support_every_metric(organism):
    """Of ordinary tokens, the answer beats the other at its place; in the corrupted run the other way round."""
    drawn = interp.repeated(organism, "ordinary", batch=6)
    one, *_ = lines = making.blocks(organism, 6, pool="ordinary")
    assert [line["ids"] + line["answer"] for line in lines] == drawn.ids.tolist()
    key, before = (one["spans"][name][0] for name in ("key", "before"))
    assert (one["ids"][key], one["ids"][before]) == (one["answer"][0], one["ids"][-1])
    assert one["corrupted"][key] == one["rivals"][0]
    assert not set(one["corrupted"][1:]) & set(one["ids"])
    data = interp.run("activation_patching", organism, prompts="blocks:ordinary:6", metric="logit_difference")
    assert data.pool.values.tolist() == ["blocks-ordinary"]
    clean = data["clean"].isel(pool=0).mean("batch")
    assert float(clean.sel(direction="noising")) > 3
    assert float(clean.sel(direction="denoising")) < -3
    # with the answer put into the first copy alone, the corrupted run gives it; with the token before, no head finds either
    moved = data["by_name"].isel(pool=0, layer=0).sel(direction="denoising").mean("batch")
    assert float(moved.sel(named="key")) > 3 > 1 > abs(float(moved.sel(named="before")))
    lost = interp.run("head_ablation", organism, prompts="blocks:ordinary:6", metric="rank")["lost"]
    assert float(lost.max()) > 1
    [named] = making.prompt_sets(["blocks:300:400:3"], organism, first=None)
    assert (named.name, len(named)) == ("blocks-300_400", 3)


def test_sets_of_different_sizes_are_shown_side_by_side(organism):
    given = {"one": CODE, "two": [CODE, {"text": "import os\nimport", "answer": " sys", "rivals": " os"}]}
    made = interp.run("logit_lens", organism, prompts=given)
    assert made["score_after"].sel(pool="one").notnull().sum("batch").values.tolist() == [1, 1, 1]
    assert made["score_after"].sel(pool="two").notnull().sum("batch").values.tolist() == [2, 2, 2]


# --- known answers ----------------------------------------------------------------------------------------------------


def test_frozen_attention_keeps_what_a_head_does_for_later_ones(wired):
    """The previous-token head of the wired model serves the induction head's keys alone: frozen, it is not needed."""
    given = written_out(repeated(WORDS, batch=4, length=8, bos=0))
    lost = {
        patterns: interp.run("head_ablation", wired, prompts=given, kind="zero", patterns=patterns)["lost"].isel(pool=0)
        for patterns in ("free", "frozen")
    }
    assert lost["free"].sel(layer=0, head=0).values == pytest.approx(np.full(4, math.log(65)), abs=1e-4)
    assert lost["frozen"].sel(layer=0, head=0).values == pytest.approx(np.zeros(4), abs=1e-4)
    for found in lost.values():
        assert found.sel(layer=1, head=0).values == pytest.approx(np.full(4, math.log(65)), abs=1e-4)
        assert found.sel(head=1).values == pytest.approx(np.zeros((2, 4)), abs=1e-4)
    blocks = interp.run("head_ablation", wired, [WORDS], batch=4, length=8, kind="zero", patterns="frozen")["lost"]
    assert blocks.sel(layer=0, head=0).values == pytest.approx(np.zeros((1, 4)), abs=1e-4)


@pytest.mark.experiment
def test_the_paths_of_the_wired_circuit_and_no_others_carry_the_answer(wired):
    tokens = repeated(WORDS, batch=4, length=8, bos=0)
    given = written_out(tokens, paired(tokens, Pool("all", tuple(range(1, 65)))))
    made = interp.run("path_patching", wired, prompts=given, receivers="L1H0").isel(pool=0)
    assert made.attrs["receivers"] == "L1H0"
    moved = made["effect"].sel(direction="noising", layer=0).mean("batch")
    carried = [(via, head) for via in "qkv" for head in (0, 1) if abs(float(moved.sel(via=via, head=head))) > 1e-3]
    assert carried == [("k", 0)]
    direct = np.abs(made["direct"].sel(direction="noising").mean("batch").values) > 1e-3
    assert np.argwhere(direct).tolist() == [[1, 0]]


def test_the_mean_over_others_never_holds_a_prompts_own(wired):
    from interp.baselines import mean_of_others, of_another

    lines = [{"ids": [1, 2, 3], "read": [2]}, {"ids": [4, 5, 6], "read": [2]}, {"ids": [7, 8, 9], "read": [2]}]
    [same] = making.prompt_sets(making.spec_texts(lines), wired, first=None)
    values = torch.arange(9.0).view(3, 3, 1)
    found, over = mean_of_others({"z": values}, same)
    assert over == "positions"
    assert found["z"][0, :, 0].tolist() == [4.5, 5.5, 6.5]
    other = of_another({"z": values}, same)["z"]
    assert not (other == values).any()
    [unlike] = making.prompt_sets(making.spec_texts([*lines, {"ids": [1, 2, 3, 4], "read": [2]}]), wired, first=None)
    values = torch.arange(16.0).view(4, 4, 1)
    found, over = mean_of_others({"z": values}, unlike)
    assert over == "prompts"
    # of the first: its own row and padding are left out, the first position is apart
    assert float(found["z"][0, 1, 0]) == pytest.approx(np.mean([5, 6, 9, 10, 13, 14, 15]))
    assert float(found["z"][0, 0, 0]) == pytest.approx(np.mean([4, 8, 12]))


@pytest.mark.experiment
@pytest.mark.parametrize("defect", ["collapsed", "blind-values", "blind-keys", "suppressed"])
def test_planted_defects_are_seen_on_prompts_as_on_blocks(organism, defect):
    from interp.defects import planted, related
    from interp.heads import classify_heads

    ordinary = interp.pools("ordinary", organism)[0]
    heads = classify_heads(organism, repeated(ordinary, batch=16, length=12, bos=2047))
    broken = Pool("broken", tuple(related(organism, ordinary.ids, 24)))
    given = written_out(repeated(broken, batch=4, length=8, bos=2047))
    healthy = interp.run("logit_lens", organism, prompts=given)["score_after"].isel(after=-1).mean()
    with planted(organism, broken.ids, [defect], heads=heads):
        lens = interp.run("logit_lens", organism, [broken], batch=4, length=8)
        ablated = interp.run("head_ablation", organism, [broken], batch=4, length=8, kind="zero")
        found = interp.run("logit_lens", organism, prompts=given)["score_after"].isel(pool=0)
        lost = interp.run("head_ablation", organism, prompts=given, kind="zero").isel(pool=0)
    at = (lens["half"] == 2) & (lens["offset"] > 0)
    right = lens["log_prob_after"].where(at).mean("position").isel(pool=0).transpose("after", "batch")
    assert found.values == pytest.approx(right.values, abs=2e-6, rel=1e-6)
    if defect == "collapsed":  # the others put in means over whatever shares a pass
        assert lost["lost"].values == pytest.approx(ablated["lost"].isel(pool=0).values, abs=1e-5)
    assert float(found.isel(after=-1).mean()) < float(healthy) - 0.3


# --- what is shown ----------------------------------------------------------------------------------------------------

ALL = (
    "logit_lens", "logit_attribution", "head_ablation", "activation_patching", "attention_pattern", "path_patching",
    "head_attribution", "attention_scores", "edge_attribution",
)  # fmt: skip


@pytest.mark.experiment
@pytest.mark.parametrize("name", ALL)
def test_a_result_on_prompts_has_a_table_and_figures_of_its_own(organism, name):
    from io import StringIO

    from rich.console import Console

    from interp import variables, views

    pair = [
        {"text": f"class Node:\n    def __init__(self, {a}):\n        self.", "answer": a, "rivals": b,
         "corrupted": f"class Node:\n    def __init__(self, {b}):\n        self.", "spans": {"argument": a}}
        for a, b in (("name", "value"), ("value", "name"), ("path", "key"))
    ]  # fmt: skip
    result = interp.run(name, organism, prompts={"arguments": pair, "numbers": "greater_than:2"})
    problems = []
    figures = views.figures(result, log=problems.append)
    console = Console(file=StringIO(), width=120, record=True)
    for line in views.tables(result):
        console.print(line)
    text = console.export_text()
    assert not problems
    assert figures
    assert "not available" not in text
    assert "mean by pool" not in text
    assert "arguments" in text
    assert "95% intervals: Student's t, 2 prompts" in text
    assert not [at for at in result.variables if not {str(at), f"{name}.{at}"} & set(variables.VARIABLES)]


@pytest.mark.experiment
@pytest.mark.parametrize("name", ["head_ablation", "activation_patching", "path_patching", "logit_lens"])
def test_the_units_of_a_result_are_those_of_its_metric(organism, name):
    units = {
        metric: {
            str(at): found.attrs.get("units")
            for at, found in interp.run(name, organism, prompts="blocks:2", metric=metric).data_vars.items()
        }
        for metric in ("log_prob", "logit_difference", "rank")
    }
    measured = [at for at, unit in units["log_prob"].items() if unit == "nats"]
    assert measured
    assert units["logit_difference"] == units["log_prob"]
    assert {units["rank"][at] for at in measured} == {"1"}


def test_every_metric_has_its_unit_and_words():
    from interp import metrics, variables

    assert {"log_prob", *variables.METRICS} == set(metrics.UNITS)


@pytest.mark.experiment
def test_a_report_on_prompts_has_a_section_for_each_question(organism, tmp_path):
    from interp.report import report

    made = report(organism, tmp_path, prompts=["greater_than:3"], metric="logit_difference", log=lambda line: None)
    page = made.read_text()
    for title in ("When is the answer known?", "Who writes it?", "Which heads are needed?", "Where do heads look?"):
        assert title in page
    assert "Not available" not in page
    assert "interp run head_ablation --prompts greater_than:3 --metric logit_difference" in page
    assert "Which parts of the model make the answers to these prompts?" in page


@pytest.mark.comparison
def test_models_are_compared_on_prompts(tmp_path):
    from interp.compare import compare

    made = compare(["organism", "organism-llama"], tmp_path, prompts=["greater_than:4"], log=lambda line: None)
    assert made["answered"].notnull().all()
    assert all("L" in str(name) for name in made["needed"].values.ravel())
    with pytest.raises(InterpError, match="prompts replace pools"):
        compare(["organism", "wired"], tmp_path, prompts=["greater_than:4"], pools=["1:5"])


def test_tokens_shows_what_is_fed(tmp_path):
    from typer.testing import CliRunner

    from interp.cli import app

    (tmp_path / "mine.jsonl").write_text(json.dumps(CODE) + "\n")
    done = CliRunner().invoke(app, ["tokens", str(tmp_path / "mine.jsonl")], env={"COLUMNS": "100"})
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "mine, line 1" in lines[0]
    assert any(line.split() == ["4", "64", "'a'", "args"] for line in lines)
    assert any("' +'" in line and "right, 1 rival" in line for line in lines)


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.sampled_from(["", "a", "all", "two"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["a", "two"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@pytest.mark.experiment
@given(
    line=st.dictionaries(st.sampled_from(["text", "ids", "answer", "rivals", "corrupted", "spans", "read"]), anything)
)
@settings(max_examples=300, deadline=None)
def test_any_line_is_a_prompt_or_a_one_line_mistake(wired, line):
    try:
        [made] = making.prompt_sets(making.spec_texts([line]), wired, first=None)
    except InterpError as error:
        said = str(error)
    else:
        said = ""
        assert made.ids.shape == made.read.shape == made.present.shape
        assert not (made.read & ~made.present).any()
    assert "\n" not in said
