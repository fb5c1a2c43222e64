"""How does a result of `undertrained` look: which tokens does an indicator call, and are these the right ones?"""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots
from rich.console import RenderableType
from rich.text import Text
from sklearn.metrics import precision_recall_curve, roc_curve

from interp import plots
from interp.exhibits import LAND, NO_COUNTERPART, RANKED, Caption, GalleryEntry, ReportSection, of_public_model
from interp.organisms import ORDINARY_FROM, UNDERTRAINED_TO
from interp.request import Request
from interp.results import provenance
from interp.tables import number, table_of, title

_GROUPS = {
    "text": plots.COLOURS[0],
    "byte": plots.COLOURS[2],
    "fragment": plots.COLOURS[3],
    "special": plots.GREY,
    "added": plots.COLOURS[5],
    "no text can produce it": plots.COLOURS[1],
}
_SOURCES = {
    "census": "found by the census",
    "asked": "as requested",
    "fallback": "a guess",
}
_TINY = 1e-12
_STRONGEST = 8  # tokens that are listed


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """List how many tokens are detected, which ones, and how that compares with the truth.

    Args:
        result: a result of `undertrained`.

    Returns:
        What rich can print, line by line: counts, areas under curves with 95% intervals, and the most suspicious
        tokens.

    Example:
        >>> result = interp.run("undertrained", "organism", verify_tokens="none")
        >>> heading, rows, *_ = table(result)
        >>> print(*(column.cells[0] for column in rows.columns[:2]), sep=" | ")
        byte | 243
    """
    shown = result.attrs["indicator"]
    unused = json.loads(result.attrs["reference"])
    model = provenance(result)["model"]["name"]
    yield title(f"Under-trained tokens of '{model}' by {shown}, nominal FDR {result.attrs['fdr']:g}")
    yield _counts(result)
    source = _SOURCES[unused["source"]]
    yield Text(f"Compared with {len(unused['ids'])} unused tokens, {source} ({unused['why']}).")
    mirrored = int(result["mirrored"].sel(indicator=shown))
    yield Text(f"Equally far on the other side of the null: {mirrored} tokens (near 0 where the null is symmetric).")
    if "max_probability" in result:
        long, unwritable = (result.attrs.get(name, "").split() for name in ("too_long", "unwritable"))
        plain = [str(p) for p in result["prompt"].values if p != "article" and not str(p).endswith("_chat")]
        prompts = [p for p in plain if p not in (*long, *unwritable)]
        steps = result.sizes["new_token"]
        words = f"{', '.join(prompts) or 'no prompt'}, {steps} steps each (Land and Bartolo 2024)"
        yield Text(f"Not repeated: probability below {result.attrs['threshold']} over the prompts {words}.")
        if "max_probability_chat" in result:
            yield Text("In chat: the same prompts in the model's chat template, which is not the published score.")
        if "precision" in result.attrs:
            yield Text(f"Probabilities: {result.attrs['precision']}.")
        if long:
            yield Text(f"Longer than this model's context and left out: {', '.join(long)}.")
        if unwritable:
            yield Text(f"Left out, as this tokenizer has no tokens for their text: {', '.join(unwritable)}.")
    if "truth" in result:
        yield from _truth(result)
    yield from _strongest(result, shown)


def _counts(result: xr.Dataset) -> RenderableType:
    detected = result["detected"].sel(indicator=result.attrs["indicator"])
    asked = "max_probability" in result
    chat = "max_probability_chat" in result
    columns = ["asked", "not repeated", "detected and not repeated"] if asked else []
    columns += ["not repeated in chat", "detected and not repeated in chat"] if chat else []
    rows = table_of("tokens", "all", "detected", *columns)
    impossible = result["reachable"] == "impossible"
    groups = {str(k): (result["kind"] == k) & ~impossible for k in np.unique(result["kind"].values)}
    groups["no text can produce"] = impossible
    for name, at in groups.items():
        if bool(at.any()):
            counts = [at.sum(), (at & detected).sum()]
            if asked:
                failed = result["max_probability"] < result.attrs["threshold"]
                verified = at & result["max_probability"].notnull()
                counts += [verified.sum(), (at & failed).sum(), (at & failed & detected).sum()]
            if chat:
                failed = result["max_probability_chat"] < result.attrs["threshold"]
                counts += [(at & failed).sum(), (at & failed & detected).sum()]
            rows.add_row(name, *(number(int(c), ",d") for c in counts))
    return rows


