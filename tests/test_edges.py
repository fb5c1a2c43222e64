"""Do edges carry what theory says they carry, and are the runs assembled from them exact?"""

import numpy as np
import pytest
import torch
from architectures import save

import interp
from interp import edges, models
from interp.errors import InterpError
from interp.experiments.edge_attribution import view
from interp.measure import log_probs
from interp.prompts import examples
from interp.statistics import mean_interval
from interp.tokens import Pool, paired, repeated

WORDS = Pool("words", tuple(range(1, 65)))
# what the wired model copies by: each of its edges, and the nats that it costs in logits of the last norm's scale
CIRCUIT = {"embed > L0H0.v": 1, "L0H0 > L1H0.k": 1, "embed > L1H0.q": 1, "embed > L1H0.v": 2, "L1H0 > logits": 2}


@pytest.fixture(scope="module")
def wired_edges(wired):
    return interp.run("edge_attribution", wired, [WORDS], reference="1:65", batch=5, length=8, sizes=8)


def pair_of(model, pool="ordinary", **options):
    options = {"batch": 4, "length": 8, "seed": 1} | options
    tokens = repeated(interp.pools(pool, model)[0], bos=models.bos_id(model), **options)
    return tokens, paired(tokens, interp.pools("ordinary", model)[0], seed=options["seed"])


@pytest.mark.experiment
@pytest.mark.experiment
def test_wired_has_the_known_circuit_and_nothing_else(wired_edges):
    """Patched exactly, five edges carry the copy; each costs its half, or all, of the difference, and 41 others nothing."""
    found = wired_edges.isel(pool=0)
    effect = found.effect.sel(estimate="exact")
    assert effect.notnull().all()
    whole = (found.clean - found.corrupted).mean()
    assert float(found.clean.std()) < 1e-2
    expected = np.array([CIRCUIT.get(str(edge), 0) / 2 for edge in found.edge.values])
    assert effect.values == pytest.approx(np.tile(-float(whole) * expected[:, None], 5), rel=1e-3, abs=0.1)
    nothing = effect.values[expected == 0]
    assert np.abs(nothing).max() < 1e-4 * float(whole)


def test_the_circuit_that_is_drawn_of_wired_is_the_known_one(wired_edges):
    """Five edges are needed. What the head copies is enough by itself: paired sequences look at the same places.

    (With three or four of the five, a clean query may meet corrupted keys.)
    """
    found = wired_edges.isel(pool=0)
    kept = found.faithfulness.sel(order="exact").mean("batch")
    assert kept.sel(size=[2, 5, 46]).values == pytest.approx(1, abs=1e-3)
    assert kept.where(kept["size"] >= 5, drop=True).values == pytest.approx(1, abs=1e-3)
    assert found.random_faithfulness.sel(size=1).values == pytest.approx(0, abs=1e-3)
    drawn = {text for trace in view.circuit(wired_edges).data for text in (trace.text or ()) if "nats" in text}
    assert {text.partition(":")[0].replace("&gt;", ">") for text in drawn} == set(CIRCUIT)


@pytest.mark.experiment
def test_prompts_have_the_known_circuit_too(wired):
    """The wired model's, where the repeat's last token is the answer of a prompt and a rival stands in its place."""
    given = examples.blocks(wired, 5, pool="1:65")
    found = interp.run("edge_attribution", wired, prompts=given, sizes=6).isel(pool=0)
    whole = (found.clean - found.corrupted).mean()
    assert found.attrs["metric"] == "logit_difference"
    assert float(found.clean.mean()) == pytest.approx(-float(found.corrupted.mean()), rel=1e-3)
    expected = np.array([CIRCUIT.get(str(edge), 0) / 2 for edge in found.edge.values])
    effect = found.effect.sel(estimate="exact").values
    assert effect == pytest.approx(np.tile(-float(whole) * expected[:, None], 5), rel=1e-3, abs=0.1)
    drawn = {
        text for trace in view.circuit(found.expand_dims("pool")).data for text in (trace.text or ()) if ":" in text
    }
    assert {text.partition(":")[0].replace("&gt;", ">") for text in drawn} == set(CIRCUIT)
    said = " ".join(str(getattr(line, "title", line)) for line in view.table(found.expand_dims("pool")))
    assert "logit of the answer less its rivals'" in said


