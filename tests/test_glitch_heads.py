"""Are the heads named that were damaged, and are the others left alone? And do gradients agree with runs?"""

import math

import numpy as np
import pytest
import torch

import interp
from interp import heads as calling, views
from interp.defects import planted
from interp.errors import InterpError
from interp.experiments.glitch_heads.experiment import GROUPS, PARTS, TOLERANCE, control_heads
from interp.hooks import head_name
from interp.pool_names import ordinary_pool
from interp.repairs import PredictionSites, Unembedding
from interp.repairs.head_changes import ChangedRuns, HeadChange, what_heads_do
from interp.repairs.health import limit_of
from interp.repairs.minimal import right_keys
from interp.repairs.ordinary_heads import OrdinaryHeads, ordinary_heads
from interp.tokens import Pool, local_generator, repeated

BOS = 2047


def chosen(model, seed=0, size=30):
    everyone = ordinary_pool(model)
    order = torch.randperm(len(everyone), generator=local_generator(seed, 99)).tolist()
    ids = sorted(everyone.ids[i] for i in order[:size])
    return Pool("broken", tuple(ids)), everyone.without(ids)


def asked(model, pool, others, **options):
    options = {"batch": 16, "reference": ",".join(map(str, others.ids))} | options
    return interp.run("glitch_heads", model, [pool], **options)


def only(found, kind, heads):
    """`classify_heads`'s result with no heads of a kind but some."""
    classified = found["classified"].copy()
    marks = np.zeros(classified.sel(kind=kind).shape, dtype=bool)
    for layer, head in heads:
        marks[layer, head] = True
    classified.loc[{"kind": kind}] = marks
    return found.assign(classified=classified)


@pytest.fixture(scope="module")
def calls(organism):
    with torch.no_grad():
        return calling.classify_heads(organism, repeated(ordinary_pool(organism), batch=16, bos=BOS))


@pytest.fixture(scope="module")
def circuit(organism, calls):
    """What the organism's heads do on ordinary tokens."""
    pool = ordinary_pool(organism)

    def draw(of, *, stream=0, paired_with=None):
        return repeated(of, batch=16, bos=BOS, seed=stream)

    with torch.no_grad():
        kinds = [sorted(calling.heads_of_kind(calls, kind)) for kind in ("induction", "previous")]
        yield OrdinaryHeads.of(organism, ordinary_heads(organism, *kinds, draw, pool))


# --- the instrument ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(organism, circuit):
    """Ordinary sequences, whose heads pay half of their attention, and carry a third less."""
    tokens = repeated(ordinary_pool(organism), batch=6, length=9, bos=BOS, seed=3)
    zero = torch.zeros(len(circuit.induction) + len(circuit.previous))
    change = HeadChange(organism, circuit, zero, zero + 0.5, -circuit.strength / 3)
    near = {int(t): t.reshape(1) for t in PredictionSites.of(tokens).token.unique()}
    with torch.no_grad():
        yield ChangedRuns(tokens, change, near, Unembedding(organism))


def test_closed_gates_change_nothing_and_open_ones_change_what_was_requested(organism, circuit, runs):
    assert runs.level(torch.zeros(runs.change.parts)) == pytest.approx(runs.level(), abs=1e-5)
    before = what_heads_do(organism, runs.tokens, circuit)[0]
    seen = {}

    def look(pattern, hook):
        seen["pattern"] = pattern

    gates = torch.zeros(6, runs.change.parts)
    gates[:, 1] = 0.5  # half way to half of its attention
    layer, head = circuit.induction[1]
    hooks = [*runs.change.hooks(runs.tokens, gates), (f"blocks.{layer}.attn.hook_pattern", look)]
    organism.run_with_hooks(runs.tokens.ids, fwd_hooks=hooks, prepend_bos=False)
    sites = PredictionSites.of(runs.tokens)
    rows = seen["pattern"][sites.sequence, head, sites.query]
    mass = (rows * right_keys(runs.tokens, sites.query)).sum(-1).reshape(6, -1).mean(1)
    assert mass == pytest.approx(0.75 * before[:, 1], abs=1e-5)
    assert rows.sum(-1) == pytest.approx(torch.ones(len(rows)), abs=1e-5)