def _truth(result: xr.Dataset) -> Iterator[RenderableType]:
    yield title(
        f"Against the truth: multi-character tokens exposed at most {UNDERTRAINED_TO} times, or {ORDINARY_FROM} "
        "and more"
    )
    rows = table_of("detector", "AUROC", "(all)", "AP", "precision", "recall", "rho")
    for detector in result["detector"].values:
        at = result["truth"].sel(detector=detector, bound="value")
        several = at.sel(subset="multi-character")
        measures = ("average_precision", "precision", "recall", "spearman")
        cells = [several.sel(measure="auroc"), at.sel(subset="all", measure="auroc")]
        rows.add_row(str(detector), *map(number, [*cells, *(several.sel(measure=m) for m in measures)]))
    yield rows
    yield Text(
        "AP: average precision; precision and recall: of the detections; rho: Spearman's with exposure; "
        "intervals: in the result."
    )


def _strongest(result: xr.Dataset, shown: str) -> Iterator[RenderableType]:
    """The detected text tokens that any text can produce, those lowest in the indicator first."""
    at = (result["kind"] == "text") & (result["reachable"] == "reachable") & result["detected"].sel(indicator=shown)
    detected = result.sel(indicator=shown).isel(token=at.values)
    if not detected.sizes["token"]:
        yield Text("No text token that can be reached is detected.")
        return
    yield title("The strongest of them that text can produce")
    columns = {"id": ("token", "d"), shown: ("value", ".4f")}
    columns |= {"probability": ("max_probability", ".1e")} if "max_probability" in result else {}
    columns |= {"in chat": ("max_probability_chat", ".1e")} if "max_probability_chat" in result else {}
    columns |= {"times trained on": ("exposure", "d")} if "exposure" in result.coords else {}
    rows = table_of("token", *columns)
    for i in np.argsort(detected["value"].values, kind="stable")[:_STRONGEST]:
        token = detected.isel(token=i)
        rows.add_row(repr(str(token["text"].item())), *(number(token[n], spec) for n, spec in columns.values()))
    yield rows


def indicator_against_probability(result: xr.Dataset) -> go.Figure | None:
    """Draw each token's indicator against the largest probability it received when it was asked for.

    Args:
        result: a result of `undertrained`.

    Returns:
        A dot for each token, y logarithmic, coloured by kind; None where no token was asked.

    Source:
        Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417.

    Example:
        >>> result = interp.run("undertrained", "organism", verify_tokens="none")
        >>> indicator_against_probability(result) is None  # no token was asked
        True
    """
    if "max_probability" not in result or not bool(result["max_probability"].notnull().any()):
        return None
    name = result.attrs["indicator"]
    x, y = result["value"].sel(indicator=name).values, result["max_probability"].values
    asked = np.isfinite(y)
    hover, groups = _hover(result), _groups(result)
    figure = go.Figure()
    many = asked.sum() > 10_000
    draw = go.Scattergl if many else go.Scatter
    for group, colour in _GROUPS.items():
        at = asked & (groups == group)
        if at.any():
            figure.add_trace(
                draw(
                    x=x[at],
                    y=y[at].clip(min=_TINY),
                    mode="markers",
                    name=group,
                    text=hover[at],
                    hovertemplate="%{text}<extra></extra>",
                    marker={"color": colour, "size": 4 if many else 6, "opacity": 0.7},
                )
            )
    detected = result["detected"].sel(indicator=name).values.astype(bool)
    failed = y < result.attrs["threshold"]
    figure.add_hline(y=result.attrs["threshold"], line={"dash": "dot", "color": plots.GREY})
    limit = float(result["threshold"].sel(indicator=name))
    if np.isfinite(limit):
        figure.add_vline(x=limit, line={"dash": "dot", "color": plots.GREY})
    corners = (
        (0.01, 0.02, "detected and not repeated", detected & failed),
        (0.01, 0.98, "detected, yet repeated", detected & ~failed),
        (0.99, 0.02, "not detected, not repeated", ~detected & failed),
    )
    for at_x, at_y, words, those in corners:
        figure.add_annotation(
            x=at_x,
            y=at_y,
            xref="paper",
            yref="paper",
            xanchor="left" if at_x < 0.5 else "right",
            yanchor="bottom" if at_y < 0.5 else "top",
            text=f"{words}: {int((those & asked).sum())}",
            showarrow=False,
            bgcolor="rgba(128,128,128,0.15)",  # on a light and on a dark page
            font={"size": 12},
        )
    lowest = np.log10(y[asked].clip(min=_TINY).min())  # room for the words below
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, range=[lowest - 0.08 * (1 - lowest) - 0.1, 0.25])
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Do the rows tell which tokens cannot be repeated?", result),
        xaxis_title=f"{name} (left of the line: detected, nominal false-discovery rate {result.attrs['fdr']:g})",
        yaxis_title="largest probability when asked to repeat it",
        height=560,
    )


