"""Are the scores of heads the sum of what pairs of components give, and is the wired head's answer the known one?"""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, save

import interp
from interp import hooks, models, scores
from interp.errors import InterpError
from interp.experiments.score_attribution import view
from interp.identities import reason_against
from interp.prompts import examples
from interp.tokens import Pool, repeated

WORDS = Pool("words", tuple(range(1, 65)))


def test_the_wired_head_matches_predecessors_with_its_query_and_nothing_else(wired):
    """The previous-token head's output on the key side, times the embedding on the query side."""
    found = interp.run("score_attribution", wired, [WORDS], batch=4, length=8).isel(pool=0)
    assert found.attending.values.tolist() == ["L1H0"]
    part = found.part.sel(attending="L1H0")
    at = {"query_writer": "embed", "key_writer": "L0H0"}
    assert part.sel(key_kind="induction", **at).values == pytest.approx(np.full(4, 4000.0), rel=1e-4)
    assert found.score.sel(attending="L1H0", key_kind="induction").values == pytest.approx(np.full(4, 4000.0), rel=1e-4)
    others = part.where(
        ~((part.query_writer == "embed") & (part.key_writer == "L0H0") & (part.key_kind == "induction"))
    )
    assert float(np.abs(others).max()) < 0.4  # 1e-4 of it
    source = found.source_part.sel(attending="L1H0", key_kind="induction", source=0)
    assert found.source_head.values[0, 0] == "L0H0"
    moved = source.sel(place="previous", component="embed")
    assert moved.values == pytest.approx(np.full(4, 4000.0), rel=1e-4)
    assert float(np.abs(source).sum(["place", "component"]).max()) == pytest.approx(4000.0, rel=1e-3)


@pytest.mark.experiment
@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_parts_sum_to_the_models_own_scores(name):
    """With absolute and with rotary positions, and where heads share a key; of sources, too."""
    found = interp.run("score_attribution", name, batch=4, length=8, heads=["L1H0", (1, 3)], sources=4)
    total = found.part.sum(["query_writer", "key_writer"])
    assert total.values == pytest.approx(found.score.values, abs=1e-3)
    assert float(found.error.max()) < 1e-4
    for head in found.attending.values:
        for source in range(4):
            name_of_source = found.source_head.sel(attending=head).values[source]
            given = found.source_part.sel(attending=head, source=source).sum(["place", "component"])
            right = found.part.sel(attending=head, key_writer=name_of_source).sum("query_writer")
            assert given.values == pytest.approx(right.transpose(*given.dims).values, abs=1e-3)
    assert view.score_parts(found).data
    assert view.moved(found).data


def test_scores_are_those_that_the_softmax_takes(organism):
    """Recorded before the softmax at the places that are averaged over."""
    tokens = repeated(interp.pools("ordinary", organism)[0], batch=2, length=6, bos=models.bos_id(organism))
    terms = scores.score_terms(organism, [(1, 2)], tokens.ids)[1, 2]
    own = hooks.record(organism, tokens.ids, ["blocks.1.attn.hook_pattern"])["blocks.1.attn.hook_pattern"][:, 2]
    for query in (7, 9, 12):
        made = terms.scores[:, query, : query + 1].softmax(-1)
        assert made.numpy() == pytest.approx(own[:, query, : query + 1].numpy(), abs=1e-5)


def test_a_control_key_is_neither_the_induction_nor_the_duplicate_key():
    from interp.experiments.score_attribution.experiment import _places_of_blocks

    for bos in (0, None):
        tokens = repeated(WORDS, batch=3, length=6, bos=bos)
        induction, control = _places_of_blocks(tokens, 0).at
        ids = tokens.ids.numpy()
        assert (ids[induction[:, 0], induction[:, 2] - 1] == ids[induction[:, 0], induction[:, 1]]).all()
        start = 0 if bos is None else 1
        assert ((control[:, 2] >= start) & (control[:, 2] < start + 6)).all()
        assert (control[:, 2] != induction[:, 2]).all()
        assert (ids[control[:, 0], control[:, 2]] != ids[control[:, 0], control[:, 1]]).all()


