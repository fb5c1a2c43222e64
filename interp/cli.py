"""`interp ...`: the command line. Every verb is one call into the library."""

from __future__ import annotations

import ast
import inspect
import json
import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from interp.errors import InterpError

if TYPE_CHECKING:
    import xarray as xr

_HELP = """Why does a language model that copies any ordinary token from its context fail on its glitch tokens?

Begin with [bold]interp run repeated_tokens[/bold]: a random block of tokens and its repeat, fed to a small bundled model whose glitch tokens are known.
[bold]interp report[/bold] puts all that can be asked of a model on one page.

--model takes a bundled name (see [bold]interp models[/bold]), any Hugging Face name, or a directory. --pool names tokens: unexposed, ordinary, dose=30,
undertrained, unreachable, fragments, text, 177:188, texts=" the"," of", a file of ids, control(unexposed).

A run leaves a folder with its result, its figures, and all that is needed to repeat it. Exit code 1: a mistake, in one line that says what to do
instead; 130: interrupted, the same command goes on from what is finished.
"""
_ASK, _READ, _MAKE = "Ask a model", "Read and share", "Make again what comes with interp"

app = typer.Typer(
    help=_HELP, rich_markup_mode="rich", no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
organism = typer.Typer(help="The bundled models: train them again.", no_args_is_help=True)
app.add_typer(organism, name="organism", rich_help_panel=_MAKE)
out, err = Console(), Console(stderr=True)


def _say(line: str, to: Console = out) -> None:
    """As it is: no markup in it, no colours, not wrapped."""
    to.print(line, markup=False, highlight=False, soft_wrap=True)


# for the shell's tab key; typer picks those that begin as what is typed
def _known_experiments() -> Sequence[str]:
    from interp import experiments

    return experiments.names()


def _known_models() -> Sequence[str]:
    from interp import organisms

    return (*organisms.ORGANISMS, organisms.WIRED)


def _known_figures() -> Sequence[str]:
    from interp.gallery.entries import GALLERY

    return [entry.folder for entry in GALLERY]


def _known_pools() -> Sequence[str]:
    return (
        "unexposed", "ordinary", "doses", "undertrained", "unreachable", "fragments", "impossible-bytes", "text", "control",
    )  # fmt: skip


def _errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn mistakes into one line on stderr and exit code 1, an interruption into 130."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InterpError as error:
            _say(f"interp: {error}", err)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            err.print("interp: interrupted; the same command goes on from what is finished", highlight=False)
            raise typer.Exit(130) from None

    return wrapped


@app.command(
    rich_help_panel=_ASK,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog="Examples:  interp run repeated_tokens   |   "
    "interp run repeated_tokens --model gpt2 --pool 177:188 --pool 100:111 --protocol article   |   "
    "interp run my_file.py:my_experiment --pool ordinary",
)
@_errors
def run(
    context: typer.Context,
    experiment: Annotated[
        str,
        typer.Argument(
            help="A name from 'interp experiments', or file.py:function.", autocompletion=_known_experiments
        ),
    ],
    model: Annotated[
        str, typer.Option(help="A bundled name, a hub name, or a Hugging Face directory.", autocompletion=_known_models)
    ] = "organism",
    pool: Annotated[
        list[str] | None,
        typer.Option(help="Tokens to draw from, e.g. unexposed, 177:188. Repeatable.", autocompletion=_known_pools),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for result.nc and figure.html (default: results/EXPERIMENT).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    batch: Annotated[int, typer.Option(help="Sequences per pool.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens in a block.")] = 25,
    copies: Annotated[int, typer.Option(help="How often the block stands in the sequence.")] = 2,
    mixed: Annotated[bool, typer.Option(help="One token of the pool among ordinary ones.")] = False,
    among: Annotated[str | None, typer.Option(help="The pool that counts as ordinary.")] = None,
    replacement: Annotated[bool | None, typer.Option(help="Draw a block with or without replacement.")] = None,
    bos: Annotated[bool | None, typer.Option(help="Begin with BOS (default: where the tokenizer has one).")] = None,
    weights: Annotated[Literal["raw", "folded"], typer.Option(help="raw, or folded (LayerNorm folded in).")] = "raw",
    revision: Annotated[str | None, typer.Option(help="A revision of a hub model.")] = None,
    checkpoint: Annotated[int | None, typer.Option(help="A training step of a hub model that has them.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps (default: the best there is).")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ...")] = "float32",
    protocol: Annotated[
        Literal["default", "article"], typer.Option(help="default, or article (seed 42, one block of 25, randint).")
    ] = "default",
) -> None:
    """Run an experiment; its own parameters are options too (see 'interp experiments')."""
    from interp import experiments, models
    from interp.run import run as run_experiment

    function = experiments.find(experiment)
    params = _own_parameters(context.args, function)
    folder = to or Path("results") / experiment.rpartition(":")[2]
    bridge = models.load(
        model,
        weights=weights,
        revision=revision,
        checkpoint=checkpoint,
        device=device,
        dtype=dtype,
    )
    result = run_experiment(
        function, bridge, pool or None, out=folder, seed=seed, batch=batch, length=length, copies=copies, mixed=mixed,
        among=among, replacement=replacement, bos="auto" if bos is None else bos, protocol=protocol,
        **params,
    )  # fmt: skip
    _show(result, folder)


@app.command(
    rich_help_panel=_READ,
    epilog="Examples:  interp show results/repeated_tokens   |   interp show results/repeated_tokens --json",
)
@_errors
def show(
    folder: Annotated[Path, typer.Argument(help="The --out folder of an earlier run, or a result file.")],
    to: Annotated[Path | None, typer.Option("--out", help="Where the figures go (default: beside the result).")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Variables, their means and provenance, for a program.")
    ] = False,
) -> None:
    """Print the table and draw the figures of a saved result again, without a model."""
    from interp import results

    result = results.load(folder)
    if as_json:
        _print_json(results.described(result))
        return
    _show(result, to or (folder if folder.is_dir() else folder.parent), saved=folder)


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp census   |   interp census --model gpt2   |   interp census --tokenizer path/to/tokenizer.json",
)
@_errors
def census(
    model: Annotated[
        str | None, typer.Option(help="A bundled name, a hub name, or a directory: one row per embedding row.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer alone: a folder, a tokenizer.json, a bundled or hub name.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="Folder for census.parquet, census.csv and the figure.")] = Path(
        "results/census"
    ),
) -> None:
    """Say of every token what it is, and whether any text can produce it: with a witness, a proof, or what was tried."""
    from interp import models, vocabulary
    from interp.files import writable

    if model is not None and tokenizer is not None:
        raise InterpError("give --model or --tokenizer, not both")
    source = models.load(model or "organism") if tokenizer is None else vocabulary.load_tokenizer(tokenizer)
    folder = writable(to)
    table, summary = vocabulary.survey(source, folder)
    paths = vocabulary.save(table, folder)
    _show(summary, folder)
    for path in paths[:2]:
        _say(f"table:  {path}")


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp argmaxable   |   interp argmaxable --model gpt2 --out results/gpt2   |   interp argmaxable --matrix layer.npz",
)
@_errors
def argmaxable(
    model: Annotated[
        str | None, typer.Option(help="A bundled name, a hub name, or a directory.", autocompletion=_known_models)
    ] = None,
    matrix: Annotated[
        Path | None, typer.Option(help="An .npz file with W (classes x dimensions) and, if wanted, b.")
    ] = None,
    to: Annotated[
        Path, typer.Option("--out", help="Folder for argmaxable.parquet and .csv, witnesses.npz, the figure.")
    ] = Path("results/argmaxable"),
    seconds: Annotated[
        float | None, typer.Option(help="Stop searching after so long; what is left is undecided.")
    ] = None,
) -> None:
    """Prove of every token that some hidden state makes it the arg-max, or that none does."""
    from interp import argmax, models
    from interp.files import writable

    if model is not None and matrix is not None:
        raise InterpError("give --model or --matrix, not both")
    if seconds is not None and not seconds > 0:
        raise InterpError(f"--seconds {seconds:g}: use a number above 0, or leave it out")
    source = argmax.from_file(matrix) if matrix is not None else models.load(model or "organism")
    folder = writable(to)
    given = source if isinstance(source, tuple) else (source,)
    table = argmax.argmaxable(*given, seconds=seconds, parts=folder / ".parts")
    result = argmax.summary(table, source, matrix)
    paths = argmax.save(table, result, folder)
    _show(result, folder)
    for path in paths:
        _say(f"table:  {path}")


@app.command(
    rich_help_panel=_MAKE,
    epilog="Examples:  interp figures   |   interp figures --only repeated_tokens   |   interp figures --check --drawn",
)
@_errors
def figures(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: is what lies there what the code makes?")
    ] = False,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="Run no experiment: only what is drawn from the results that lie there.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A folder of the gallery. Repeatable.", autocompletion=_known_figures),
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="The folder of the gallery.")] = Path("figures"),
) -> None:
    """Make every figure of the gallery again, from scratch on the bundled models; or check those that are there."""
    from interp import gallery

    if not check:
        gallery.regenerate(to, only or (), drawn_only=drawn, say=_say)
        _say(f"page: {to / 'README.md'}")
        return
    table = gallery.check(to, only or (), drawn_only=drawn, say=_say)
    failed = table[~table["passed"]]
    for row in failed.itertuples(index=False):
        _say(f"{row.folder}  {row.name}: {row.said}")
    if len(failed):
        raise InterpError(f"{len(failed)} of {len(table)} checks of {to} failed: 'interp figures' makes it again")
    _say(f"all {len(table)} checks passed")


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp report   |   interp report --model gpt2 --out results/gpt2   |   interp report --add my_file.py:my_experiment",
)
@_errors
def report(
    model: Annotated[
        str, typer.Option(help="A bundled name, a hub name, or a directory.", autocompletion=_known_models)
    ] = "organism",
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for report.html and its results (default: results/report-MODEL)."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            help="An experiment that gets a section of its own. Repeatable.", autocompletion=_known_experiments
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
) -> None:
    """One page on a model, to read from top to bottom: gap, vocabulary, tokens, heads, causes. Interrupted, the same command goes on."""
    from interp.report import report as write_report

    folder = to or Path("results") / f"report-{Path(model).name}"
    path = write_report(
        model, folder, seed=seed, add=add or (),
        said=lambda line: _say(f"cannot be had: {line}", err),
    )  # fmt: skip
    _say(f"report: {path}")


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp compare organism organism-llama   |   interp compare gpt2 EleutherAI/pythia-70m@step1000",
)
@_errors
def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="Two models or more; NAME@REVISION for a checkpoint.", autocompletion=_known_models),
    ],
    to: Annotated[Path, typer.Option("--out", help="Folder for the result, and one in it for each model.")] = Path(
        "results/compare"
    ),
    pool: Annotated[
        list[str] | None,
        typer.Option(
            help="Measure these on every model, healthy tokens last. Repeatable.", autocompletion=_known_pools
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
) -> None:
    """Put models side by side: what they copy, which heads do it, why the rest is not copied."""
    from interp.report import compare as side_by_side

    _show(side_by_side(models, to, pools=pool or (), seed=seed), to)


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp reproduce gpt2   |   interp reproduce my_values.json --model path/to/model --out results/mine",
)
@_errors
def reproduce(
    values: Annotated[str, typer.Argument(help="Published values: gpt2, or a JSON file (docs/reproduce.md).")] = "gpt2",
    model: Annotated[
        str | None, typer.Option(help="A bundled name, a hub name, or a directory (default: the file's model).")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the result, and a folder in it for each run.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides every random draw that the file leaves open.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps (default: the best there is).")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, ...")] = "float32",
) -> None:
    """Run the published experiments and compare: exit code 1 where a value is not reproduced."""
    from interp import reproduce as published

    folder = to or Path("results") / f"reproduce_{Path(values).stem}"
    result = published.reproduce(
        values, out=folder, model=model, seed=seed, device=device, dtype=dtype,
        said=lambda line: _say(line, err),
    )  # fmt: skip
    _show(result, folder)
    if not bool(result["passed"].all()):
        raise typer.Exit(1)