def test_gradients_are_those_of_finite_differences(runs):
    gates = torch.full((runs.change.parts,), 0.4)
    found = runs.gradients(gates)
    for i in range(runs.change.parts):
        step = torch.zeros_like(gates)
        step[i] = 0.02
        expected = (runs.level(gates + step) - runs.level(gates - step)) / 0.04
        assert found[:, i] == pytest.approx(expected, abs=0.02, rel=0.01), i


@pytest.mark.experiment
def test_integrated_gradients_sum_to_the_whole_change(runs):
    among = torch.ones(runs.change.parts, dtype=torch.bool)
    whole = runs.level(among.float()) - runs.level()
    found = runs.integrated(among, most=64, allowed=0.002)
    assert found.sum(1) == pytest.approx(whole, abs=0.02)
    among[0] = False  # unchanged parts account for nothing
    found = runs.integrated(among, most=64, allowed=0.002)
    assert (found[:, 0] == 0).all()
    assert found.sum(1) == pytest.approx(runs.level(among.float()) - runs.level(), abs=0.02)


def test_controls_are_unclassified_heads_of_the_same_layers(organism):
    called = {"induction": [(1, 1), (1, 2)], "previous": [(0, 2)]}
    found = control_heads(organism, called)
    assert [len(found[kind]) for kind in called] == [2, 1]
    every = [*found["induction"], *found["previous"]]
    assert len(set(every)) == 3
    assert {layer for layer, _ in found["induction"]} == {1}
    assert found["previous"][0][0] == 0
    assert not set(every) & {(1, 1), (1, 2), (0, 2)}
    assert control_heads(organism, called, seed=1) != found or control_heads(organism, called, seed=2) != found
    crowded = control_heads(organism, {"induction": [(1, 0), (1, 1), (1, 2)], "previous": [(0, 2)]})
    assert sorted({layer for layer, _ in crowded["induction"]}) == [0, 1]  # layer 1 has one left


# --- known answers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wired_calls(wired):
    with torch.no_grad():
        return calling.classify_heads(wired, repeated(ordinary_pool(wired), batch=16, length=20, bos=0))


@pytest.mark.causes
@pytest.mark.parametrize(("defect", "part"), [("blind-keys", "attention"), ("blind-values", "cargo")])
def test_the_one_induction_head_of_the_wired_model_accounts_for_all(wired, wired_calls, defect, part):
    pool, others = chosen(wired, size=12)
    with planted(wired, pool.ids, [defect], heads=wired_calls):
        at = asked(wired, pool, others, length=10).isel(pool=0)
    deficit = float(at.deficit)
    assert deficit > 3
    own = at.sel(part=part, circuit_head="L1H0")
    alone = own.effect.sel(estimate="alone").mean("batch")
    assert float(alone.sel(direction="repair")) == pytest.approx(deficit, abs=1e-5)
    assert float(own.effect.sel(direction="repair", estimate="last").mean()) == pytest.approx(deficit, abs=1e-5)
    assert float(own.effect.sel(direction="repair", estimate="integrated").mean()) == pytest.approx(deficit, rel=0.05)
    assert float(alone.sel(direction="damage")) > 3
    assert float(at.whole.sel(direction="repair", group="classified").mean()) == pytest.approx(deficit, abs=1e-5)
    assert float(own.fails) == 1
    assert f"L1H0 ({part}" in at.verdict
    # no other part is at fault, classified or not
    rest = at.effect.where((at.part != part) | (at.circuit_head != "L1H0"))
    assert float(abs(rest.sel(estimate=["alone", "last"])).max()) < 1e-5
    assert float(abs(at.whole.sel(group="control")).max()) < 1e-5
    assert float(at.fails.sum()) == 1
    assert abs(at.moved).max() < 1e-5


@pytest.mark.causes
def test_what_the_wired_head_does_is_known(wired, wired_calls):
    """Blind keys leave it no attention to the right key, of ordinary tokens it has all, and these are copied."""
    pool, others = chosen(wired, size=12)
    with planted(wired, pool.ids, ["blind-keys"], heads=wired_calls):
        at = asked(wired, pool, others, length=10, batch=4).isel(pool=0)
    assert float(at.does.sel(role="pool", part="attention", circuit_head="L1H0").max()) < 0.2
    assert float(at.does.sel(role="ordinary", part="attention", circuit_head="L1H0").min()) > 0.99
    assert float(at.level.sel(role="ordinary").mean()) == pytest.approx(0, abs=1e-5)
    assert float(at.level.sel(role="pool").mean()) == pytest.approx(-float(at.deficit), abs=1e-5)


