"""Are the verdicts of argmaxability those of the hull, and do witnesses and certificates hold in exact arithmetic?"""

import json
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial import ConvexHull, QhullError
from typer.testing import CliRunner

import interp
from interp import models, progress, results, views
from interp.argmax import (
    VERDICTS,
    NormBall,
    argmaxability,
    ball_search,
    dataset,
    margin_in_ball,
    passes,
    verdict_table,
    verification,
)
from interp.argmax.ball_search import margins_in_ball, spacing
from interp.argmax.linear_program import max_margin
from interp.argmax.maxent import convex_weights
from interp.argmax.min_norm_point import solve
from interp.argmax.points import Points, output_layer
from interp.cli import app
from interp.errors import InterpError


def command(*words):
    return CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": "200"})


KINDS = ["normal", "grid", "sphere", "faces", "flat", "centred", "line", "far"]


def points(kind, random, d=None):
    """Point sets, most of them degenerate in some way."""
    d = d or int(random.integers(2, 9))
    n = int(random.integers(d + 2, 40))
    rows = random.normal(size=(n, d))
    if kind == "grid":  # collinear points and points on faces, and equal ones
        rows = random.integers(-2, 3, size=(n, d)).astype(float)
    elif kind == "sphere":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    elif kind == "faces":
        rows = np.vstack([rows, (rows[0] + rows[1]) / 2, rows[: d + 1].mean(0), rows[0]])
    elif kind == "flat":
        rows = random.normal(size=(n, max(1, d - 2))) @ random.normal(size=(max(1, d - 2), d))
    elif kind == "centred":
        rows -= rows.mean(0)
    elif kind == "line":
        rows = np.outer(np.arange(n), random.integers(-2, 3, size=d)).astype(float)
    elif kind == "far":
        rows = 1e4 * rows + 1e5
    return rows


def by_program(rows, bias, which):
    """The verdict by two full linear programs; rows are all different."""
    apart = np.delete(rows, which, 0) - rows[which]
    more = np.zeros(len(apart)) if bias is None else np.delete(bias, which) - bias[which]
    size = np.abs(apart).max()
    if size > 0:
        apart, more = apart / size, more / size
    d = apart.shape[1]
    box = [(-1, 1)] * d if bias is None else [(-1e5, 1e5)] * d
    found = linprog(
        np.append(np.zeros(d), -1.0),
        A_ub=np.column_stack([apart, np.ones(len(apart))]),
        b_ub=-more,
        bounds=[*box, (None, 1)],
    )
    if found.status == 0 and -found.fun > 1e-7:
        return "argmaxable"
    found = linprog(apart.sum(0), A_ub=apart, b_ub=-more, bounds=box)
    if found.status == 2:
        return "unargmaxable"
    # feasibility is to 1e-7 only: a point of little depth seems to be on a face by little
    return "tied" if found.fun + more.sum() < -1e-2 else "unargmaxable"


def exact(row):
    return [Fraction(float(v)) for v in row]


def dot(one, other):
    return sum((a * b for a, b in zip(one, other, strict=True)), Fraction(0))


def holds(rows, bias, row):
    """A verdict's witness or certificate, by rational arithmetic."""
    which = int(row["id"])
    offsets = np.zeros(len(rows)) if bias is None else bias
    if row["verdict"] == "argmaxable":
        state = exact(row["witness"])
        logits = [dot(exact(w), state) + Fraction(float(b)) for w, b in zip(rows, offsets, strict=True)]
        lead = logits[which] - max(value for i, value in enumerate(logits) if i != which)
        return lead > 0 and float(lead) == pytest.approx(row["margin"], rel=1e-6, abs=1e-9)
    if row["twin"] >= 0:
        return bool((rows[row["twin"]] == rows[which]).all()) and offsets[row["twin"]] == offsets[which]
    weights = exact(row["weights"])
    assert min(weights) >= 0
    total = sum(weights)
    mixed = [
        sum(w * Fraction(float(rows[j][k])) for w, j in zip(weights, row["others"], strict=True)) / total
        for k in range(rows.shape[1])
    ]
    apart = [m - v for m, v in zip(mixed, exact(rows[which]), strict=True)]
    spare = sum(
        w * Fraction(float(offsets[j])) for w, j in zip(weights, row["others"], strict=True)
    ) / total - Fraction(float(offsets[which]))
    return dot(apart, apart) <= Fraction(row["residual"]) ** 2 and -spare <= Fraction(row["slack"])


