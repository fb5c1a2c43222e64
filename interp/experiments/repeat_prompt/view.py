"""How does a result of `repeat_prompt` look: are tokens repeated when a prompt asks for them?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from rich.console import RenderableType
from rich.text import Text

from interp import plots
from interp.exhibits import RANKED, XIANG, Caption, GalleryEntry, of_public_model
from interp.request import Request
from interp.statistics import mean_interval
from interp.tables import interval, number, table_of, title


def table(result: xr.Dataset) -> Iterator[RenderableType]:
    """How often a token was repeated when it was asked for."""
    yield title(
        f"Asked to repeat a token (prompt '{result.attrs['prompt']}', greedy): is it the first token of the answer?"
    )
    sampled, chat = "sampled_correct" in result, "chat_correct" in result
    columns = ["tokens", "right", "probability", *(["sampled right"] if sampled else [])]
    columns += ["right in chat", "probability in chat"] if chat else []
    rows = table_of("pool", *columns, "for example", words=("for example",))
    pools = result["pool"].values
    for pool in dict.fromkeys(map(str, pools)):
        part = result.isel(token=np.flatnonzero(pools == pool))
        example = f"{str(part['text'].values[0])!r} -> {str(part['answer'].values[0])[:12]!r}"
        cells = [
            number(part.sizes["token"], "d"),
            number(part["correct"].mean(), ".0%"),
            interval(*mean_interval(part["probability"].isel(new_token=0).values), to=".."),
        ]
        cells += [number(part["sampled_correct"].mean(), ".0%")] if sampled else []
        if chat:
            spread = interval(*mean_interval(part["chat_probability"].isel(new_token=0).values), to="..")
            cells += [number(part["chat_correct"].mean(), ".0%"), spread]
        rows.add_row(pool, *cells, example)
    yield rows
    yield Text("probability: of the asked token, right after the prompt, with a 95% interval over tokens.")
    if chat:
        yield Text("In chat: the same prompt in the model's chat template; published values are measured without it.")
    if sampled:
        yield Text(
            "Sampling forbids repeated pairs of tokens, right answers among them: compare with healthy tokens, "
            "not with "
            "100%."
        )


def _by_pool(result: xr.Dataset, name: str, suffix: str = "") -> list[xr.DataArray]:
    """Mean and 95% interval over tokens [pool new_token], each pool's name followed by `suffix`."""
    pools = result["pool"].values
    names = list(dict.fromkeys(map(str, pools)))
    parts = [plots.intervals(result[name].isel(token=np.flatnonzero(pools == p)), "token") for p in names]
    index = xr.DataArray([p + suffix for p in names], dims="pool", name="pool")
    return [xr.concat(bound, index) for bound in zip(*parts, strict=True)]


def repeat_probability(result: xr.Dataset) -> go.Figure:
    """Mean probability of the asked token at each greedy step, by pool, with 95% intervals over tokens."""
    bounds = _by_pool(result, "probability")
    if "chat_probability" in result:
        beside = _by_pool(result, "chat_probability", ", in chat")
        bounds = [xr.concat(pair, "pool") for pair in zip(bounds, beside, strict=True)]
    figure = plots.lines(
        *bounds,
        over="pool",
        x="new_token",
        title=plots.titled(f"Asked to repeat a token: the prompt '{result.attrs['prompt']}'", result),
        x_title="token after the prompt",
        y_title="probability of the asked token",
    )
    figure.update_yaxes(range=[-0.03, 1.03])
    return figure.update_xaxes(dtick=1)


FIGURES = [repeat_probability]


_ENTRY = GalleryEntry(
    "repeat_prompt",
    Request.of("repeat_prompt", pools=("unexposed", "control"), sampling=True),
    (
        Caption(
            "repeat_probability",
            "The probability of a token that a prompt asks to repeat, at each step of the answer.",
            f"the repeat prompt of {XIANG}",
        ),
    ),
    "copying",
    tolerance=RANKED,
    order=30,
)
GALLERY = (_ENTRY, of_public_model(_ENTRY, prompt="input_output", chat=True))