@pytest.mark.causes
def test_nothing_is_attributed_without_a_deficit(wired):
    pool, others = chosen(wired, size=12)
    at = asked(wired, pool, others, length=10).isel(pool=0)
    assert float(abs(at.effect).max()) < 1e-5
    assert float(abs(at.whole).max()) < 1e-5
    assert float(at.fails.max()) == 0
    assert "no part of a classified head does significantly less than half" in at.verdict
    assert "damage to no single part costs ordinary tokens significantly" in at.verdict


@pytest.mark.causes
@pytest.mark.parametrize(
    ("defect", "part", "damaged"),
    [
        ("blind-keys", "attention", [(1, 2)]),
        ("blind-keys", "attention", [(1, 1), (1, 3)]),
        ("blind-values", "cargo", [(1, 2)]),
        pytest.param("blind-values", "cargo", [(1, 1), (1, 3)], marks=pytest.mark.everything),
        ("blind-previous", "attention", []),
    ],
)
def test_damaged_heads_are_named_and_no_others(organism, calls, defect, part, damaged):
    """Of three induction heads, some; and of blind previous-token heads, what they do to all of these."""
    pool, others = chosen(organism)
    with planted(organism, pool.ids, [defect], heads=only(calls, "induction", damaged) if damaged else calls):
        at = asked(organism, pool, others).isel(pool=0)
    called = at.sel(circuit_head=at.head_group == "classified")
    if not damaged:  # their keys carry nothing, so these heads attend elsewhere; what is carried is unchanged
        damaged = calling.heads_of_kind(calls, "induction")
    names = {head_name(head) for head in damaged}
    failing = called.fails.sel(part=part)
    assert set(failing.circuit_head.values[failing.values == 1]) == names, at.verdict
    other = called.fails.sel(part=next(one for one in PARTS if one != part))
    assert (other.fillna(0) == 0).all()
    assert all(f"{name} ({part}" in at.verdict for name in names)
    # the controls do nothing, in either direction
    assert float(abs(at.whole.sel(group="control").mean("batch")).max()) < 0.02
    sums, whole = at.integral, at.whole.mean("batch")
    allowed = np.maximum(limit_of(float(at.deficit)), TOLERANCE * abs(whole))
    assert (abs(sums - whole) <= allowed).all()
    assert at.effect.sel(estimate="integrated").sum(["part", "circuit_head"]).mean("batch").values == pytest.approx(
        whole.sum("group").values, abs=2 * float(allowed.max())
    )


@pytest.mark.causes
def test_the_head_that_copies_most_accounts_for_most(organism, calls):
    """All three are blind; by its damage alone, as by ablation, L1H2 is the one that counts."""
    pool, others = chosen(organism)
    with planted(organism, pool.ids, ["blind-keys"], heads=calls):
        at = asked(organism, pool, others).isel(pool=0)
    for direction in ("repair", "damage"):
        alone = at.effect.sel(direction=direction, estimate="alone", part="attention").mean("batch")
        assert str(alone.idxmax("circuit_head").values) == "L1H2"
        assert float(alone.max()) > 0.8 * float(at.deficit)
    assert float(at.whole.sel(direction="repair", group="classified").mean()) == pytest.approx(
        float(at.deficit), abs=0.1
    )
    assert at.agreement.sel(group="classified", fit="correlation").min() > 0.9
    assert at.verdict.split("; nats that damage to a single part")[1].split(": ")[1].startswith("L1H2 attention")


