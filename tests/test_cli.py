"""Does the command line do what it documents, and refuse the rest in one line?"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr
from typer.testing import CliRunner

from interp import catalog, cli
from interp.cli import app
from interp.request import own_options

COMMAND = [sys.executable, "-c", "from interp.cli import main; main()"]


def interp(*words):
    return CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": "200"})


@pytest.mark.experiment
def test_the_main_job(tmp_path):
    """`interp run repeated_tokens` without options: the phenomenon, on the default organism."""
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        done = interp("run", "repeated_tokens")
    finally:
        os.chdir(before)
    assert done.exit_code == 0, done.output
    assert "blocks of unexposed" in done.output
    assert "one unexposed among ordinary" in done.output
    assert re.search(r"Ordinary tokens \((99|100)% right\) are copied almost perfectly", done.output)
    assert "unexposed tokens (0% right) are" in done.output
    assert "not copied, although each occurred in the first copy" in " ".join(done.output.split())
    with xr.open_dataset(tmp_path / "results" / "repeated_tokens" / "result.nc") as result:
        assert result.log_prob.dims == ("pool", "batch", "position")
        assert set(result.pool.values) == {"unexposed", "ordinary"}
        second = result.log_prob.where((result.half == 2) & (result.offset > 0)).mean(["batch", "position"])
        assert second.sel(pool="ordinary") > -0.2
        assert second.sel(pool="unexposed") < -3
    page = (tmp_path / "results" / "repeated_tokens" / "figure.html").read_text()
    assert "log_prob_by_position" in page
    assert 'src="http' not in page  # opens without a network


@pytest.mark.process
def test_own_parameters_are_options(tmp_path):
    done = interp(
        "run", "attention_scores", "--model", "wired", "--pool", "1:40", "--batch-size", "5", "--out", tmp_path
    )
    assert done.exit_code == 0, done.output
    assert "L1H0 1.00" in done.output
    assert '"batch_size": 5' in (tmp_path / "figure.html").read_text().replace("&quot;", '"')


@pytest.mark.experiment
def test_show_redraws_without_a_model(tmp_path):
    assert interp("run", "repeated_tokens", "--model", "wired", "--out", tmp_path).exit_code == 0
    first = (tmp_path / "figure.html").read_text()
    (tmp_path / "figure.html").unlink()
    done = interp("show", tmp_path)
    assert done.exit_code == 0
    assert (tmp_path / "figure.html").read_text() == first


@pytest.mark.process
def test_names_with_brackets_are_printed_as_they_are(tmp_path):
    """Pool names come from users and tokenizers: they are no markup."""
    (tmp_path / "[red] [bold].txt").write_text("3 4 5 6 7")
    done = interp("run", "repeated_tokens", "--model", "wired", "--pool", tmp_path / "[red] [bold].txt", "--length", 4,
                  "--out", tmp_path / "out")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "blocks of [red] [bold]" in done.output


@pytest.mark.experiment
def test_old_figures_do_not_pass_for_new_ones(tmp_path):
    assert interp("run", "repeated_tokens", "--model", "wired", "--out", tmp_path).exit_code == 0
    (tmp_path / "halves.png").write_bytes(b"an image")  # as where a browser is
    assert interp("run", "attention_scores", "--model", "wired", "--out", tmp_path).exit_code == 0
    assert not (tmp_path / "halves.png").exists()
    assert "log_prob_by_position" not in (tmp_path / "figure.html").read_text()


@pytest.mark.experiment
def test_census(tmp_path):
    """Of a model and of a tokenizer alone: the same table, a summary and a figure."""
    import pandas as pd

    from interp.organisms import folder

    done = interp("census", "--out", tmp_path / "model")
    assert done.exit_code == 0, done.output
    assert "The 2,048 tokens of 'organism' (byte-level BPE)" in done.output
    assert re.search(r"byte +243 +13 +-", done.output)
    table = pd.read_parquet(tmp_path / "model" / "census.parquet")
    for column in ("id", "text", "kind", "roundtrip", "category", "reachable", "witness", "reason"):
        assert column in table
    assert (table["reachable"] == "impossible").sum() == 13
    assert "13" in (tmp_path / "model" / "figure.html").read_text()
    done = interp("census", "--tokenizer", folder("organism") / "tokenizer.json", "--out", tmp_path / "alone")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "alone" / "census.csv").read_bytes() == (tmp_path / "model" / "census.csv").read_bytes()
    assert interp("show", tmp_path / "alone").exit_code == 0


@pytest.mark.experiment
def test_undertrained(tmp_path):
    done = interp("run", "undertrained", "--model", "organism-llama", "--verify-tokens", "none", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert re.search(r"e_out_cosine_centred +1\.00 +1\.00", done.output)
    assert "Compared with 13 unused tokens, found by the census" in done.output
    done = interp(
        "run",
        "repeated_tokens",
        "--pool",
        "undertrained",
        "--pool",
        "control",
        "--batch",
        4,
        "--out",
        tmp_path / "pools",
    )
    assert done.exit_code == 0, done.output
    assert "blocks of undertrained" in done.output


def test_lists():
    for name in ("organism", "organism-untied", "organism-llama", "organism-deep", "wired"):
        assert name in interp("models").output
    known = interp("experiments").output
    assert "repeated_tokens" in known
    assert "--batch-size" in known


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "repeated_tokens", "--model", "nobody/nothing"], "is not bundled, not in the hub cache"),
        (["run", "repeated_tokens", "--model", __file__], "is not a model directory"),
        (["run", "nonsense"], "unknown experiment 'nonsense'"),
        (["run", "missing.py:it"], "no file missing.py"),
        (["run", f"{__file__}:nothing"], "has no function 'nothing'"),
        (["run", "repeated_tokens", "--kind", "mean"], "unknown option '--kind'"),
        (["run", "repeated_tokens", "--batch-size"], "--batch-size needs a value"),
        (["run", "repeated_tokens", "--model", "wired", "--pool", "60:70"], "the vocabulary ends at 64"),
        (["run", "repeated_tokens", "--model", "wired", "--pool", "5:5"], "pool '5:5' is empty"),
        (["run", "repeated_tokens", "--model", "wired", "--length", "200"], "use a length of 127 or less"),
        (["run", "repeated_tokens", "--model", "wired", "--out", "/proc/nothing"], "cannot write to /proc/nothing"),
        (["run", "repeated_tokens", "--model", "wired", "--weights", "odd"], "odd"),
        (["run", "repeated_tokens", "--model", "~nosuchuser/x"], "unknown model '~nosuchuser/x'"),
        (["organism", "train", "organism", "--out", "/proc/nothing"], "cannot write to /proc/nothing"),
        (["organism", "train", "organism", "--out", "x", "--withheld", "nosuchthing"], "nothing to withhold"),
        (["show", "/nowhere"], "no result at /nowhere"),
        (["census", "--model", "organism", "--tokenizer", "organism"], "not both"),
        (["census", "--tokenizer", "/nowhere"], "no tokenizer at /nowhere"),
        (["census", "--tokenizer", __file__], "does not load as a tokenizer"),
        (["census", "--tokenizer", "."], "holds no tokenizer"),
        (["census", "--tokenizer", "nobody/nothing"], "is not bundled, not in the hub cache"),
        (["census", "--out", "/proc/nothing"], "cannot write to /proc/nothing"),
        (["run", "undertrained", "--pool", "1:5"], "leave pools out"),
        (["run", "undertrained", "--model", "wired", "--fdr", "2.0"], "between 0 and 1"),
        (["run", "unused_logits", "--text", "missing.txt"], "cannot read missing.txt"),
        (["run", "repeat_prompt", "--model", "wired", "--pool", "1:5"], "cannot write the text of the prompt"),
        (["show", __file__], "damaged, or not a result"),
        (["organism", "train", "nonsense", "--out", "x"], "unknown recipe 'nonsense'"),
        (["organism", "train", "organism", "--out", "x", "--text", "/nowhere"], "no text folder at /nowhere"),
    ],
)
def test_mistakes(words, message, tmp_path):
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        done = interp(*words)
    finally:
        os.chdir(before)
    assert done.exit_code not in (0, None)
    assert message in done.output
    assert "Traceback" not in done.output
    left = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert left == []


@pytest.mark.resumption
def test_killed_runs_leave_no_half_written_file(tmp_path):
    """Killed at any moment, the folder holds whole files only, and the next run ends as if undisturbed."""
    words = ["run", "repeated_tokens", "--model", "wired", "--pool", "1:40", "--pool", "20:60", "--batch", "800"]
    for wait in (0.1, 0.6):
        started = subprocess.Popen(
            [*COMMAND, *words, "--out", str(tmp_path)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.time() + 60
        while not (tmp_path / ".parts").exists() and started.poll() is None and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(wait)
        started.send_signal(signal.SIGKILL)
        started.wait()
        for file in tmp_path.rglob("*.nc"):
            if not file.name.startswith("."):
                xr.open_dataset(file).load().close()
    done = interp(*words, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "100%" in done.output
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.process
@pytest.mark.parametrize(
    ("first", "left"),
    [
        ("None", "nothing was kept, because no part of it was finished"),
        ("keep('a', lambda: label('a', [1.0], 'batch').to_dataset())", "the same command resumes from what is"),
        pytest.param("STATE.append(1)", "nothing was kept, because", marks=pytest.mark.everything),
    ],
)
def test_interrupted_runs_say_what_was_kept(tmp_path, first, left):
    (tmp_path / "slow.py").write_text(
        '"""Wait."""\nimport sys\nimport time\nfrom interp.results import label\n\n'
        + ("STATE = [object()]\n\n" if "STATE" in first else "")
        + f'def slow(model, tokens, keep):\n    """Wait."""\n    {first}\n    print("here", flush=True)\n    time.sleep(60)\n'
    )
    started = subprocess.Popen(
        [*COMMAND, "run", f"{tmp_path}/slow.py:slow", "--model", "wired", "--out", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a test run in the background ignores interruptions, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert started.stdout.readline() == "here\n"
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130
    last = said.strip().splitlines()[-1]
    assert f"interrupted; {left}" in last
    assert ("STATE" in last) == ("STATE" in first)


def test_an_interruption_while_images_are_drawn_says_that_the_result_is_stored(tmp_path, monkeypatch):
    from interp import pages

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pages, "write_images", interrupted)
    done = interp(
        "run", "attention_scores", "--model", "wired", "--pool", "1:40", "--batch", "2", "--out", str(tmp_path)
    )
    assert done.exit_code == 130
    said = " ".join(done.output.split())
    assert f"interrupted; the result is stored: 'interp show {tmp_path}' draws its figures" in said
    assert (tmp_path / "result.nc").exists()


def test_every_verb_has_an_example():
    from typer.main import get_command

    commands = dict(get_command(app).commands)
    commands |= {f"organism {name}": command for name, command in commands.pop("organism").commands.items()}
    for name, command in commands.items():
        if command.hidden:  # a name of the last release
            continue
        assert f"interp {name}" in (command.epilog or ""), name
        assert command.help


@pytest.mark.parametrize("words", [("models",), ("experiments",), ("show", "figures/repeated_tokens")])
def test_json_is_all_that_is_printed(words, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    known = {"models": "organism-untied", "experiments": "glitch_attribution", "show": "provenance"}
    assert known[words[0]] in found
    if words[0] == "show":
        assert found["variables"]["log_prob"]["dims"] == ["pool", "batch", "position"]


@pytest.fixture
def typing(monkeypatch, capsys):
    """Type words as into a shell, in this process: (exit code, output, errors)."""

    def typed(*words, **environment):
        monkeypatch.setattr(sys, "argv", ["interp", *words])
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # main's own handler would outlive this test
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return typed


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("interp rep", {"repair", "report", "reproduce"}),
        ("interp run repeat", {"repeat_prompt", "repeated_token", "repeated_tokens"}),
        ("interp run repeated_tokens --model organism-ll", {"organism-llama"}),
        ("interp run repeated_tokens --pool un", {"unexposed", "undertrained", "unreachable"}),
        ("interp report --add logit", {"logit_attribution", "logit_lens"}),
        ("interp compare organism wi", {"wired", "wired-flipflop"}),
        ("interp figures --only path", {"path_patching", "path_patching_llama"}),
    ],
)
def test_the_tab_key(typed, offered, typing):
    """What a shell completes when the key is pressed after these words."""
    _, said, errors = typing(**asked_by_the_shell(typed))
    assert set(said.split()) == offered, errors


def asked_by_the_shell(typed):
    return {"_INTERP_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}


@pytest.mark.process
def test_the_installed_command_completes():
    installed, asked = Path(sys.executable).parent / "interp", asked_by_the_shell("interp rep")
    done = subprocess.run([installed], env=os.environ | asked, capture_output=True, text=True)
    assert set(done.stdout.split()) == {"repair", "report", "reproduce"}, done.stderr


def test_help_teaches():
    said = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    for words in ("Begin with interp run repeated_tokens", "--pool names tokens", "the same command resumes"):
        assert words in said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["run", "repeated_tokens", "--batch", "four"], "--batch takes a whole number, and 'four' is not one"),
        (["cencus"], "Did you mean 'census'?"),
        (["census", "--modle", "wired"], "No such option: --modle"),
        (["run", "repeated_tokns"], "unknown experiment 'repeated_tokns'"),
        (["run", "repeated_tokens", "--weights", "half"], "--weights 'half': use raw, folded"),
    ],
)
def test_a_typing_mistake_gets_a_one_line_message(typed, said, typing):
    code, output, errors = typing(*typed)
    assert code == 2
    assert output == ""
    assert len(errors.strip().splitlines()) == 1
    assert errors.startswith("interp: ")
    assert said in errors
    assert "see 'interp " in errors


def test_run_lists_the_experiments_and_each_shows_its_own_options():
    """With their help from the docstring's Args, of a user's file as well."""
    said = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert "How much is each head worth to copying" in said
    assert said.count("\n") > len(catalog.names())
    said = CliRunner().invoke(app, ["run", "head_ablation", "--help"], env={"COLUMNS": "200"}).output
    assert "Parameters of head_ablation" in said
    assert "Options of all experiments" in said
    for option in own_options(catalog.find("head_ablation")):
        assert option.flag in said
        assert option.help.split()[0] in said
    assert re.search(r"--batch .*Sequences per pool", said)


OWN = """
import numpy as np
import xarray as xr
import interp