def plain_against_chat(result: xr.Dataset) -> go.Figure | None:
    """Draw each token's largest probability with plain prompts against that in the chat template.

    Args:
        result: a result of `undertrained`.

    Returns:
        A dot for each token, both axes logarithmic; None where no token was asked in chat.

    Source:
        Land and Bartolo 2024, Fishing for Magikarp, arXiv 2405.05417.

    Example:
        >>> result = interp.run("undertrained", "organism", verify_tokens="none")
        >>> plain_against_chat(result) is None  # no token was asked
        True
    """
    if "max_probability_chat" not in result:
        return None
    x, y = (result[name].values for name in ("max_probability", "max_probability_chat"))
    asked, groups, hover = np.isfinite(x) & np.isfinite(y), _groups(result), _hover(result)
    figure = go.Figure()
    for group, colour in _GROUPS.items():
        at = asked & (groups == group)
        if at.any():
            figure.add_scatter(
                x=x[at].clip(min=_TINY),
                y=y[at].clip(min=_TINY),
                mode="markers",
                name=group,
                text=[f"{words}<br>in chat {p:.1e}" for words, p in zip(hover[at], y[at], strict=True)],
                hovertemplate="%{text}<extra></extra>",
                marker={"color": colour, "size": 6, "opacity": 0.7},
            )
    line = {"dash": "dot", "color": plots.GREY}
    figure.add_hline(y=result.attrs["threshold"], line=line).add_vline(x=result.attrs["threshold"], line=line)
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(type="log", exponentformat="power", dtick=1)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("Asked with plain prompts, and in the chat template", result),
        xaxis_title="largest probability, plain prompts (the published score)",
        yaxis_title="largest probability, the same prompts in chat",
        height=560,
    )