@app.command(rich_help_panel=_READ, epilog="Examples:  interp models   |   interp models --json")
@_errors
def models(as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False) -> None:
    """List the bundled models."""
    from interp import organisms

    if as_json:
        _print_json(
            {name: organisms.description(name) for name in organisms.ORGANISMS} | {organisms.WIRED: "wired by hand"}
        )
        return
    table = Table("model", "what it is", box=None, pad_edge=False)
    for name in organisms.ORGANISMS:
        table.add_row(name, organisms.description(name))
    table.add_row(organisms.WIRED, "an induction circuit wired by hand: every score is known exactly")
    out.print(table)
    out.print("\nAny Hugging Face name (gpt2, EleutherAI/pythia-70m) or local directory works too.")


@app.command(rich_help_panel=_READ, epilog="Examples:  interp experiments   |   interp experiments --json")
@_errors
def experiments(as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False) -> None:
    """List the experiments with their parameters."""
    from interp import experiments as known

    if as_json:
        listed = {name: known.parameters(known.find(name)).values() for name in known.names()}
        _print_json({name: {p.name: p.default for p in given} for name, given in listed.items()})
        return
    for name in known.names():
        function = known.find(name)
        question = (inspect.getdoc(inspect.getmodule(function)) or "").splitlines()[0]
        out.print(f"[bold]{name}[/bold]  {question}")
        for parameter in known.parameters(function).values():
            out.print(f"    --{parameter.name.replace('_', '-')}  (default {parameter.default})", highlight=False)


