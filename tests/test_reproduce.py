"""Are published values compared correctly: the whole path on a small model, the readers, mistakes in a file?"""

import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import interp
from interp import results, views
from interp.cli import app
from interp.errors import InterpError
from interp.heads import heads_of_kind
from interp.organisms import UNDERTRAINED_TO
from interp.reproduce import bundled, checks, read_values, readers, reproduce, view
from interp.reproduce.readers import LISTS, READERS
from interp.reproduce.view import table
from interp.request import Request
from interp.results import SCHEMA

NAME = "someone/small-gpt2"
RUNS = {
    "article": {
        "experiment": "repeated_tokens",
        "pools": ["177:188", "100:111"],
        "parameters": {"protocol": "article"},
    },
    "heads": {
        "experiment": "induction_heads",
        "pools": ["0:2000"],
        "parameters": {"batch": 4, "length": 12, "windows": 2, "most": 1, "baseline_draws": 20},
    },
    "ablation": {
        "experiment": "head_ablation",
        "pools": ["0:2000"],
        "parameters": {"batch": 2, "length": 10, "draws": 1},
    },
    "prompt": {"experiment": "repeat_prompt", "pools": ["182", "texts=a"], "parameters": {"steps": 2}},
    "undertrained": {
        "experiment": "undertrained",
        "parameters": {"indicator": "e_out_cosine", "fdr": 0.9, "verify_tokens": "detected"},
    },
}
STORED = "taken from an earlier run of the same request (--fresh runs it again)"
COSINE = {"indicator": "e_out_cosine"}
BUNDLED = Path(checks.__file__).parent
OPEN = '"From 100 to 110": is 110 drawn?'