@pytest.mark.experiment
def test_edges_of_prompts_take_every_metric_that_has_a_gradient(wired):
    given = [{k: v for k, v in line.items() if k != "rivals"} for line in examples.blocks(wired, 3, pool="1:65")]
    with pytest.raises(InterpError, match="needs rivals"):
        interp.run("edge_attribution", wired, prompts=given)
    with pytest.raises(InterpError, match="metric 'kl' has no gradient"):
        interp.run("edge_attribution", wired, prompts=given, metric="kl")
    with pytest.raises(InterpError, match="reference applies to repeated blocks"):
        interp.run("edge_attribution", wired, prompts=given, metric="log_prob", reference="1:65")
    found = interp.run("edge_attribution", wired, prompts=given, metric="probability", sizes=2, steps=1).isel(pool=0)
    assert found.clean.values == pytest.approx(np.ones(3), abs=1e-3)
    exact = found.effect.sel(estimate="exact").mean("batch")
    assert float(exact.sel(edge="L1H0 > logits")) == pytest.approx(-1, abs=0.02)
    assert float(exact.sel(edge="embed > logits")) == pytest.approx(0, abs=1e-4)


def test_saturated_gradients_are_reported(wired_edges):
    """Saturated attention has no gradient: the sum over the embedding's edges says how much is missed."""
    found = wired_edges.isel(pool=0)
    assert abs(float(found.accounted) - 1) > 0.2
    keys = found.effect.sel(edge="L0H0 > L1H0.k")
    assert abs(keys.sel(estimate="integrated")).max() < 1e-3
    assert (keys.sel(estimate="exact") < -100).all()
    said = " ".join(str(line) for line in view.table(wired_edges))
    assert "gradients miss what happens in small parts of the way" in said


@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_runs_assembled_from_edges_are_exact(name, request):
    model = request.getfixturevalue("organism") if name == "organism" else models.load(name)
    clean, corrupted = pair_of(model)
    graph = edges.Graph.of(model)
    with torch.no_grad():
        own, other = (edges.written(model, graph, part.ids) for part in (clean, corrupted))
        plain = [model(part.ids, return_type="logits", prepend_bos=False) for part in (clean, corrupted)]
        for kept, right in zip((True, False), plain, strict=True):
            mask = torch.full((len(graph.edges),), kept)
            made = edges.run_with_edges(model, graph, clean.ids, other, mask)
            assert torch.allclose(made, right, atol=2e-3)
        # all but one edge, and that edge alone patched
        for edge in np.random.default_rng(0).permutation(len(graph.edges))[:12]:
            mask = torch.ones(len(graph.edges), dtype=torch.bool)
            mask[edge] = False
            made = edges.run_with_edges(model, graph, clean.ids, other, mask)
            patched = edges.edge_patches(model, graph, own, other, int(edge))
            right = model.run_with_hooks(clean.ids, fwd_hooks=patched, prepend_bos=False)
            assert torch.allclose(made, right, atol=2e-3), graph.names()[edge]


def test_gradients_are_those_of_transformer_lens(organism):
    """At the clean run, where TransformerLens has edges: per query head, one sequence at a time."""
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    clean, corrupted = pair_of(organism, batch=2)
    graph = edges.Graph.of(organism)
    last = clean.ids.shape[1] - 2

    def metric(logits):  # of any number of sequences
        return logits[:, last, 7] - logits[:, last, 9]

    with torch.no_grad():
        own, other = (edges.written(organism, graph, part.ids).writers for part in (clean, corrupted))
    found = edges.edge_gradients(organism, graph, clean.ids, other - own, metric, [0.0]).mean(-1)
    with torch.enable_grad():
        # theirs is taken at its corrupted run, towards its clean one
        theirs = attribution_patch(
            organism,
            corrupted.ids,
            clean.ids,
            lambda logits: metric(logits).sum(),
            EdgeAttributionConfig(granularity="edge"),
        )
    total = dict.fromkeys(graph.names(), 0.0)
    kinds = {"q_input": "q", "k_input": "k", "v_input": "v"}
    for (writer, reader), score in theirs.edge_scores.items():
        names = []
        for node in (writer, reader):
            names.append(
                {"embed": "embed", "logits": "logits"}.get(
                    node.kind, f"MLP{node.layer}" if "mlp" in node.kind else f"L{node.layer}H{node.head}"
                )
            )
        via = f".{kinds[reader.kind]}" if reader.kind in kinds else ""
        total[f"{names[0]} > {names[1]}{via}"] += score
    assert found.numpy() == pytest.approx(np.array([total[name] for name in graph.names()]), abs=2e-3)
    assert float(found.abs().max()) > 0.1