@pytest.mark.causes
def test_with_few_runs_gradients_remain(organism, calls):
    """Parts without a run of their own are NaN, and the shares by gradients are the same."""
    pool, others = chosen(organism)
    with planted(organism, pool.ids, ["blind-keys"], heads=calls):
        found = [asked(organism, pool, others, exact=count, batch=8) for count in (0, 2)]
    none, two = (one.isel(pool=0) for one in found)
    assert none.effect.sel(estimate=["alone", "last"]).isnull().all()
    for group in GROUPS:
        alone = two.effect.sel(estimate="alone").isel(circuit_head=two.head_group == group).notnull().any("batch")
        assert alone.sum(["part", "circuit_head"]).values.tolist() == [2, 2]
        assert (alone.sel(direction="repair") == alone.sel(direction="damage")).all()
    shares = [one.effect.sel(estimate="integrated").values for one in (none, two)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-5, nan_ok=True)
    assert none.agreement.sel(fit="largest difference").isnull().all()
    text = " ".join(" ".join(str(line) for line in views.tables(found[0])).split())
    assert "damage to no single part costs ordinary tokens significantly" in text


@pytest.mark.causes
def test_gradients_that_miss_the_change_are_not_used(wired, wired_calls):
    """With four of them, a step is missed: NaN, and a line that says so."""
    pool, others = chosen(wired, size=12)
    with planted(wired, pool.ids, ["blind-keys"], heads=wired_calls):
        found = asked(wired, pool, others, length=10, steps=4)
    at = found.isel(pool=0)
    assert at.effect.sel(estimate="integrated", direction="repair", circuit_head="L1H0").isnull().all()
    assert float(at.integral.sel(direction="repair", group="classified")) > 0
    said = " ".join(" ".join(str(line) for line in views.tables(found)).split())
    assert "and are not used: give more --steps" in said


@pytest.mark.causes
def test_tables_and_figures_show_the_result(organism):
    """Two pools, single tokens among ordinary ones."""
    found = interp.run("glitch_heads", organism, mixed=True, batch=8, exact=2, steps=12)
    assert found.pool.values.tolist() == ["unexposed", "ordinary"]
    said = " ".join(" ".join(str(line) for line in views.tables(found)).split())
    assert "Heads of 'organism'" in said
    assert "unexposed: lacks" in said
    assert "95% intervals: Student's t, 8 sequences." in said
    drawn = views.figures(found)
    assert list(drawn) == ["heads_over_layers", "what_heads_do"]
    names = {trace.name for trace in drawn["heads_over_layers"].data}
    assert {"attention, alone", "cargo, gradients", "not classified"} <= names
    first = next(
        t
        for t in drawn["heads_over_layers"].data
        if t.name == "attention, alone" and np.isfinite(np.array(t.y, dtype=float)).any()
    )
    where = {"pool": "unexposed", "direction": "repair", "estimate": "alone", "part": "attention"}
    alone = (
        found.effect.sel(where).mean("batch").isel(circuit_head=found.head_group == "classified").dropna("circuit_head")
    )
    assert first.y == pytest.approx(alone.values, abs=1e-5)


def test_a_model_without_induction_heads_is_refused_in_one_line(organism, calls, monkeypatch):
    pool, others = chosen(organism)
    nothing = only(calls, "induction", [])
    where = "interp.experiments.glitch_heads.experiment.classify_on_reference"
    monkeypatch.setattr(where, lambda *a, **k: (others, nothing))
    with pytest.raises(InterpError, match="no head is classified as an induction head: no deficit can be") as error:
        asked(organism, pool, others, batch=2, length=6)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"exact": -1}, {"steps": 3}, {"fits": 0}])
def test_invalid_requests_are_refused(wired, options):
    said = {"exact": 8, "steps": 64, "fits": 4} | options
    with pytest.raises(InterpError, match=", ".join(f"{name} {value}" for name, value in said.items())):
        interp.run("glitch_heads", wired, ["1:30"], batch=4, length=6, **options)


def test_a_head_fails_only_if_significantly_below_half():
    from interp.experiments.glitch_heads.experiment import _fails

    random = np.random.default_rng(0)
    ordinary = 1 + 0.05 * random.standard_normal((2, 3, 20))
    pool = ordinary * np.array([0.2, 0.8, 0.5])[:, None] + 0.1 * random.standard_normal((2, 3, 20))
    pool[1, 2] = math.nan
    found = _fails(np.stack([pool, ordinary]))
    assert found[:, :2].tolist() == [[1, 0], [1, 0]]
    assert np.isnan(found[:, 2]).all()
    same = np.stack([np.full((2, 1, 5), 0.0), np.ones((2, 1, 5))])
    assert (_fails(same) == 1).all()
    assert np.isnan(_fails(same[..., :1])).all()  # one sequence shows nothing
