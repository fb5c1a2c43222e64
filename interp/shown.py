"""How does a model show itself in a notebook? In six lines, where its own words are some hundred lines of modules."""

from __future__ import annotations

import html
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def facts(model: TransformerBridge) -> dict[str, str]:
    """What a reader wants to know first: where it came from, its shape, its vocabulary, what is known of its training."""
    from interp.models import origin
    from interp.organisms import exposure

    about, cfg = origin(model), model.cfg
    came = about.get("revision") or about.get("sha256") or ""
    found = {
        "model": f"{about['name']} {str(came)[:12]}".strip(),
        "architecture": f"{about['architecture']}, {cfg.n_layers} layers of {cfg.n_heads} heads, {cfg.d_model} dimensions",
        "parameters": f"{sum(p.numel() for p in model.original_model.parameters()):,}, {str(next(model.parameters()).dtype).removeprefix('torch.')} on {cfg.device}",
        "vocabulary": f"{cfg.d_vocab:,} tokens, context {cfg.n_ctx:,}",
    }
    if "weights" in about:
        tied = "input and output rows are one" if about.get("tied") else "input and output rows apart"
        found["weights"] = f"{about['weights']}, {tied}"
    counts = exposure(str(about["name"]))
    if counts is not None:
        found["training"] = f"known: {len(counts.between(0, 0, canaries=True)):,} tokens never seen"
    return found


def as_html(model: TransformerBridge) -> str:
    """A small table."""
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts(model).items())
    return f'<table style="text-align:left">{rows}</table>'


def as_text(model: TransformerBridge) -> str:
    """The same in lines."""
    return "\n".join(f"{name:14}{value}" for name, value in facts(model).items())


def register(kind: type) -> None:
    """Tell IPython, where it runs, how models of this class are shown; the class is left as it is."""
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    shown = shell.display_formatter.formatters
    shown["text/html"].for_type(kind, as_html)
    shown["text/plain"].for_type(kind, _pretty)


def _pretty(model: TransformerBridge, printer: Any, cycle: bool) -> None:
    printer.text(as_text(model))
