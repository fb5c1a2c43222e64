"""How does a result of `false_demonstrations` look: when does the truth get lost, and through which heads?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import HALAWI, Caption, GalleryEntry, Tolerance, of_public_model
from interp.request import Request
from interp.results import provenance
from interp.statistics import mean_interval, wilson_interval
from interp.tables import Cell, interval, number, ranked, sampled, table_of, title

_HEADS = 8  # that the table has
_WIDEST = 8  # depths that are named on an axis
_PUBLISHED = "23.2% of the gap over 14 datasets on GPT-J, by zeroing a small set of heads"


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List accuracies, the gap and where it opens, the heads, and what is left without them.

    Args:
        result: a result of `false_demonstrations`.

    Returns:
        What rich can print, line by line: four tables, shares with 95% intervals.

    Example:
        >>> few = dict(count=8, shots=2, draws=2, shuffles=20)
        >>> result = interp.run("false_demonstrations", "demonstrations", **few)
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:3]), sep=" | ")
        letters | 1.00 (0.81 .. 1.00) | 0.00 (0.00 .. 0.19)
    """
    model = provenance(result)["model"]["name"]
    shots = int(result["shots"].values[-1])
    yield title(f"'{model}': accuracy after {shots} demonstrations, calibrated, with Wilson's 95% intervals")
    rows = table_of("task", "true labels", "permuted", "random", "answers the permuted label", "chance", "above chance")
    last = result["right"].isel(after=-1, shots=-1)
    for task in result["task"].values:
        at = result.sel(task=task)
        cells = [_accuracy(last.sel(task=task, labels=labels)) for labels in ("true", "permuted", "random")]
        counts = "yes" if bool(at["above_chance"]) else "no"
        rows.add_row(str(task), *cells, _accuracy(at["copied"].isel(shots=-1)), number(at["chance"]), counts)
    yield rows
    yield from _where(result)
    yield from _heads(result)
    yield from _effects(result)


def _where(result: xr.Dataset) -> Iterator[RenderableType]:
    gap = result["gap"].isel(after=-1).values
    yield Text(f"Gap of the tasks above chance, true less permuted labels: {interval(*gap)}.")
    lost = interval(*result["overthought"].values)
    yield Text(
        f"After permuted labels the true label is decoded best after {result.attrs['best_depth']}; "
        "from there to the end "
        f"{lost} of it is lost (on prompts that did not choose the depth)."
    )
    critical = result["critical_layer"].values
    if np.isfinite(critical[0]):
        yield Text(
            f"Critical layer, from which on the gap is at least half of that: {critical[0]:.0f} ({critical[1]:.0f} .. "
            f"{critical[2]:.0f}) of 0 .. {result.sizes['layer'] - 1}."
        )


def _heads(result: xr.Dataset) -> Iterator[RenderableType]:
    called = str(result.attrs["called_heads"])
    if not called:
        yield Text(f"No head is classified as a false induction head: {result.attrs['no_heads']}.")
    score = result["head_score"].mean(["task", "batch"])
    flat = score.values.ravel()
    order = [i for i in np.argsort(-np.nan_to_num(flat, nan=-np.inf))[:_HEADS] if np.isfinite(flat[i])]
    names = plots.head_names(score)
    yield Text(
        f"Attention to labels of the query's class less to those of another, largest first: "
        f"{ranked([(names[i], float(flat[i])) for i in order], '.2f')} (95% quantile of the largest "
        "over heads in shuffles: "
        f"{float(result['score_threshold']):.2f})."
    )
    if called:
        induction = result["induction"].values
        both = [name for name in called.split(", ") if induction[_place(name)] == 1]
        said = "cannot be determined" if np.isnan(induction).all() else ", ".join(both) or "none"
        yield Text(f"Classified: {called}. Of these, induction heads on repeated blocks: {said}.")