@pytest.fixture(scope="module")
def hub(hub_cache, tmp_path_factory):
    """A GPT-2-shaped model with random weights and room for the prompts, in a hub cache as the client lays it out."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from interp.organisms import folder

    source = tmp_path_factory.mktemp("source")
    size = {"vocab_size": 2048, "n_positions": 640, "n_embd": 32, "n_layer": 2, "n_head": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**size, bos_token_id=2047, eos_token_id=2047)).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder("organism") / name, source / name)
    with pytest.MonkeyPatch.context() as patch:
        hub_cache(tmp_path_factory.mktemp("hub"), NAME, {"main": ("f" * 40, source)}, patch)
        yield NAME


@pytest.fixture(scope="module")
def small(hub):
    """The model's own values, measured without the package under test, in the file's format."""
    model = interp.load(hub)

    def measured(name):
        asked = RUNS[name]
        return interp.run(asked["experiment"], model, asked.get("pools"), **asked["parameters"])

    article, heads, ablation, prompt, found = map(measured, RUNS)
    half = article.summary.sel(definition="article", measure="log_prob", bound="mean")
    second = article.log_prob.where(article.half == 2).mean(["batch", "position"])
    score = heads.score.sel(pool="0:2000", key_kind="induction").mean("batch")
    best = sorted(np.ndindex(2, 4), key=lambda at: -float(score[at]))[:3]
    k_composition = heads.composition.sel(mode="K", from_layer=0, from_head=2, layer=1, head=3)
    value = found.value.sel(indicator="e_out_cosine")
    asked = int(found.token[found.max_probability.notnull()][0])
    lost = ablation.lost.sel(layer=1, head=0).mean() / ablation.gain.mean()
    numbers = [
        ("unused-first", half.sel(pool="177:188", part="first"), "article", "log_prob",
         {"pool": "177:188", "part": "first", "definition": "article"}),
        ("ordinary-second", second.sel(pool="100:111"), "article", "log_prob",
         {"pool": "100:111", "part": "second", "definition": "article"}),
        ("score", score[1, 2], "heads", "head_score", {"head": "L1H2", "key_kind": "induction"}),
        ("above", (score > 0.08).sum(), "heads", "heads_above", {"key_kind": "induction", "above": 0.08}),
        ("composition", k_composition / heads.baseline.sel(mode="K", bound="mean"), "heads", "composition_ratio",
         {"mode": "K", "sender": "L0H2", "receiver": "L1H3"}),
        ("ablation", lost, "ablation", "ablation_share", {"head": "L1H0"}),
        ("prompt", prompt.correct.sel(token=prompt.pool == "182").mean(), "prompt", "prompted", {"pool": "182"}),
        ("said", prompt.probability.max(), "prompt", "prompted_probability", None),
        ("indicator", value.mean(), "undertrained", "indicator_mean", COSINE),
        ("probability", found.max_probability.sel(token=asked), "undertrained", "max_probability_of", {"token": asked}),
    ]  # fmt: skip
    # the pool whose token got the most
    most = str(prompt.pool.values[int(prompt.probability.max("new_token").values.argmax())])
    entries = [
        {"id": name, "what": f"{name}.", "source": "us", "published": float(number), "tolerance": 1e-5,
         "why": "Rounding.", "run": run, "read": read, "arguments": {"pool": most} if arguments is None else arguments}
        for name, number, run, read, arguments in numbers
    ]  # fmt: skip
    entries[-1] |= {"scale": "log10"}
    entries.append(
        {"id": "heads", "what": "The strongest heads.", "source": "us", "published": [f"L{la}H{h}" for la, h in best],
         "minimum": 3, "why": "All.", "run": "heads", "read": "top_heads",
         "arguments": {"key_kind": "induction", "most": 3}}
    )  # fmt: skip
    return {
        "title": "A small model", "model": hub, "sources": {"us": {"citation": "this test"}},
        "runs": RUNS, "checks": entries,
    }  # fmt: skip


def written(content, path):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.experiment
def test_the_whole_path_on_a_cached_hub_model(small, tmp_path):
    out, said = tmp_path / "out", []
    result = reproduce(written(small, tmp_path / "small.json"), out=out, log=said.append)
    assert result.passed.all(), result[["published", "ours", "difference"]].to_dataframe()
    assert [line.partition(", ")[0] for line in said] == [f"{i} of 5" for i in range(1, 6)]
    assert np.isfinite(result.published).all()
    assert set(result.check.values) == {entry["id"] for entry in small["checks"]}
    record = results.provenance(result)
    assert record["model"]["revision"] == "f" * 40
    assert (record["schema"], record["experiment"], record["seed"]) == (SCHEMA, "reproduce", 0)
    assert {name: Request.from_json(one).experiment for name, one in record["runs"].items()} == {
        name: one["experiment"] for name, one in RUNS.items()
    }
    saved = results.load(out)
    assert saved.identical(result)
    assert views.view_of(saved) is view
    assert all((out / name / "result.nc").is_file() for name in RUNS)

    # one value is wrong: that check fails, and nothing is run again
    wrong = json.loads(json.dumps(small))
    at = next(entry for entry in wrong["checks"] if entry["id"] == "score")
    at["published"] += 0.01
    said.clear()
    again = reproduce(written(wrong, tmp_path / "wrong.json"), out=out, log=said.append)
    assert again.check[~again.passed].values.tolist() == ["score"]
    assert float(again.difference.sel(check="score")) == pytest.approx(-0.01)
    assert [line.split(": ")[1] for line in said if ": " in line] == [STORED] * 5
    drop = [name for name in again.coords if name != "check"]
    others = result.check.values != "score"
    assert again.drop_vars(drop).isel(check=others).equals(result.drop_vars(drop).isel(check=others))

    # the command says so with its exit code
    for name, code in (("small", 0), ("wrong", 1)):
        done = CliRunner().invoke(app, ["reproduce", str(tmp_path / f"{name}.json"), "--out", str(out)])
        assert done.exit_code == code, done.output
        assert ("FAIL score" in " ".join(done.output.split())) == bool(code)

    # as a missing head does, where all are wanted
    names = next(entry for entry in small["checks"] if entry["id"] == "heads")["published"]
    other = next(f"L0H{i}" for i in range(4) if f"L0H{i}" not in names)
    wrong = json.loads(json.dumps(small))
    wrong["checks"][-1]["published"][0] = other
    third = reproduce(written(wrong, tmp_path / "third.json"), out=out)
    assert third.check[~third.passed].values.tolist() == ["heads"]
    assert (third.ours.sel(check="heads"), third.difference.sel(check="heads")) == (2, -1)
    wrong["checks"][-1]["minimum"] = 2
    assert reproduce(written(wrong, tmp_path / "fourth.json"), out=out).passed.all()


def _gpt2(hub, run):
    """The bundled file of GPT-2's values on the small model, one of its runs alone."""
    content = json.loads((BUNDLED / "gpt2.json").read_text())
    content |= {"model": hub, "runs": {run: content["runs"][run]}}
    content["checks"] = [check for check in content["checks"] if check["run"] == run]
    return content