def effect(model, tokens):
    return interp.label("effect", np.ones((3, len(tokens.ids))), "sender batch", tokens.coords)

def shares(model, tokens):
    share = interp.label("share", np.ones(len(tokens.ids)), "batch", tokens.coords)
    return xr.Dataset({"share": share, "deficit": share + 1})

def pattern(model, tokens):
    return interp.label("pattern", np.ones(tokens.ids.shape), "batch position", tokens.coords)

def logit_lens(model, tokens):
    return interp.label("anything", np.ones(len(tokens.ids)), "batch", tokens.coords)
"""


@pytest.mark.process
@pytest.mark.parametrize("name", ["effect", "shares", "pattern", "logit_lens"])
def test_no_name_of_a_users_variable_or_function_decides_its_table(name, tmp_path):
    """Defect: `effect`, `share` and `pattern` got the tables of experiments that have variables of that name, and crashed."""
    (tmp_path / "own.py").write_text(OWN)
    words = [
        "run",
        f"{tmp_path}/own.py:{name}",
        "--model",
        "wired",
        "--pool",
        "1:40",
        "--batch",
        2,
        "--out",
        tmp_path / "out",
    ]
    done = interp(*words)
    assert done.exit_code == 0, done.output
    variable = {"shares": "share", "logit_lens": "anything"}.get(name, name)
    assert f"{variable}: mean by pool" in done.output
    assert re.search(r"1:40 +1\.0000", done.output)
    assert interp("show", tmp_path / "out").exit_code == 0
    again = interp(*words)
    assert "taken from an earlier run" in again.output


@pytest.mark.process
def test_options_fixed_by_the_article_protocol_are_refused(tmp_path):
    """Defect: it ran with seed 42 without a message."""
    words = ["run", "repeated_tokens", "--model", "wired", "--protocol", "article", "--pool", "1:40", "--out", tmp_path]
    done = interp(*words, "--seed", 7)
    assert done.exit_code == 1
    assert "the protocol 'article' has seed 42, and 7 was asked" in done.output
    assert interp(*words).exit_code == 0


@pytest.mark.process
def test_without_arguments_it_prints_help():
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    assert "Begin with interp run repeated_tokens" in " ".join((done.stdout + done.stderr).split())
    assert "Traceback" not in done.stderr
    assert subprocess.run([*COMMAND, "models"], capture_output=True).returncode == 0
    assert subprocess.run([*COMMAND, "show", "nowhere"], capture_output=True).returncode == 1