@organism.command(epilog="Example:  interp organism train organism --out results/again --shorten 100")
@_errors
def train(
    name: Annotated[str, typer.Argument(help="Which recipe: organism, organism-untied or organism-llama.")],
    to: Annotated[Path, typer.Option("--out", help="Folder for the model; killed, the same command goes on.")],
    text: Annotated[Path | None, typer.Option(help="A folder of text instead of the standard library.")] = None,
    withheld: Annotated[
        list[str] | None, typer.Option(help="A top-level name in --text only the tokenizer sees.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides initialisation, data order and canaries.")] = 0,
    shorten: Annotated[int, typer.Option(help="Divide the number of steps by this, to try it out.")] = 1,
) -> None:
    """Train a bundled model again, from the interpreter's own standard library."""
    import dataclasses

    from interp.organisms.corpus import corpus
    from interp.organisms.recipe import RECIPES
    from interp.organisms.train import train as train_model

    if name not in RECIPES:
        raise InterpError(f"unknown recipe '{name}': use {', '.join(RECIPES)}")
    recipe = dataclasses.replace(RECIPES[name], seed=seed).shortened(shorten)
    folder = train_model(recipe, to, corpus(text, tuple(withheld) if withheld else None))
    measured = json.loads((folder / "training.json").read_text())["measured"]
    for bar, met in measured["bars"].items():
        out.print(f"{'met    ' if met else 'NOT met'}  {bar}", highlight=False)
    _say(f"\nmodel, exposure counts, training curve and card: {folder}")