# --- against Qhull and full programs ---------------------------------------------------------------------


@pytest.mark.experiment
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
def test_verdicts_are_those_of_two_full_programs(kind, biased):
    random = np.random.default_rng(KINDS.index(kind))
    seen = set()
    for _ in range(8):
        rows = points(kind, random, d=int(random.integers(1, 6)))
        bias = None
        if biased:
            bias = random.integers(-2, 3, size=len(rows)).astype(float) * (1e4 if kind == "far" else 1.0)
        table = argmaxability(rows, bias)
        whole = rows if bias is None else np.column_stack([rows, bias])
        _, first, of = np.unique(whole, axis=0, return_index=True, return_inverse=True)
        for row in table.to_dict("records"):
            same = np.flatnonzero(of.ravel() == of.ravel()[row["id"]])
            if len(same) > 1:
                assert row["verdict"] == "tied"
                assert row["twin"] in same
            elif len(first) > 1:
                which = int(np.flatnonzero(first == row["id"])[0])
                wanted = by_program(rows[first], None if bias is None else bias[first], which)
                assert row["verdict"] == wanted, (kind, row["id"])
            seen.add(row["verdict"])
            assert row["verdict"] != "undecided"
            assert row["first"] == (row["witness"] is not None)
    assert len(seen) > 1


@pytest.mark.experiment
@pytest.mark.parametrize("kind", ["normal", "sphere", "faces", "centred", "far"])
def test_argmaxable_classes_are_corners_of_the_hull(kind):
    """Qhull's corners; what it puts on a facet without being a corner is tied."""
    random = np.random.default_rng(10 + KINDS.index(kind))
    asked = 0
    for _ in range(25):
        rows = np.unique(points(kind, random), axis=0)
        try:
            hull = ConvexHull(rows)
        except QhullError:
            continue
        depth = (rows @ hull.equations[:, :-1].T + hull.equations[:, -1]).max(1)
        table = argmaxability(rows)
        corner = np.isin(np.arange(len(rows)), hull.vertices)
        scale = np.abs(rows - rows.mean(0)).max()
        for is_corner, deep, verdict in zip(corner, depth, table["verdict"], strict=True):
            if verdict == "tied":
                assert abs(deep) < 1e-9 * scale
            else:
                assert (verdict == "argmaxable") == is_corner
        asked += 1
    assert asked > 15


def test_every_answer_holds_in_rational_arithmetic():
    random = np.random.default_rng(3)
    seen = []
    for kind in KINDS:
        for biased in (False, True):
            rows = points(kind, random, d=3)[:14]
            bias = random.integers(-2, 3, size=len(rows)).astype(float) if biased else None
            for row in argmaxability(rows, bias).to_dict("records"):
                assert holds(rows, bias, row), (kind, biased, row)
                seen.append(row["verdict"])
    assert {"argmaxable", "tied", "unargmaxable"} <= set(seen)


# --- planted rows ----------------------------------------------------------------------------------------