def _effects(result: xr.Dataset) -> Iterator[RenderableType]:
    if not result.attrs["called_heads"]:
        return
    how = {"zero": "zero", "mean": "their mean over true demonstrations"}[str(result.attrs["ablation"])]
    yield title(f"Without heads ({how}), on prompts that were not used to classify them")
    measures = ("gap closed", "of it restored", "log-odds restored")
    rows = table_of("ablated", "true labels", "permuted", *measures)
    closed = result["closed"].transpose("group", "measure", "bound").values
    first = f"{float(result['critical_layer'][0]):.0f}"
    parts = [
        ("nothing", result["intact"], None),
        ("classified heads", result["without"], closed[0]),
        ("other heads", result["without_control"].mean("draw"), closed[1]),
        *((f"{skip} from {first}", result["skipped"].sel(skip=skip), None) for skip in result["skip"].values),
    ]
    for name, values, shares in parts:
        cells = [sampled(_over_tasks(values.sel(compared=labels))) for labels in ("true", "permuted")]
        rows.add_row(name, *cells, *([""] * len(measures) if shares is None else [interval(*one) for one in shares]))
    yield rows
    yield Text(
        "Restored: what accuracy after permuted labels gains, as a share of the gap; other heads: "
        "the same number of the "
        f"same layers, the mean of {result.sizes['draw']} draws."
    )
    if result.attrs["controls"]:
        yield Text(f"Of the others: {result.attrs['controls']}.")
    direct, total = (_over_tasks(result[name]) for name in ("direct", "total"))
    yield Text(
        f"Classified heads that write what they do after true demonstrations, to the logits by no other head: "
        f"{sampled(direct)} of {sampled(total)} nats between true and false label."
    )
    yield Text(f"Published: {_PUBLISHED} ({HALAWI}).")


def _accuracy(values: xr.DataArray) -> Cell:
    """A share of prompts and its interval, which never leaves 0 .. 1."""
    known = values.values[np.isfinite(values.values)]
    return interval(known.mean() if len(known) else np.nan, *wilson_interval(round(float(known.sum())), len(known)))


def _over_tasks(values: xr.DataArray) -> xr.DataArray:
    """Prompts of all tasks as one row of samples."""
    flat = values.transpose("task", "batch").values.ravel()
    return xr.DataArray(flat[np.isfinite(flat)] if np.isfinite(flat).any() else np.full(1, np.nan), dims="batch")


def _place(name: str) -> tuple[int, int]:
    layer, _, head = name[1:].partition("H")
    return int(layer), int(head)


# --- figures ----------------------------------------------------------------------------------------------------------