def indicator_histogram(result: xr.Dataset) -> go.Figure:
    """Draw the distribution of the indicator by kind of token, with the fitted null and the threshold.

    Args:
        result: a result of `undertrained`.

    Returns:
        A histogram with a logarithmic y axis; tokens below the threshold are detected.

    Example:
        >>> result = interp.run("undertrained", "organism", verify_tokens="none")
        >>> indicator_histogram(result).data[-1].name
        'null fitted to text'
    """
    name = result.attrs["indicator"]
    shown = result.sel(indicator=name)
    values, groups = shown["value"].values, _groups(result)
    usable = np.isfinite(values)
    edges = np.linspace(values[usable].min(), values[usable].max(), 81)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    figure = go.Figure()
    for group, colour in _GROUPS.items():
        counts, _ = np.histogram(values[usable & (groups == group)], edges)
        if counts.any():
            figure.add_bar(x=middle, y=counts, name=group, marker={"color": colour, "line": {"width": 0}}, width=width)
    centre, spread = float(shown["null_centre"]), float(shown["null_width"])
    fitted = usable & (groups == "text")
    density = np.exp(-0.5 * ((middle - centre) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
    figure.add_scatter(
        x=middle,
        y=(density * fitted.sum() * width).clip(min=1e-3),
        name="null fitted to text",
        mode="lines",
        line={"color": plots.GREY, "dash": "dash"},
    )
    limit, line = float(shown["threshold"]), {"dash": "dot", "color": plots.GREY}
    if np.isfinite(limit):
        figure.add_vline(x=limit, line=line, annotation_text="detected", annotation_position="top left")
    figure.update_yaxes(type="log", range=[-0.3, None], dtick=1)
    return figure.update_layout(
        template=plots.TEMPLATE,
        title=plots.titled("One indicator over the whole vocabulary", result),
        xaxis_title=name,
        yaxis_title="tokens",
        barmode="stack",
        bargap=0,
    )


def detection(result: xr.Dataset) -> go.Figure | None:
    """Draw ROC and precision-recall curves of every indicator against exposure counts.

    Args:
        result: a result of `undertrained`.

    Returns:
        Two panels of lines, multi-character text tokens only; None where exposure is unknown.

    Example:
        >>> result = interp.run("undertrained", "organism", verify_tokens="none")
        >>> detection(result).layout.xaxis.title.text
        'false positive rate'
    """
    if "truth" not in result or not bool(result["truth"].notnull().any()):
        return None
    exposure = result["exposure"].values
    positive = exposure <= UNDERTRAINED_TO
    decided = result["multi_character"].values.astype(bool) & (positive | (exposure >= ORDINARY_FROM))
    figure = make_subplots(1, 2, subplot_titles=("ROC", "precision and recall"), horizontal_spacing=0.1)
    for i, method in enumerate(result["detector"].values):
        asked = method == "max_probability"
        score = (result["max_probability"] if asked else result["value"].sel(indicator=method)).values
        at = decided & np.isfinite(score)
        area = float(result["truth"].sel(detector=method, subset="multi-character", measure="auroc", bound="value"))
        style = {
            "name": f"{method} ({area:.3f})",
            "legendgroup": str(method),
            "mode": "lines",
            "line": {"color": plots.colour(i), "dash": ("solid", "dash")[i // len(plots.COLOURS)]},
        }
        false, true, _ = roc_curve(positive[at], -score[at])
        figure.add_scatter(x=false, y=true, row=1, col=1, **style)
        precision, recall, _ = precision_recall_curve(positive[at], -score[at])
        figure.add_scatter(x=recall, y=precision, row=1, col=2, showlegend=False, **style)
    for column, (x, y) in enumerate((("false positive rate", "true positive rate"), ("recall", "precision")), start=1):
        figure.update_xaxes(title=x, range=[-0.02, 1.02], row=1, col=column)
        figure.update_yaxes(title=y, range=[-0.02, 1.02], row=1, col=column)
    return figure.update_layout(
        template=plots.TEMPLATE,
        height=620,
        margin={"t": 90, "b": 200},
        title=plots.titled(f"Exposed at most {UNDERTRAINED_TO} times, or {ORDINARY_FROM} and more? (AUROC)", result),
        legend={"orientation": "h", "yanchor": "top", "y": -0.2, "x": 0},
    )


def _groups(result: xr.Dataset) -> np.ndarray:
    """What each token is drawn as: its kind, or that no text can produce it."""
    impossible = result["reachable"].values == "impossible"
    return np.where(impossible, "no text can produce it", result["kind"].values.astype(str))


def _hover(result: xr.Dataset) -> np.ndarray:
    name = result.attrs["indicator"]
    columns = [result[n].sel(indicator=name).values for n in ("value", "p_value")]
    columns += [result[n].values for n in ("max_probability", "text", "token", "kind", "reachable")]
    lines = [
        f"<b>{plots.token_label(text)}</b> · {i}<br>{kind}, {reachable}<br>"
        f"{name} {value:.4f}, p {p:.1e}<br>largest probability {most:.1e}"
        for value, p, most, text, i, kind, reachable in zip(*columns, strict=True)
    ]
    if "exposure" in result.coords:
        lines = [f"{a}<br>trained on {n} times" for a, n in zip(lines, result["exposure"].values, strict=True)]
    return np.array(lines, dtype=object)


FIGURES = [indicator_against_probability, plain_against_chat, indicator_histogram, detection]


_ENTRY = GalleryEntry(
    "undertrained",
    Request.of("undertrained"),
    (
        Caption(
            "indicator_against_probability",
            "What a token's embedding row says, against the largest probability that it is given when asked to be "
            "repeated.",
            f"the indicators against verified probabilities of {LAND}",
        ),
        Caption(
            "indicator_histogram",
            "The indicator by kind of token, with the null that is fitted to text and the threshold of the calls.",
        ),
        Caption(
            "detection",
            "ROC, precision and recall of each indicator against the true exposure counts.",
            f"{NO_COUNTERPART}: the truth about public models is not known",
        ),
    ),
    "the vocabulary",
    tolerance=RANKED,
    order=20,
)
# of one indicator, whose result a repository can hold
GALLERY = (_ENTRY, of_public_model(_ENTRY, without=("detection",), verify_tokens="detected", others=False))

SECTION = ReportSection(
    "found",
    "Glitch tokens found",
    "Rows of the embedding that look as if nothing had trained them, by an indicator with a false-discovery rate, "
    "and whether the model can repeat the token when asked to.",
    Request.of("undertrained", verify_tokens="detected"),
    figures=("indicator_against_probability", "detection"),
    order=30,
)