def _print_json(value: Any) -> None:
    """On stdout and nothing else, so that a program can read it."""
    print(json.dumps(value, indent=1, sort_keys=True, default=str))


def _own_parameters(args: list[str], function: Callable[..., Any]) -> dict[str, Any]:
    """`--kind mean --top-k 5` as keyword arguments, read by their type or default."""
    from interp.experiments import parameters

    known = parameters(function)
    found: dict[str, Any] = {}
    rest = list(args)
    while rest:
        option, glued, value = rest.pop(0).partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or name not in known:
            have = ", ".join(f"--{n.replace('_', '-')}" for n in known) or "none"
            raise InterpError(
                f"unknown parameter '{option}': {getattr(function, '__name__', 'it')} has {have}; see 'interp run -h'"
            )
        if not glued:
            if isinstance(known[name].default, bool) and (not rest or rest[0].startswith("--")):
                value = "True"
            elif rest:
                value = rest.pop(0)
            else:
                raise InterpError(f"{option} needs a value")
        found[name] = _value(value, known[name], option)
    return found


def _value(text: str, parameter: inspect.Parameter, option: str) -> Any:
    """Text as the type of the parameter's default; without one, as a Python literal or plain text."""
    default = parameter.default
    if isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if text in ("true", "false", "none") else text)
    except (ValueError, SyntaxError):
        value = text
    wanted: type | None = type(default) if isinstance(default, bool | int | float) else None
    if wanted is float and isinstance(value, int):
        value = float(value)
    if wanted is not None and type(value) is not wanted:
        raise InterpError(f"{option} takes a {wanted.__name__}, and '{text}' is none")
    return value


def _show(result: xr.Dataset, folder: Path, saved: Path | None = None) -> None:
    from interp import figures, tables
    from interp.results import provenance

    for line in tables.story(result):
        out.print(line)
    drawn = figures.figures_of(result)
    figures.clear(folder)
    if drawn:
        about = json.dumps(provenance(result), indent=1, sort_keys=True)
        page = figures.write_page(drawn, folder / "figure.html", about=about)
        images = figures.write_images(drawn, folder)
        _say(f"figure: {page}")
        for image in images:
            _say(f"        {image}")
    _say(f"result: {saved or folder / 'result.nc'}")


def main() -> None:
    """The entry point of the `interp` command."""
    # Windows consoles and pipes may not be UTF-8, and token texts are anything
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # a polite kill cleans up behind itself as an interruption does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False, prog_name="interp")
    except Exception as error:
        if type(error).__name__ == "Abort":  # interrupted before a command began
            sys.exit(130)
        if not hasattr(error, "format_message"):
            raise
        # a mistake in the words themselves, in one line as all others; click's classes are typer's own, by name
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            words = " ".join(error.format_message().split())
            command = getattr(getattr(error, "ctx", None), "command_path", "interp")
            _say(f"interp: {words.removesuffix('.')}{' ' if words.endswith('?') else '; '}see '{command} --help'", err)
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)