def accuracy_by_layer(result: xr.Dataset) -> go.Figure:
    """Draw the accuracy that is read after each layer, by kind of labels, with the critical layer.

    Args:
        result: a result of `false_demonstrations`.

    Returns:
        Lines, x layer (-1: the embedding), y calibrated accuracy with 95% intervals over prompts, a panel for each
        task.

    Source:
        Halawi, Denain and Steinhardt 2023, Overthinking the Truth, arXiv 2307.09476.

    Example:
        >>> few = dict(count=8, shots=2, draws=2, shuffles=20)
        >>> result = interp.run("false_demonstrations", "demonstrations", **few)
        >>> [line.name for line in accuracy_by_layer(result).data]
        ['true labels', 'permuted labels', 'random labels']
    """
    tasks = [str(task) for task in result["task"].values]
    columns = min(3, len(tasks))
    figure = make_subplots(
        -(-len(tasks) // columns),
        columns,
        subplot_titles=plots.labels(tasks),
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.12,
    )
    depths = result["after"].values
    critical = result["critical_layer"].values
    for t, task in enumerate(tasks):
        where = {"row": t // columns + 1, "col": t % columns + 1}
        for i, labels in enumerate(result["labels"].values):
            values = result["right"].sel(task=task, labels=labels).isel(shots=-1).transpose("batch", "after").values
            mean, low, high = mean_interval(values)
            figure.add_scatter(
                x=np.arange(len(depths)) - 1,
                y=mean,
                name=f"{labels} labels",
                legendgroup=str(labels),
                showlegend=t == 0,
                error_y=plots.errors(mean, low, high, width=2, thickness=1),
                mode="lines+markers",
                line={"color": plots.colour(i), "width": 2},
                marker={"size": 5, "symbol": i},
                **where,
            )
        figure.add_hline(
            y=float(result["chance"].sel(task=task)), line={"dash": "dot", "color": plots.GREY, "width": 1}, **where
        )
        if np.isfinite(critical[0]) and bool(result["above_chance"].sel(task=task)):
            figure.add_vline(x=critical[0], line={"dash": "dash", "color": plots.GREY, "width": 1}, **where)
    step = 1 if len(depths) <= _WIDEST else 5
    places = list(range(0 if step == 1 else step, len(depths) - 1, step))
    figure.update_xaxes(tickvals=[-1, *places], ticktext=["emb.", *map(str, places)], tickangle=0)
    figure.update_xaxes(title="read after layer", row=-(-len(tasks) // columns))
    figure.update_yaxes(range=[-0.05, 1.05])
    figure.update_yaxes(title="accuracy, calibrated", col=1)
    height = 160 + 260 * -(-len(tasks) // columns)
    words = f"When are false demonstrations believed? After {int(result['shots'].values[-1])}"
    return figure.update_layout(
        template=plots.TEMPLATE, title=plots.titled(words, result), height=height, legend_y=1 + 60 / height
    )


def accuracy_by_shots(result: xr.Dataset) -> go.Figure:
    """Draw the final accuracy against the number of demonstrations.

    Args:
        result: a result of `false_demonstrations`.

    Returns:
        Lines for each kind of labels, over the tasks above chance, y calibrated accuracy with 95% intervals.

    Source:
        Halawi, Denain and Steinhardt 2023, Overthinking the Truth, arXiv 2307.09476.

    Example:
        >>> few = dict(count=8, shots=2, draws=2, shuffles=20)
        >>> result = interp.run("false_demonstrations", "demonstrations", **few)
        >>> accuracy_by_shots(result).layout.yaxis.title.text
        'accuracy, calibrated'
    """
    used = result["right"].isel(after=-1, task=np.flatnonzero(result["above_chance"].values))
    samples = used.transpose("task", "batch", "labels", "shots").values
    mean, low, high = (
        xr.DataArray(values, dims=("labels", "shots"), coords={name: used[name].values for name in ("labels", "shots")})
        for values in mean_interval(samples.reshape(-1, *samples.shape[2:]))
    )
    return plots.points(
        mean,
        low,
        high,
        over="labels",
        x="shots",
        title=plots.titled("How many false demonstrations does it take?", result),
        x_title="demonstrations",
        y_title="accuracy, calibrated",
    )


def label_attention(result: xr.Dataset) -> go.Figure:
    """Draw every head's attention to labels of the query's class minus that to others.

    Args:
        result: a result of `false_demonstrations`.

    Returns:
        A dot for each head, x induction score, y difference in attention, detected heads coloured, the threshold
        dotted.

    Source:
        Halawi, Denain and Steinhardt 2023, Overthinking the Truth, arXiv 2307.09476.

    Example:
        >>> few = dict(count=8, shots=2, draws=2, shuffles=20)
        >>> result = interp.run("false_demonstrations", "demonstrations", **few)
        >>> label_attention(result).layout.xaxis.title.text
        'induction score on repeated blocks'
    """
    score = result["head_score"].mean(["task", "batch"])
    names = plots.head_names(score)
    called = result["called"].values.ravel().astype(bool)
    induction = result["induction"].values.ravel()
    groups = (("classified", called, plots.colour(1)), ("not classified", ~called, plots.GREY))
    figure = go.Figure()
    for group, chosen, colour in groups:
        for symbol, marks, said in (("diamond", induction == 1, "induction head"), ("circle", induction != 1, "other")):
            at = np.flatnonzero(chosen & marks)
            if len(at):
                figure.add_scatter(
                    x=result["induction_score"].values.ravel()[at],
                    y=score.values.ravel()[at],
                    mode="markers",
                    name=f"{group}, {said}",
                    marker={"color": colour, "symbol": symbol, "size": 9},
                    text=[names[i] for i in at],
                    hovertemplate="%{text}: %{y:.2f}<extra></extra>",
                )
    threshold = float(result["score_threshold"])
    figure.add_hline(y=threshold, line={"dash": "dot", "color": plots.GREY, "width": 1})
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Which heads look at labels of the query's class?", result),
        xaxis_title="induction score on repeated blocks",
        yaxis_title="attention to its class, less to others",
        height=460,
    )


FIGURES = [accuracy_by_layer, accuracy_by_shots, label_attention]


_CAPTIONS = (
    Caption(
        "accuracy_by_layer",
        "Accuracy after true, permuted and random demonstrations, read after each layer; dashed: the critical layer.",
        f"the layerwise accuracies of {HALAWI}",
    ),
    Caption("accuracy_by_shots", "Accuracy in the end, by the number of demonstrations."),
    Caption(
        "label_attention",
        "Each head's attention to labels of the query's class in false demonstrations, beside its induction score.",
        f"the prefix-matching scores of {HALAWI}",
    ),
)
_DECIDED_BY_A_HAIR = Tolerance(
    atol=0.02, ties=0.02, why="an answer at the threshold of the calibration changes sides with the last bit"
)


def _of_organism(suffix: str, order: int) -> GalleryEntry:
    return GalleryEntry(
        f"false_demonstrations{suffix.replace('-', '_')}",
        Request.of("false_demonstrations", model=f"demonstrations{suffix}"),
        _CAPTIONS,
        "the copying circuit",
        tolerance=_DECIDED_BY_A_HAIR,
        order=order,
    )


GALLERY = (
    _of_organism("", 95),
    _of_organism("-5", 96),
    _of_organism("-0", 97),
    of_public_model(_of_organism("", 95)),
)