@pytest.mark.experiment
def test_both_readings_of_an_ambiguous_source_are_run_and_shown(hub, tmp_path):
    """The article's "100 to 110" with and without 110: one that passes as a whole is enough, and says so."""
    pools = ["177:188", "100:110", "100:111"]
    measured = interp.run("repeated_tokens", interp.load(hub), pools, protocol="article")
    summary = measured.summary.sel(definition="article", measure="log_prob", bound="mean")
    content = _gpt2(hub, "article")
    assert content["runs"]["article"]["pools"] == pools
    for check in content["checks"]:
        part, pool = check["arguments"]["part"], check["arguments"]["pool"]
        wanted = "100:110" if "question" in check else pool
        check |= {"published": float(summary.sel(part=part, pool=wanted)), "tolerance": 1e-5}
    path, out = written(content, tmp_path / "values.json"), tmp_path / "out"
    done = CliRunner().invoke(app, ["reproduce", str(path), "--out", str(out), "--format", "html"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert f"{OPEN} no, randint(100, 110): 2 of 2 pass; yes, randint(100, 111): 0 of 2 pass." in said
    assert "4 of 4 published values are reproduced" in said
    assert said.count("other reading") == 2
    assert "FAIL" not in said
    result = results.load(out)
    assert result.check[~result.passed].values.tolist() == [
        "article-ordinary-first-inclusive", "article-ordinary-second-inclusive",
    ]  # fmt: skip
    assert result.reproduced.all()
    legend = {trace.name: len(trace.y) for trace in view.published_and_ours(result).data}
    assert legend["ours: another reading passes"] == 2
    assert "ours: fail" not in legend

    # no reading gives both values: what fails, fails
    for check in content["checks"]:
        if check["id"].startswith("article-ordinary-second"):
            check["published"] = float(summary.sel(part="second", pool="100:111"))
    written(content, path)
    done = CliRunner().invoke(app, ["reproduce", str(path), "--out", str(out), "--format", "html"])
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    assert "randint(100, 110): 1 of 2 pass; yes, randint(100, 111): 1 of 2 pass." in said
    assert "3 of 4 published values are reproduced" in said
    result = results.load(out)
    assert result.reproduced.equals(result.passed)
    assert result.check[~result.passed].values.tolist() == [
        "article-ordinary-second", "article-ordinary-first-inclusive",
    ]  # fmt: skip


@pytest.mark.experiment
def test_every_published_token_is_compared_by_indicator_and_probability(hub, tmp_path):
    """The entries of the 26 tokens and their run as they are, on tokens that the small model is asked."""
    content = _gpt2(hub, "undertrained")
    asked = content["runs"]["undertrained"]["parameters"]
    assert asked == {
        "indicator": "e_out_cosine", "reference_pool": "177:188", "verify_tokens": "detected", "precision": "float32",
    }  # fmt: skip
    asked["fdr"] = 0.9  # random weights hide no token
    found = interp.run("undertrained", interp.load(hub), **asked)
    assert json.loads(found.attrs["reference"])["ids"] == list(range(177, 188))
    value, probability = found.value.sel(indicator="e_out_cosine"), found.max_probability
    tested = iter(found.token[probability.notnull()].values.tolist())
    stands_for: dict[int, int] = {}
    content["checks"] = [check for check in content["checks"] if "token" in check["arguments"]]
    for check in content["checks"]:
        token = check["arguments"]["token"]
        stands_for[token] = stands_for[token] if token in stands_for else next(tested)
        of = value if check["read"] == "indicator_of" else probability
        check["published"] = float(of.sel(token=stands_for[token]))
        check["arguments"]["token"] = stands_for[token]
    assert len(content["checks"]) == 2 * len(stands_for) == 52
    content["checks"][-1]["published"] *= 10  # a decade, and half of one is allowed
    result = reproduce(written(content, tmp_path / "values.json"), out=tmp_path / "out")
    assert result.check[~result.passed].values.tolist() == [content["checks"][-1]["id"]]
    assert float(result.difference[-1]) == pytest.approx(-1)
    assert np.abs(result.difference[:-1]).max() < 1e-6


@pytest.mark.experiment
def test_an_interrupted_command_resumes(small, tmp_path, monkeypatch):
    few = small | {"checks": [entry for entry in small["checks"] if entry["run"] in ("article", "ablation")]}
    path, run = written(few, tmp_path / "few.json"), checks.run_request

    def interrupted(request, *args, **kwargs):
        if request.experiment == "head_ablation":
            raise KeyboardInterrupt
        return run(request, *args, **kwargs)

    monkeypatch.setattr(checks, "run_request", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce(path, out=tmp_path / "out")
    monkeypatch.undo()
    said = []
    result = reproduce(path, out=tmp_path / "out", log=said.append)
    assert result.passed.all()
    assert said == [
        "1 of 2, article (repeated_tokens)",
        f"{tmp_path / 'out' / 'article'}: {STORED}",
        "2 of 2, ablation (head_ablation)",
    ]
    said.clear()
    reproduce(path, out=tmp_path / "out", fresh=True, log=said.append)
    assert said == ["1 of 2, article (repeated_tokens)", "2 of 2, ablation (head_ablation)"]


@pytest.mark.experiment
def test_kept_results_are_used_only_for_the_same_run(organism, tmp_path):
    import torch

    content = _organism_values(["repeated_tokens"])
    path, said = written(content, tmp_path / "values.json"), []

    def go(**options):
        said.clear()
        reproduce(path, out=tmp_path / "out", model=organism, log=said.append, **options)
        return [line for line in said[1:] if not line.endswith("running again")]

    stored = [f"{tmp_path / 'out' / 'repeated_tokens'}: {STORED}"]
    assert go() == []
    assert go() == stored
    assert go(seed=1) == []
    assert go(seed=0) == []
    row = organism.original_model.get_input_embeddings().weight
    before = row[5].detach().clone()
    try:
        with torch.no_grad():
            row[5] += 1
        assert go() == []
    finally:
        with torch.no_grad():
            row[5] = before
    assert go() == []
    (tmp_path / "out" / "repeated_tokens" / "result.nc").write_bytes(b"half of a file")
    assert go() == []
    # a run of one's own into the same folder is not taken for it
    interp.run("repeated_tokens", organism, ["unexposed"], batch=2, length=5, out=tmp_path / "out" / "repeated_tokens")
    assert go() == []
    assert go() == stored


def _organism_values(names):
    check = {
        "what": "Copied.", "source": "us", "published": 0, "tolerance": 0.2, "why": "Almost certain.", "run": names[0],
        "read": "log_prob", "arguments": {"part": "second"},
    }  # fmt: skip
    runs = {
        name: {"experiment": name, "pools": ["ordinary"], "parameters": {"batch": 4, "length": 20}} for name in names
    }
    return {
        "title": "The organism", "model": "organism",
        "sources": {"us": {"citation": "this test", "url": "https://here"}}, "runs": runs,
        "checks": [check | {"id": "copied"}],
    }  # fmt: skip


@pytest.fixture(scope="module")
def heads(organism):
    return interp.run("attention_scores", organism, ["ordinary", "unexposed"], batch=8)


def test_readers_of_heads(organism, heads):
    from interp.heads import classify_heads
    from interp.tokens import repeated

    score = heads.score.sel(pool="ordinary").mean("batch")
    induction = readers.top_heads(heads, key_kind="induction", most=2, pool="ordinary")
    previous = readers.top_heads(heads, key_kind="previous", most=1, pool="ordinary")
    assert all(name.startswith("L1") for name in induction)  # the circuit of the bundled models
    assert previous[0].startswith("L0")
    for name in induction:
        assert readers.head_score(heads, head=name, key_kind="induction", pool="ordinary") > 0.6
    at = (int(previous[0][1]), int(previous[0][3]))
    by_hand = float(score.sel(key_kind="previous", layer=at[0], head=at[1]))
    assert readers.head_score(heads, head=previous[0], key_kind="previous", pool="ordinary") == by_hand > 0.8
    assert readers.heads_above(heads, key_kind="induction", above=0.6, pool="ordinary") == 2
    assert readers.heads_above(heads, key_kind="induction", above=0.6, pool="unexposed") == 0
    pool = interp.pools(["ordinary"], organism)[0]
    found = classify_heads(organism, repeated(pool, batch=8, length=25, bos=2047)).expand_dims(pool=["ordinary"])
    assert set(induction) <= set(readers.classified_heads(found, kind="induction"))
    assert readers.classified_heads(found, kind="previous") == sorted(
        f"L{la}H{h}" for la, h in heads_of_kind(found.isel(pool=0), "previous")
    )


def test_readers_of_under_trained_tokens():
    """On the bundled model's result, every token asked, that the figures are drawn from."""
    found = results.load(Path(__file__).parent.parent / "figures" / "undertrained")
    assert results.provenance(found)["model"]["name"] == "organism"
    exposure = {int(t): int(n) for t, n in zip(found.token.values, found.exposure.values, strict=True)}
    strongest = readers.strongest_tokens(found, **COSINE, most=10)
    assert len(strongest) == 10
    assert all(exposure[int(i)] <= UNDERTRAINED_TO for i in strongest)  # the truth is known here
    values = [readers.indicator_of(found, **COSINE, token=int(i)) for i in strongest]
    assert values == sorted(values)
    assert all(readers.max_probability_of(found, token=int(i)) < 0.01 for i in strongest)
    usual = int(found.token[found.exposure.values.argmax()])
    mean, spread = (read(found, **COSINE) for read in (readers.indicator_mean, readers.indicator_deviation))
    assert max(values) < mean - 2 * spread
    assert readers.indicator_of(found, **COSINE, token=usual) > mean / 2
    fine = (found.category == "OK").values
    cosine = found.value.sel(indicator="e_out_cosine").values
    lowest = fine & (cosine <= np.quantile(cosine[fine], 0.02))
    by_hand = int((found.max_probability.values[lowest] < 0.01).sum())
    assert readers.verified_count(found, **COSINE) == by_hand > 10
    everything = readers.verified_count(found, **COSINE, share=1.0, category="")
    assert everything == int((found.max_probability < 0.01).sum()) > by_hand
    # nothing detected, nothing asked: not measured, which is no mistake in the file
    unasked = found.drop_vars("max_probability")
    assert math.isnan(readers.max_probability_of(unasked, token=5))
    assert readers.verified_count(unasked, **COSINE) == 0
    assert readers.strongest_tokens(unasked, **COSINE, most=3) == []
    with pytest.raises(InterpError, match="no token is in the category 'NONE'"):
        readers.indicator_mean(found, **COSINE, category="NONE")
    with pytest.raises(InterpError, match="no token is of the kind 'none': use one of byte, text"):
        readers.strongest_tokens(found, **COSINE, most=3, kind="none")


def test_bytes_are_not_counted_among_the_published_tokens():
    """Defect: single bytes that no training text held are of the category OK, and stood before all others."""
    found = results.load(Path(__file__).parent.parent / "figures" / "undertrained")
    kind = dict(zip(found.token.values.tolist(), found.kind.values, strict=True))
    every = readers.strongest_tokens(found, **COSINE, most=200)
    of_text = readers.strongest_tokens(found, **COSINE, most=200, kind="text")
    assert "byte" in {kind[int(i)] for i in every}
    assert {kind[int(i)] for i in of_text} == {"text"}
    assert [i for i in every if kind[int(i)] == "text"] == of_text[: sum(kind[int(i)] == "text" for i in every)]
    # the share stays that of the whole category, as published
    fine = (found.category == "OK").values
    cosine = found.value.sel(indicator="e_out_cosine").values
    lowest = fine & (cosine <= np.quantile(cosine[fine], 0.1)) & (found.kind == "text").values
    by_hand = int((found.max_probability.values[lowest] < 0.01).sum())
    counts = [readers.verified_count(found, **COSINE, share=0.1, kind=kind) for kind in ("", "text", "byte")]
    assert counts[1] == by_hand
    assert counts[0] == counts[1] + counts[2] > counts[1]


def test_readers_list_what_is_available(heads):
    with pytest.raises(InterpError, match="2 pools: name one of ordinary, unexposed"):
        readers.head_score(heads, head="L0H0", key_kind="previous")
    with pytest.raises(InterpError, match=r"no head L5H5: its last is L1H3"):
        readers.head_score(heads, head="L5H5", key_kind="previous", pool="ordinary")
    with pytest.raises(InterpError, match=r"'5\.5' is not a head"):
        readers.head_score(heads, head="5.5", key_kind="previous", pool="ordinary")
    with pytest.raises(InterpError, match="no key_kind 'inducton': use one of induction, previous"):
        readers.top_heads(heads, key_kind="inducton", most=1, pool="ordinary")
    with pytest.raises(InterpError, match="no 'summary': read it from another experiment, or read one of score"):
        readers.log_prob(heads, part="first")


def test_table_and_figure(organism, tmp_path):
    content = _organism_values(["repeated_tokens"])
    first = content["checks"][0]
    content["checks"] += [
        first | {"id": "[wrong] <b>", "published": 3.0, "tolerance": 0.1, "why": "None to speak of."},
        first | {"id": "decades", "published": 1e-9, "tolerance": 1, "scale": "log10"},  # a log-prob is below 0
        first | {"id": "exact", "published": 0, "tolerance": 0},
    ]
    result = reproduce(written(content, tmp_path / "values.json"), out=tmp_path / "out", model=organism)
    assert result.passed.values.tolist() == [True, False, False, False]
    assert math.isnan(float(result.difference.sel(check="decades")))
    saved = results.load(tmp_path / "out")
    file = io.StringIO()
    console = Console(file=file, width=140)
    for line in table(saved):
        console.print(line)
    shown = file.getvalue()
    assert "The organism: published, and measured here on 'organism'" in shown
    assert "[wrong] <b>" in shown
    assert "Tolerance: None to speak of." in shown
    assert "1 of 4 published values are reproduced" in shown
    assert "this test https://here" in shown
    rows = [line.split() for line in shown.splitlines() if line.split()[-1:] in (["pass"], ["FAIL"])]
    assert [row[-1] for row in rows] == ["pass", "FAIL", "FAIL", "FAIL"]
    drawn = view.published_and_ours(saved)
    dots = {trace.name: trace for trace in drawn.data}
    apart = float(saved.difference.sel(check="copied")) / 0.2
    assert dots["ours: pass"].x == pytest.approx([apart])
    assert list(dots["ours: fail"].x) == [-3, 0, -3]  # far outside, not measurable, not exact
    assert dots["ours: fail"].y == ("[wrong] &lt;b&gt;", "decades", "exact")
    assert list(dots["ours: fail"].marker.symbol) == ["triangle-left", "x-open", "triangle-left"]
    assert dots["published, with its tolerance"].error_x.array == pytest.approx([1, 1, 1, 0])
    drawn.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["checks"][0].update(read="loss_of"),
         "check 'copied': 'loss_of' does not read a number: use log_prob, loss"),
        (lambda c: c["checks"][0].update(run="other"), r"check 'copied': unknown run 'other': use repeated_tokens"),
        (lambda c: c["checks"][0].update(source="them"), "unknown source 'them': use us"),
        (lambda c: c["runs"]["repeated_tokens"].update(experiment="repeated"),
         "unknown experiment 'repeated': use activation"),
        (lambda c: c["runs"]["repeated_tokens"]["parameters"].update(blocks=2),
         "the experiment 'repeated_tokens' does not take 'blocks': use batch_size"),
        (lambda c: c["runs"]["repeated_tokens"]["parameters"].update(batch="2"),
         "'batch' is \"2\": use a valid integer"),
        (lambda c: c["runs"]["repeated_tokens"].update(pools=[177]),
         "run 'repeated_tokens': 'pools' is 177: use a valid string"),
        (lambda c: c["runs"]["repeated_tokens"].update(pools=[]), "names no pool"),
        (lambda c: c["runs"].update({"../x": c["runs"]["repeated_tokens"]}), r"run '\.\./x' is .*: String should match pattern"),
        (lambda c: c["checks"][0].pop("why"), "check 'copied' lacks 'why': it needs id, what"),
        (lambda c: c["checks"][0].update(tolerence=1), "check 'copied' does not take 'tolerence': use id, what"),
        (lambda c: c["checks"][0].update(tolerance=-1), "'tolerance' is -1: use greater than or equal to 0"),
        (lambda c: c["checks"][0].pop("tolerance"), "a number has no minimum but a 'tolerance', 0 or more"),
        (lambda c: c["checks"][0].update(published="0"),
         "'published' is \"0\": use a valid number or a valid array"),
        (lambda c: c["checks"][0].update(published=["L0H0"]), "'log_prob' does not read a list: use top_heads, classified_heads"),
        (lambda c: c["checks"][0].update(published=math.inf), "'published' is Infinity: use a finite number"),
        (lambda c: c["checks"][0].update(scale="log10"), "above 0 on the scale log10"),
        (lambda c: c["checks"][0].update(tolerance=math.nan), "'tolerance' is NaN: use a finite number"),
        (lambda c: c["checks"][0].update(published=True), "'published' is true: use a valid number"),
        (lambda c: c["runs"]["repeated_tokens"]["parameters"].update(batch=True), "'batch' is true: use a valid integer"),
        (lambda c: c["runs"]["repeated_tokens"]["parameters"].update(weights="folded"), "does not take 'weights'"),
        (lambda c: c["runs"]["repeated_tokens"]["parameters"].update(protocol="paper"),
         "'protocol' is \"paper\": use 'default' or 'article'"),
        (lambda c: c["checks"][0].update(minimum=1), "a number has no minimum"),
        (lambda c: c.update(left_out=[""]), "'left_out' is \"\": String should have at least 1 character"),
        (lambda c: c.pop("model"), "the file lacks 'model': it needs title, model"),
        (lambda c: c["checks"][0].update(scale="ln"), "'scale' is \"ln\": use 'linear' or 'log10'"),
        (lambda c: c["checks"][0]["arguments"].update(half=1), "the reader 'log_prob' does not take 'half': use part, pool"),
        (lambda c: c["checks"][0]["arguments"].update(pool=1), "'pool' is 1: use a valid string"),
        (lambda c: c["checks"][0].update(arguments={}), "the reader 'log_prob' lacks 'part'"),
        (lambda c: c["checks"].append(c["checks"][0]), "two checks are called 'copied'"),
        (lambda c: c["checks"].clear(), "it has no checks"),
        (lambda c: c.update(checks={}), "'checks' is {}: use a valid array"),
        (lambda c: c["checks"].insert(0, 3), "check 1 is 3: use an object"),
        (lambda c: c["sources"].update(us="me"), "source 'us' is \"me\": use an object"),
        (lambda c: c["checks"][0].update(question="Which?"), "a 'question' and its 'reading' go together"),
        (lambda c: c["checks"][0].update(question="Which?", reading="this"), "'Which\\?' needs two or more readings"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_reported_in_one_line(change, message, tmp_path):
    content = _organism_values(["repeated_tokens"])
    change(content)
    with pytest.raises(InterpError, match=message) as caught:
        reproduce(written(content, tmp_path / "values.json"), out=tmp_path / "out", model="not loaded")
    assert "values.json: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("published", "minimum", "message"),
    [([], 1, "names nothing"), (["L0H0", "L0H0"], 1, "repeats something"), (["L0H0"], 2, "from 1 to 1")],
)
def test_mistakes_in_a_list(published, minimum, message, tmp_path):
    content = _organism_values(["repeated_tokens"])
    listed = {"read": "top_heads", "arguments": {"key_kind": "induction", "most": 1}}
    content["checks"][0] |= listed | {"published": published, "minimum": minimum}
    del content["checks"][0]["tolerance"]
    with pytest.raises(InterpError, match=message):
        read_values(written(content, tmp_path / "values.json"))


def test_names_of_the_last_release_are_accepted(tmp_path):
    content = _organism_values(["repeated_tokens"])
    content["runs"] |= {
        "heads": {"experiment": "attention_stripes"},
        "found": {"experiment": "undertrained", "parameters": {"verify_tokens": "called"}},
    }
    check = {"what": "W.", "source": "us", "published": ["L1H0"], "minimum": 1, "why": "W."}
    content["checks"] += [
        check | {"id": "of", "run": "heads", "read": "called_heads", "arguments": {"kind": "induction"}},
        check | {"id": "top", "run": "heads", "read": "top_heads", "arguments": {"stripe": "induction", "most": 1}},
    ]
    values = read_values(written(content, tmp_path / "values.json"))
    assert values.runs["heads"].experiment == "attention_scores"
    assert values.runs["found"].parameters == {"verify_tokens": "detected"}
    assert [check.read for check in values.checks] == ["log_prob", "classified_heads", "top_heads"]
    assert values.checks[2].arguments == {"key_kind": "induction", "most": 1}


def test_a_users_recorded_values_are_not_called_published(organism, tmp_path):
    content = _organism_values(["repeated_tokens"]) | {"regression": True}
    result = reproduce(written(content, tmp_path / "values.json"), model=organism, out=tmp_path)
    said = "\n".join(str(line) for line in views.tables(result))
    assert "recorded values come out within their tolerance" in said
    assert "published" not in said
    assert {request["budget"] for request in results.provenance(result)["runs"].values()} == {"standard"}


def test_files_and_models_that_are_not_available(organism, tmp_path):
    with pytest.raises(
        InterpError, match=r"no published values 'gpt9': use gpt2, gpt2-medium, pythia-6\.9b, smollm2, or the path"
    ):
        read_values("gpt9")
    path = tmp_path / "values.json"
    path.write_text(json.dumps(_organism_values(["repeated_tokens"]))[:-40])
    with pytest.raises(InterpError, match=r"values\.json is not valid JSON \(.*\): fix it there"):
        read_values(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InterpError, match="is not valid JSON"):
        read_values(path)
    path.write_text("[]")
    with pytest.raises(InterpError, match=r"the file is \[\]: use an object"):
        read_values(path)
    with pytest.raises(InterpError, match="is not bundled, not in the hub cache") as caught:
        reproduce("gpt2", model="nobody/gpt2", out=tmp_path / "out")
    assert "\n" not in str(caught.value)
    # what only the run reveals is reported with its name
    content = _organism_values(["repeated_tokens"])
    content["runs"]["repeated_tokens"]["pools"] = ["5000:6000"]
    with pytest.raises(InterpError, match=r"run 'repeated_tokens': pool '5000:6000' holds token id 5000"):
        reproduce(written(content, path), out=tmp_path / "out", model=organism)
    content = _organism_values(["repeated_tokens"])
    content["checks"][0]["arguments"]["part"] = "third"
    with pytest.raises(InterpError, match="check 'copied': 'summary' has no part 'third': use one of first, second"):
        reproduce(written(content, path), out=tmp_path / "out", model=organism)


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "pythia-6.9b"])
def test_the_bundled_values_are_well_formed(name):
    """Reading checks experiments, parameters, readers and their arguments; the rest: nothing is missing or unused."""
    assert name in bundled()
    values = read_values(name)
    assert values.model.endswith(name)
    assert {check.run for check in values.checks} == set(values.runs)
    assert {check.source for check in values.checks} == set(values.sources)
    for check in values.checks:
        assert values.sources[check.source].citation
        assert check.read in READERS
        assert len(check.why) > 10
        assert isinstance(check.published, tuple) == (check.read in LISTS)
        pool = check.arguments.get("pool")  # the pools that are read are run
        assert pool is None or pool in values.runs[check.run].pools
    assert not any("/" in text and "http" not in text and "interp run" not in text for text in values.left_out)