@pytest.mark.experiment
def test_integrated_gradients_account_for_the_whole_difference(organism):
    clean, corrupted = pair_of(organism)
    graph = edges.Graph.of(organism)
    read = torch.from_numpy(clean.inducible_tested)

    def metric(logits):
        found = log_probs(logits, clean.ids) - log_probs(logits, corrupted.ids)
        return found.masked_fill(~read, 0.0).sum(1) / read.sum(1)

    with torch.no_grad():
        own, other = (edges.written(organism, graph, part.ids).writers for part in (clean, corrupted))
        ends = [metric(organism(part.ids, return_type="logits", prepend_bos=False)) for part in (clean, corrupted)]
    midpoints = [(i + 0.5) / 64 for i in range(64)]
    found = edges.edge_gradients(organism, graph, clean.ids, other - own, metric, midpoints)
    through = found[torch.from_numpy(graph.edges[:, 0] == 0)].sum(0)
    assert through.numpy() == pytest.approx((ends[1] - ends[0]).numpy(), rel=0.02)


@pytest.mark.parametrize("name", ["gptj", "gpt_neox"])
def test_gradients_account_for_the_difference_in_parallel_blocks(tmp_path, name):
    """Where an MLP reads beside the attention: after a norm of its own, or after the attention's."""
    model = models.load(save(name, tmp_path / name))
    graph = edges.Graph.of(model)
    ids = torch.randint(2, 300, (2, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = edges.written(model, graph, ids).writers
        # a short way, on which gradients hardly change
        change = torch.zeros_like(own)
        change[0] = 1e-3 * torch.randn(own[0].shape, generator=torch.Generator().manual_seed(1))

    def metric(logits):
        return logits[:, -1, 7] - logits[:, -1, 9]

    def moved(value, hook):
        return value + change[0]

    with torch.no_grad():
        before = metric(model(ids, return_type="logits", prepend_bos=False))
        hooked = [("blocks.0.hook_resid_pre", moved)]
        after = metric(model.run_with_hooks(ids, fwd_hooks=hooked, prepend_bos=False))
    found = edges.edge_gradients(model, graph, ids, change, metric, [0.5]).sum(0)
    assert found.numpy() == pytest.approx((after - before).numpy(), rel=0.02, abs=1e-4)


@pytest.mark.experiment
@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_few_edges_keep_the_copy_and_random_ones_do_not(name):
    found = interp.run("edge_attribution", name, ["ordinary"], batch=8, seed=5).isel(pool=0)
    edge_count = found.sizes["edge"]
    few = found["size"].values[found["size"].values <= edge_count // 3].max()
    best, random = found.faithfulness.sel(order="exact", size=few), found.random_faithfulness.sel(size=few).mean("draw")
    low = mean_interval(best.values)[1]
    high = mean_interval(random.values)[2]
    assert low > 0.6
    assert high < 0.3
    assert found.faithfulness.sel(order="integrated", size=few).mean() > 0.5
    assert float(found.accounted) == pytest.approx(1, abs=0.1)
    assert found.faithfulness.sel(size=edge_count).mean("batch").values == pytest.approx(1, abs=1e-3)


def test_invalid_edge_requests_are_refused(wired):
    for options, said in (
        ({"steps": 0}, "steps 0"),
        ({"sizes": 1}, "2 sizes or more"),
        ({"metric": "rank"}, "metric 'rank' on repeated blocks: use logit_difference or log_prob"),
    ):
        with pytest.raises(InterpError, match=said) as error:
            interp.run("edge_attribution", wired, [WORDS], batch=2, length=5, **options)
        assert "\n" not in str(error.value)
    graph = edges.Graph.of(wired)
    assert [graph.names()[i] for i in graph.parse("L0H0 > L1H0.k, embed>logits")] == ["L0H0 > L1H0.k", "embed > logits"]
    with pytest.raises(InterpError, match=r"'L1H0 > L0H0\.k' is not an edge of this model"):
        graph.parse(["L1H0 > L0H0.k"])


@pytest.mark.experiment
def test_log_prob_is_accepted_as_a_measure(wired):
    found = interp.run(
        "edge_attribution", wired, [WORDS], reference="1:65", batch=3, length=6, metric="log_prob", steps=2
    )
    assert found.clean.values == pytest.approx(np.zeros((1, 3)), abs=1e-3)
    exact = found.effect.isel(pool=0).sel(estimate="exact").mean("batch")
    uniform = -np.log(65)
    for edge in ("embed > L0H0.v", "L0H0 > L1H0.k", "embed > L1H0.q"):  # the sink: nothing is predicted
        assert exact.sel(edge=edge) == pytest.approx(uniform, abs=1e-2)