def test_scores_on_prompts_are_those_of_the_key_that_is_named(wired):
    """Of blocks as prompts: the head that looks at the key is found, and what it matches is the known pair."""
    given = examples.blocks(wired, 4, pool="1:65")
    found = interp.run("score_attribution", wired, prompts=given, key="key", most=1).isel(pool=0)
    assert found.attending.values.tolist() == ["L1H0"]
    assert found.key_kind.values.tolist() == ["key", "control"]
    at = {"query_writer": "embed", "key_writer": "L0H0", "attending": "L1H0"}
    assert found.part.sel(key_kind="key", **at).values == pytest.approx(np.full(4, 4000.0), rel=1e-4)
    assert float(np.abs(found.score.sel(key_kind="control")).max()) < 2100  # the sink's half at most, as of blocks
    moved = found.source_part.sel(attending="L1H0", key_kind="key", source=0, place="previous", component="embed")
    assert moved.values == pytest.approx(np.full(4, 4000.0), rel=1e-4)
    # the token before the answer is the query's own: the wired key holds it with a minus
    before = interp.run("score_attribution", wired, prompts=given, key="before", heads="L1H0").isel(pool=0)
    own = before.part.sel(attending="L1H0", key_kind="before", query_writer="embed", key_writer="embed")
    assert own.values == pytest.approx(np.full(4, -4000.0), rel=1e-4)
    assert view.score_parts(before.expand_dims("pool")).data


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name the positions that are attended to: key, one of key, before"),
        ({"key": "who"}, "no positions of 'prompts' are named 'who': use"),
        ({"key": "key", "query": "who"}, "no positions of 'prompts' are named 'who': use"),
        ({"key": "key", "query": "before", "heads": "L1H0"}, "no position of 'prompts' named 'key' is before a query"),
        ({"key": "key", "reference": "1:65"}, "reference applies to repeated blocks"),
        ({"key": "last"}, "how heads attend to 'last' from there is not scored: name heads"),
        ({"key": "key", "query": "key"}, "how heads attend to 'key' from there is not scored: name heads"),
    ],
)
def test_invalid_score_requests_on_prompts_are_refused(wired, options, said):
    with pytest.raises(InterpError, match=said):
        interp.run("score_attribution", wired, prompts=examples.blocks(wired, 2, pool="1:65"), **options)
    with pytest.raises(InterpError, match="key and query name positions of prompts"):
        interp.run("score_attribution", wired, [WORDS], batch=2, length=5, key="key")


@pytest.mark.architectures
@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_scores_and_edges_are_exact_or_give_a_reason(tmp_path, name):
    """On every architecture: the identities hold, or one line says what is in the way."""
    try:
        model = models.load(save(name, tmp_path))
    except InterpError:
        pytest.skip("does not load")
    for identity in ("scores", "edges"):
        reason = reason_against(model, identity)
        assert "\n" not in reason
        if name in (
            "gpt2",
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gpt_neox",
            "gptj",
            "phi3",
            "gemma2",
            "granite",
            "cohere",
        ):
            assert not reason, (identity, reason)


def test_invalid_score_requests_are_refused(wired):
    for options, said in (
        ({"most": 0}, "most 0, sources 2"),
        ({"heads": "L2H0"}, "no layer 2"),
        ({"length": 3}, "blocks of 3: a control key needs blocks of 4"),
    ):
        with pytest.raises(InterpError, match=said) as error:
            interp.run("score_attribution", wired, [WORDS], **{"batch": 3, "length": 6} | options)
        assert "\n" not in str(error.value)


def test_heads_of_the_first_layer_have_no_sources(wired):
    found = interp.run("score_attribution", wired, [WORDS], batch=3, length=6, heads="L0H0")
    assert found.source_part.isnull().all()
    assert view.moved(found) is None
    assert torch.isfinite(torch.from_numpy(found.score.values)).all()
    list(view.table(found))