def test_the_bundled_values_are_the_published_ones():
    of = {check.id: check.published for check in read_values("gpt2").checks}
    assert (of["article-unused-first"], of["article-unused-second"]) == (-17.270, -19.675)
    for reading in ("", "-inclusive"):
        pair = of[f"article-ordinary-first{reading}"], of[f"article-ordinary-second{reading}"]
        assert pair == (-7.327, -0.971)
    assert set(of["induction-heads"]) == {"L5H5", "L6H9", "L7H10", "L5H1", "L7H2"}
    assert (of["loss-first"], of["loss-second"]) == (13.19, 0.22)
    assert (of["indicator-mean"], of["indicator-deviation"], of["verified-tokens"]) == (0.536, 0.070, 33)
    assert (of["indicator-40241"], of["probability-40241"]) == (0.00143921, 8.6e-9)
    assert (of["indicator-5815"], of["probability-5815"]) == (0.182786, 0.043)
    of = {check.id: check.published for check in read_values("gpt2-medium").checks}
    assert (of["indicator-mean"], of["indicator-deviation"], of["verified-tokens"]) == (0.489, 0.053, 17)
    assert (of["indicator-30897"], of["probability-30897"]) == (0.00444567, 3.9e-7)
    of = {check.id: check.published for check in read_values("pythia-6.9b").checks}
    assert (of["indicator-mean"], of["indicator-deviation"], of["verified-tokens"]) == (1.169, 0.063, 13)