def planted(random, n, d, count, mixed):
    """Corners, then rows deep inside: mixtures of many, half of them moved by less than their depth."""
    rows = random.normal(size=(n, d))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)  # on a sphere, all are corners
    inside = np.stack([random.dirichlet(np.ones(mixed)) @ rows[random.permutation(n)[:mixed]] for _ in range(count)])
    inside[count // 2 :] += 1e-3 / np.sqrt(d) * random.normal(size=inside[count // 2 :].shape)
    order = random.permutation(n + count)
    return np.vstack([rows, inside])[order], np.flatnonzero(order >= n)


@pytest.mark.parametrize(
    ("n", "d", "mixed"),
    [
        (300, 4, 20),
        (600, 16, 100),
        (1500, 48, 400),
        pytest.param(2600, 300, 1500, marks=pytest.mark.experiment),
    ],
)
def test_planted_classes_are_found_and_no_others(n, d, mixed):
    rows, inside = planted(np.random.default_rng(d), n, d, 12, mixed)
    table = argmaxability(rows.astype(np.float32))
    found = set(table.index[table["verdict"] == "unargmaxable"])
    assert found == set(inside)
    assert set(table["verdict"]) == {"argmaxable", "unargmaxable"}
    assert (table.loc[sorted(found), "residual"] < 1e-6).all()
    if d > 256:
        assert "maximum entropy" in set(table["stage"])


def test_exact_mixtures_of_corners_of_one_face_are_tied():
    """In many dimensions three corners are a face: the state that puts them first puts their mean beside them."""
    random = np.random.default_rng(4)
    rows = random.normal(size=(200, 40))
    rows = np.vstack([rows, rows[:3].mean(0)])
    row = argmaxability(rows).iloc[-1]
    assert row["verdict"] == "tied"
    assert set(row["others"]) == {0, 1, 2}
    logits = rows @ row["witness"]
    assert logits[[0, 1, 2, 200]] == pytest.approx(logits.max(), abs=1e-8)
    assert logits.min() < logits.max() - 0.1


@pytest.mark.parametrize("biased", [False, True])
def test_scale_shift_rotation_and_order_change_no_verdict(biased):
    random = np.random.default_rng(5)
    rows = np.vstack([points("normal", random, d=4), np.eye(4), np.zeros((1, 4))])
    rows = np.vstack([rows, rows[:2]])
    bias = random.normal(size=len(rows)) if biased else None
    before = argmaxability(rows, bias)["verdict"].to_numpy()
    turn = np.linalg.qr(random.normal(size=(4, 4)))[0]
    order = random.permutation(len(rows))
    for factor, changed in ((1e6, rows * 1e6), (1e-6, rows * 1e-6), (1.0, rows + 100.0), (1.0, rows @ turn)):
        more = None if bias is None else bias * factor + 7.0
        assert (argmaxability(changed, more)["verdict"].to_numpy() == before).all()
    assert (
        argmaxability(rows[order], None if bias is None else bias[order])["verdict"].to_numpy() == before[order]
    ).all()


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_left_undecided_whatever_the_sizes(seed):
    """Rows and biases many orders of magnitude apart, where states must be very long or very short."""
    random = np.random.default_rng(seed)
    for power in (-6, -3, 0, 3, 6):
        rows = random.normal(size=(60, int(random.integers(1, 9)))) * 10.0 ** random.integers(-6, 7)
        bias = random.normal(size=60) * np.abs(rows).max() * 10.0**power
        found = argmaxability(rows, bias)["verdict"]
        assert "undecided" not in set(found)
        # only the ratio of biases to each other counts, since a state may have any length
        assert (found == argmaxability(rows, bias * 10.0**-power)["verdict"]).all()


def test_low_precision_arrays_and_tensors_are_accepted():
    rows = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    table = argmaxability(rows)
    assert (table["verdict"] == argmaxability(rows.double().numpy())["verdict"]).all()
    assert argmaxability(np.eye(3, dtype=int)).verdict.tolist() == ["argmaxable"] * 3


def test_equal_rows_are_tied_or_decided_by_the_bias():
    assert argmaxability(np.ones((4, 3)))["verdict"].tolist() == ["tied"] * 4
    assert argmaxability(np.ones((4, 3)), np.arange(4.0))["verdict"].tolist() == ["unargmaxable"] * 3 + ["argmaxable"]
    two = argmaxability(np.array([[1.0], [2.0]]))
    assert two["verdict"].tolist() == ["argmaxable", "argmaxable"]
    # a duplicated row never wins alone; deep inside the hull it is not even among the first
    inside = argmaxability(np.array([[1.0, 0], [-1, 1], [-1, -1], [0, 0], [0, 0], [1, 0]]))
    assert inside["verdict"].tolist() == ["tied", "argmaxable", "argmaxable", "tied", "tied", "tied"]
    assert inside["first"].tolist() == [True, True, True, False, False, True]
    assert inside["twin"].tolist() == [5, -1, -1, 4, 3, 0]


# --- the parts -------------------------------------------------------------------------------------------


def test_verification_recomputes_every_claim():
    rows = np.random.default_rng(6).normal(size=(50, 6))
    table = argmaxability(rows)
    won = table[table["verdict"] == "argmaxable"].iloc[0]
    lead, error, behind = verification.leads(rows, None, np.array([won["id"]]), won["witness"][None])
    logits = np.delete(rows @ won["witness"], won["id"])
    assert lead[0] == pytest.approx(rows[won["id"]] @ won["witness"] - logits.max(), abs=1e-12)
    assert 0 < error[0] < 1e-12
    assert rows[behind[0]] @ won["witness"] == pytest.approx(logits.max(), abs=1e-12)
    assert verification.leads(rows, None, np.array([won["id"]]), -won["witness"][None])[0][0] < 0
    lost = table[table["verdict"] == "unargmaxable"].iloc[0]
    apart, _, error = verification.residual(rows, None, lost["id"], lost["others"], lost["weights"])
    assert apart < 1e-12
    assert verification.residual(rows, None, lost["id"], lost["others"], -lost["weights"])[0] == np.inf
    assert verification.residual(rows, None, lost["others"][0], lost["others"], lost["weights"])[0] == np.inf
    assert verification.residual(rows, None, lost["id"], lost["others"], lost["weights"][::-1])[0] > 1e-3
    # near ties, beyond what single precision can separate
    close = np.array([[1.0, 0.0], [1.0 - 1e-12, 0.0], [0.5, 0.0]])
    lead, error, _ = verification.leads(close, None, np.array([0, 1]), np.array([[1.0, 0.0]] * 2))
    assert lead == pytest.approx([1e-12, -1e-12], rel=1e-3)
    assert error[0] < 1e-13


def test_all_search_methods_agree():
    """Nearest points, maximum entropy and linear programs."""
    random = np.random.default_rng(7)
    rows = random.normal(size=(300, 6))
    at = Points.of(rows, None)
    for which in range(40):
        near, program = solve(at, which), max_margin(at, which)
        assert (near.direction is None) == (program.direction is None)
        apart = np.delete(at.at, which, 0) - at.at[which]
        mixed = convex_weights(apart)
        if near.direction is not None:
            assert mixed is None
        if mixed is not None:
            chosen, weights = mixed
            assert (weights > 0).all()
            assert np.linalg.norm(weights @ apart[chosen]) < 1e-12
    assert any(convex_weights(np.delete(at.at, i, 0) - at.at[i]) is not None for i in range(40))


def test_linear_programs_decide_when_least_squares_fails(monkeypatch):
    rows = np.random.default_rng(8).normal(size=(80, 5))
    wanted = argmaxability(rows)["verdict"]

    def fails(*_, **__):
        raise RuntimeError("too many iterations")

    monkeypatch.setattr("interp.argmax.min_norm_point.nnls", fails)
    found = argmaxability(rows)
    assert (found["verdict"] == wanted).all()
    assert "linear program" in set(found["stage"])


def test_an_interrupted_search_resumes(tmp_path, monkeypatch):
    rows = np.random.default_rng(9).normal(size=(200, 4))
    whole = argmaxability(rows)
    asked = []

    def stops(points, which, **options):
        asked.append(which)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return solve(points, which, **options)

    monkeypatch.setattr("interp.argmax.min_norm_point.solve", stops)
    with pytest.raises(KeyboardInterrupt):
        argmaxability(rows, parts=tmp_path)
    again = argmaxability(rows, parts=tmp_path)
    assert len(set(asked)) == len(asked) - 1  # only the interrupted one is computed twice
    assert (again["verdict"] == whole["verdict"]).all()
    assert again["margin"].to_numpy() == pytest.approx(whole["margin"].to_numpy())
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    assert (argmaxability(rows, parts=tmp_path)["verdict"] == whole["verdict"]).all()


def test_classes_left_when_time_runs_out_are_undecided():
    rows = np.random.default_rng(9).normal(size=(2000, 4))
    table = argmaxability(rows, seconds=1e-9)
    assert "undecided" in set(table["verdict"])
    assert (table.loc[table["verdict"] == "undecided", "stage"] == "").all()


@pytest.mark.parametrize(
    ("weights", "bias", "said"),
    [
        (np.array([[1.0, np.nan], [0, 1]]), None, "NaN"),
        (np.ones((1, 3)), None, "at least two classes"),
        (np.ones((0, 3)), None, "at least two"),
        (np.ones(3), None, "classes, dimensions"),
        (np.eye(3), np.ones(2), "need (3,)"),
        (np.array([["a"]]), None, "numbers are needed"),
        (np.eye(2), np.array([0, np.inf]), "NaN or infinity"),
        ([[1.0, 2], [1]], None, "different lengths"),
    ],
)
def test_invalid_output_layers_are_refused(weights, bias, said):
    with pytest.raises(InterpError, match=said.replace("(", r"\(").replace(")", r"\)")):
        argmaxability(weights, bias)


@pytest.mark.experiment
def test_regression_cases_found_in_review(tmp_path, monkeypatch):
    """Cases that were once wrong."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(900, 300))
    assert argmaxability(np.vstack([rows, rows[:3].mean(0)])).iloc[-1]["verdict"] == "tied"  # a face in many dimensions
    rows = random.normal(size=(12, 2))
    plain = argmaxability(rows)["verdict"]
    assert (argmaxability(rows * [1, 1e-12])["verdict"] == plain).all()
    assert (argmaxability(rows, np.full(12, 0.1))["verdict"] == plain).all()
    assert (argmaxability(rows * 1e-170)["verdict"] == plain).all()
    # one bias that masks a class leaves the others undecided at worst
    many, bias = random.normal(size=(100, 3)), random.normal(size=100)
    bias[0] = -50
    wanted = argmaxability(many, bias)["verdict"]
    for mask in (-1e4, -1e9, -1e12, -1e30):
        bias[0] = mask
        found = argmaxability(many, bias)["verdict"]
        assert ((found == wanted) | (found == "undecided")).all()
    # the same bytes with another shape are a different problem
    rows, bias = random.integers(-3, 4, size=(12, 2)).astype(float), random.integers(-2, 3, size=12).astype(float)
    other = np.concatenate([rows.ravel(), bias]).reshape(12, 3)
    argmaxability(rows, bias, parts=tmp_path)
    assert (argmaxability(other, parts=tmp_path)["verdict"] == argmaxability(other)["verdict"]).all()
    # linear programs alone recognise ties, too
    monkeypatch.setattr("interp.argmax.min_norm_point.nnls", lambda *_, **__: (_ for _ in ()).throw(RuntimeError()))
    square = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1], [1, 0], [0, 0]])
    assert argmaxability(square)["verdict"].tolist() == ["argmaxable"] * 4 + ["tied", "unargmaxable"]


# --- after the norm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_the_widest_lead_in_a_ball(seed):
    """Against a program whose ball is cut from the outside until nothing changes."""
    random = np.random.default_rng(seed)
    n, d = int(random.integers(4, 25)), int(random.integers(1, 5))
    rows, offsets = random.normal(size=(n, d)), random.normal(size=n) * 2 * (seed % 2)
    ball = NormBall(rows, offsets, float(random.uniform(0.5, 3)))
    for which in range(n):
        found = margin_in_ball(ball, which)
        apart, spare = rows[which] - np.delete(rows, which, 0), offsets[which] - np.delete(offsets, which)
        cuts = np.vstack([np.eye(d), -np.eye(d)])
        for _ in range(200):
            program = linprog(
                np.append(np.zeros(d), -1.0),
                A_ub=np.vstack(
                    [np.column_stack([-apart, np.ones(n - 1)]), np.column_stack([cuts, np.zeros(len(cuts))])]
                ),
                b_ub=np.concatenate([spare, np.full(len(cuts), ball.radius)]),
                bounds=[(None, None)] * (d + 1),
            )
            z = program.x[:-1]
            if np.linalg.norm(z) <= ball.radius * (1 + 1e-7):
                break
            cuts = np.vstack([cuts, z / np.linalg.norm(z)])
        assert found.margin == pytest.approx(-program.fun, abs=1e-4)
        assert np.linalg.norm(found.z) <= ball.radius * (1 + 1e-9)
        assert float((apart @ found.z + spare).min()) == pytest.approx(found.margin, abs=1e-9)
        if offsets.any() and abs(found.margin) > 1e-6:
            assert (found.least_norm < ball.radius) == (found.margin > 0)
        if len(found.weights):  # the proof: radius |mixed rows| + mixed offsets bounds the lead
            ids = found.others
            bound = ball.radius * np.linalg.norm(found.weights @ (rows[which] - rows[ids])) + found.weights @ (
                offsets[which] - offsets[ids]
            )
            assert found.margin <= bound + 1e-7


@pytest.mark.experiment
@pytest.mark.parametrize("name", ["organism", "organism-llama"])
def test_the_ball_holds_the_states_after_the_norm(name):
    """Hidden states after the real norm have the logits that the ball's rows give."""
    model = models.load(name)
    ball = NormBall.of_model(model)
    rows, bias = output_layer(model)
    assert bias is None
    x = 30 * torch.randn(20, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        h = model.ln_final(x[None])[0].double().numpy()
    seen = x.double().numpy()
    seen = seen - seen.mean(1, keepdims=True) if name == "organism" else seen
    z = seen / np.sqrt((seen**2).mean(1, keepdims=True))
    assert np.linalg.norm(z, axis=1) == pytest.approx(ball.radius)
    assert z @ ball.rows.T + ball.offsets == pytest.approx(h @ rows.T, abs=2e-2)


@pytest.mark.long
def test_unexposed_tokens_of_an_organism_can_hardly_be_first(tmp_path):
    """All tokens can be first; those never seen in training by little, the others by much."""
    result = interp.run("argmaxability", "organism-llama", ["unexposed", "ordinary"], out=tmp_path)
    assert (result["verdict"] == 0).all()
    assert float(result["pool_margin"].sel(pool="unexposed")) < 1
    assert float(result["pool_margin"].sel(pool="ordinary")) > 10
    assert (result["pool_margin_low"] <= result["pool_margin"]).all()
    assert set(views.figures(result)) == {"margin_by_kind"}
    text = " ".join(str(part) for part in views.tables(result))
    assert "checked in float64" in text


def test_the_wired_model(wired):
    table = argmaxability(wired)
    assert (table["verdict"] == "argmaxable").all()
    assert (table["norm_verdict"] == "argmaxable").all()


def test_norm_offsets_can_rule_out_a_class_that_longer_states_allow():
    """Offsets of a norm can keep a class from ever being first, though some longer state would put it there."""
    rows = np.array([[1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1], [1.001, 0.001]])
    assert (argmaxability(rows)["verdict"] == "argmaxable").all()
    ball = NormBall(rows, np.array([0.0, 0.0, 0.0, 5.0]), 2.0)
    assert margin_in_ball(ball, 0).margin < 0
    assert margin_in_ball(ball, 3).margin > 0
    assert margin_in_ball(ball, 0).least_norm > ball.radius


def test_spacing_of_low_precision_numbers_is_that_of_torch():
    logits = np.array([1.0, 1.5, 20.0, -20.0])
    for bits, dtype in ((8, torch.bfloat16), (11, torch.float16)):
        there = torch.tensor(logits).to(dtype)
        wanted = (torch.nextafter(there.abs(), torch.full_like(there, torch.inf)) - there.abs()).double().numpy()
        assert spacing(logits, bits) == pytest.approx(wanted)


@pytest.mark.process
def test_the_package_is_cheap_to_import_and_the_old_name_still_works():
    code = "import sys; from interp import argmax; import interp; print('torch' not in sys.modules, argmax.VERDICTS[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "argmaxable"]
    assert interp.argmaxable is interp.argmaxability is argmaxability


def test_a_bare_matrix_has_no_verdicts_after_a_norm():
    rows = np.array([[1.0, 0], [-1, 1], [-1, -1], [0, 0]])
    found = dataset(argmaxability(rows), rows)
    assert found["verdict"].sel(question="any state").values.tolist() == [0, 0, 0, 2]
    assert (found["verdict"].sel(question="after the norm") == VERDICTS.index("undecided")).all()
    assert np.isnan(found["margin"].sel(question="after the norm")).all()
    assert np.isnan(found["spacing"]).all()
    assert found["rows"].sel(axis="y").values.tolist() == [0, 1, -1, 0]
    assert "rows" not in dataset(argmaxability(rows))
    assert sum(json.loads(found.attrs["stages"]).values()) == 4


def test_only_results_of_exact_stages_are_saved(tmp_path):
    sphere = np.random.default_rng(0).normal(size=(50, 8))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    argmaxability(sphere, parts=tmp_path)
    assert not list(tmp_path.iterdir())  # all were guessed
    rows = np.vstack([sphere, sphere.mean(0)])
    before = argmaxability(rows, parts=tmp_path)
    (path,) = tmp_path.iterdir()
    assert pd.read_parquet(path)["class"].tolist() == [50]
    again = argmaxability(rows, parts=tmp_path)
    assert again.iloc[50]["others"].tolist() == before.iloc[50]["others"].tolist()
    assert again.iloc[50]["weights"].tolist() == before.iloc[50]["weights"].tolist()


# --- after the norm, many- classes at once ---------------------------------------------------------------


def kin(seed, count=400, width=32, near=80):
    """Rows of which some lie close together, as those of tokens that training never showed; some with offsets."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, width))
    rows[:near] = random.normal(size=width) + 0.02 * random.normal(size=(near, width))
    offsets = random.normal(size=count) * 0.01 * (seed % 2)
    return NormBall(rows, offsets, float(np.sqrt(width)))


@pytest.mark.experiment
@pytest.mark.parametrize("seed", range(2))
def test_batched_search_approaches_and_bounds_the_widest_lead(seed, monkeypatch):
    """Against one exact search for each class; without any, where batches leave none open."""
    monkeypatch.setattr(ball_search, "_CLEAR", 1e9)  # no lead is wide enough
    ball = kin(seed)
    exact = margins_in_ball(ball, exact=True)
    single = ball.rows.astype(np.float32)
    ids = np.arange(64)
    z, proofs = ball_search._batch(ball, single, ids, ball_search._guesses(ball)[ids].astype(float))
    lead, _, _ = verification.leads(ball.rows, ball.offsets, ids, z)
    bound = np.array([ball_search._bound(ball, i, *proofs[i]) for i in ids])
    assert (np.linalg.norm(z, axis=1) <= ball.radius * (1 + 1e-9)).all()
    assert (lead <= exact.margin[ids] + 1e-5).all()
    assert (bound >= exact.margin[ids] - 1e-7).all()
    first = exact.margin[ids] > 0
    assert (lead[first] >= 0.9 * exact.margin[ids][first]).mean() > 0.9
    found = margins_in_ball(ball, exact=False)
    assert (found.margin <= exact.margin + 1e-5).all()
    assert (found.margin >= 0.95 * exact.margin - 1e-5).all()
    assert (found.bound >= exact.margin - 1e-7).all()


@pytest.mark.experiment
def test_a_clear_lead_is_not_refined():
    """Beyond 4,096 classes: a lead of four spacings of bfloat16 is not refined, the rest is within 5%."""
    ball = kin(1, near=150)
    found, exact = margins_in_ball(ball, exact=False), margins_in_ball(ball, exact=True)
    clear = found.margin >= 4 * spacing(found.logit, 8)
    assert clear.any()
    assert (found.margin[~clear] >= 0.95 * exact.margin[~clear] - 1e-5).all()
    assert (found.margin[clear] < 0.95 * exact.margin[clear]).any()


@pytest.mark.experiment
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_planted_classes_are_never_first_after_a_norm(offset, monkeypatch):
    """Mixtures of others (with offsets no higher), and one that lies too low: proven by the judge, or undecided."""
    random = np.random.default_rng(5)
    rows, offsets = random.normal(size=(4200, 64)), offset * random.normal(size=4200)
    inside = np.arange(7, 4200, 600)
    for i in inside:
        others = random.permutation(np.setdiff1d(np.arange(4200), inside))[:200]
        rows[i], offsets[i] = rows[others].mean(0), offsets[others].mean() - 0.01 * (offset > 0)
    never = inside
    if offset:
        offsets[11] = offsets.min() - 200.0  # a longer state puts it first, none in the ball
        never = np.sort(np.append(inside, 11))
    table = argmaxability(rows, offsets if offset else None)
    ball = NormBall(rows, offsets, 8.0)
    columns = verdict_table._norm_columns(ball, table, None)
    assert np.flatnonzero(columns["norm_verdict"] == "unargmaxable").tolist() == never.tolist()
    assert (columns["norm_verdict"] == "argmaxable").sum() == 4200 - len(never)
    if offset:
        assert columns["norm_margin"][11] < -1
        monkeypatch.setattr(verification, "residual", lambda *_: (np.inf, -np.inf, 0.0))
        assert verdict_table._norm_columns(ball, table, None)["norm_verdict"][11] == "undecided"


def test_duplicate_rows_are_solved_once(monkeypatch):
    ball = kin(3)
    ball.rows[:40], ball.offsets[:40] = ball.rows[0], ball.offsets[0]
    asked = []
    monkeypatch.setattr(ball_search, "margin_in_ball", lambda *a: asked.append(a[1]) or margin_in_ball(*a))
    found = margins_in_ball(ball, exact=True)
    assert len(asked) == 361
    assert (found.margin[:40] <= 1e-9).all()


@pytest.mark.experiment
def test_an_interrupted_search_after_the_norm_resumes(tmp_path, monkeypatch):
    ball, asked = kin(1), []
    monkeypatch.setattr(ball_search, "_SAVED", -1.0)
    monkeypatch.setattr(ball_search, "_CLEAR", 1e9)
    monkeypatch.setattr(ball_search, "_ROUNDS", 2)  # some are left for the exact search
    whole = margins_in_ball(ball, exact=False)

    def stops(ball, which):
        asked.append(which)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return margin_in_ball(ball, which)

    monkeypatch.setattr(ball_search, "margin_in_ball", stops)
    with pytest.raises(KeyboardInterrupt):
        margins_in_ball(ball, exact=False, parts=tmp_path)
    batches = ball_search._batch
    monkeypatch.setattr(ball_search, "_batch", lambda *_: pytest.fail("a batch is asked twice"))
    again = margins_in_ball(ball, exact=False, parts=tmp_path)
    assert len(set(asked)) == len(asked) - 1
    for one, two in zip(again.columns(), whole.columns(), strict=True):
        assert one == pytest.approx(two, nan_ok=True)
    monkeypatch.setattr(ball_search, "_batch", batches)
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    assert margins_in_ball(ball, exact=False, parts=tmp_path).margin == pytest.approx(whole.margin)


def test_a_long_pass_is_announced_and_resumes(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    rows, states = random.normal(size=(1000, 8)), random.normal(size=(1000, 8))
    ids, asked = np.arange(1000), []
    whole, errors, _ = verification.leads(rows, None, ids, states)
    plain = verification.leads

    def stops(rows, bias, ids, states):
        asked.append(len(ids))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return plain(rows, bias, ids, states)

    monkeypatch.setattr(passes, "_PART", 1.0)
    monkeypatch.setattr(verification, "leads", stops)
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    with pytest.raises(KeyboardInterrupt):
        passes.leads_in_parts(rows, None, ids, states, "a pass", tmp_path)
    assert "a pass: about 0 min" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2
    asked.append(0)
    lead, error = passes.leads_in_parts(rows, None, ids, states, "a pass", tmp_path)
    assert asked[-3:] == [256, 256, 232]  # the message with the duration, and the two remaining parts
    assert (lead == whole).all()
    assert (error == errors).all()


# --- the command -----------------------------------------------------------------------------------------


@pytest.mark.experiment
def test_the_command_writes_everything_it_found(tmp_path):
    random = np.random.default_rng(0)
    rows = np.vstack([random.normal(size=(40, 3)), np.zeros((1, 3))])
    np.savez(tmp_path / "layer.npz", W=rows, b=np.zeros(41))
    done = command("argmaxable", "--matrix", str(tmp_path / "layer.npz"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    table = pd.read_csv(tmp_path / "out" / "argmaxable.csv")
    assert {"id", "verdict", "margin"} <= set(table.columns)
    assert table["verdict"].iloc[-1] == "unargmaxable"
    assert set(table["verdict"]) <= set(VERDICTS)
    whole = pd.read_parquet(tmp_path / "out" / "argmaxable.parquet")
    last = whole.iloc[-1]
    assert np.asarray(last["weights"]) @ rows[np.asarray(last["others"])] == pytest.approx(np.zeros(3), abs=1e-12)
    with np.load(tmp_path / "out" / "witnesses.npz") as held:
        for i, state in zip(held["id"], held["state"], strict=True):
            assert (rows @ state).argmax() == i
        assert len(held["id"]) == (table["verdict"] == "argmaxable").sum()
    result = results.load(tmp_path / "out")
    assert set(views.figures(result)) == {"margin_by_kind", "hull"}
    assert json.loads(result.attrs["stages"])
    about = results.provenance(result)
    assert about["experiment"] == "argmaxability"
    assert about["matrix"] == str(tmp_path / "layer.npz")
    assert "unargmaxable" in done.output
    again = command("show", str(tmp_path / "out"))
    assert again.exit_code == 0


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"weights": np.eye(3)}, "no array W"),
        ({"W": np.eye(3), "b": np.ones(2)}, "need (3,)"),
        ("text", "is not a readable .npz file"),
        (None, "no file"),
    ],
)
def test_the_command_names_the_remedy(tmp_path, held, said):
    path = tmp_path / "layer.npz"
    if isinstance(held, dict):
        np.savez(path, **held)
    elif held:
        path.write_text(held)
    done = command("argmaxable", "--matrix", str(path), "--out", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert len(done.output.strip().splitlines()) == 1
    assert not list((tmp_path / "out").glob("argmaxable*"))