@pytest.mark.parametrize(("name", "count"), [("gpt2", 26), ("gpt2-medium", 11), ("pythia-6.9b", 11)])
def test_the_published_tokens_agree_with_the_list_of_the_verified_ones(name, count):
    """Each has both values; those below 0.01, by rising indicator, are the list that is compared by name."""
    checks = {check.id: check for check in read_values(name).checks}
    tokens = [id.removeprefix("indicator-") for id in checks if id.removeprefix("indicator-").isdigit()]
    assert len(tokens) == count
    indicators = [checks[f"indicator-{token}"].published for token in tokens]
    assert indicators == sorted(indicators)
    verified = tuple(token for token in tokens if checks[f"probability-{token}"].published < 0.01)
    assert checks["strongest-tokens"].published == verified
    assert checks["strongest-tokens"].arguments["most"] == len(verified) <= checks["verified-tokens"].published
    for token in tokens:
        assert str(checks[f"indicator-{token}"].arguments["token"]) == token
        assert str(checks[f"probability-{token}"].arguments["token"]) == token
        assert checks[f"indicator-{token}"].allowed < 0.1 * checks[f"indicator-{token}"].published
        assert checks[f"probability-{token}"].scale == "log10"


def test_results_go_to_a_folder_with_the_name_of_the_values(monkeypatch):
    """Also where a point stands in it."""

    def told(values, *, out, **_):
        raise InterpError(f"to {out}")

    monkeypatch.setattr("interp.cli.reproducing.reproduce", told)
    assert "to results/reproduce_pythia-6.9b" in CliRunner().invoke(app, ["reproduce", "pythia-6.9b"]).output
    assert "to results/reproduce_mine" in CliRunner().invoke(app, ["reproduce", "somewhere/mine.json"]).output
