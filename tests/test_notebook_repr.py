"""Do models, pools and sequences have a short and correct notebook representation?"""

import subprocess
import sys

import pytest

import interp
from interp import models, notebook_repr
from interp.tokens import Pool


def test_pools_have_a_notebook_repr():
    pool = Pool("a<b", tuple(range(100)))
    assert repr(pool) == "Pool('a<b', 100 tokens: 0, 1, 2, 3, 4, 5, ...)"
    assert "a&lt;b" in pool._repr_html_()
    assert "100 tokens" in pool._repr_html_()


@pytest.mark.parametrize(
    ("bos", "copies", "said"),
    [(2, 2, "[BOS, A, A] of 11 tokens"), (None, 3, "[A, A, A] of 15 tokens"), (2, 6, "[BOS, 6 times A] of 31")],
)
def test_sequences_have_a_notebook_repr(bos, copies, said):
    tokens = interp.repeated(Pool("few", tuple(range(3, 7))), batch=4, length=5, copies=copies, bos=bos)
    assert said in repr(tokens)
    assert "4 sequences" in repr(tokens)
    assert "a block of 5 from 'few', drawn with replacement" in repr(tokens)


def test_models_have_a_notebook_repr(organism, wired):
    facts = models.facts(organism)
    assert facts["model"].startswith("organism ")
    assert facts["architecture"] == "GPT2LMHeadModel, 2 layers of 4 heads, 128 dimensions"
    assert facts["vocabulary"] == "2,048 tokens, context 512"
    assert facts["training"] == f"known: {len(interp.pools('unexposed', organism)[0])} tokens never seen"
    assert "training" not in models.facts(wired)
    assert "<th>model</th><td>organism " in notebook_repr.as_html(facts)


@pytest.mark.process
def test_in_ipython_and_nowhere_else():
    """A loaded model is six lines in a notebook, and what TransformerLens prints elsewhere."""
    code = """
from IPython.core.interactiveshell import InteractiveShell
import interp
model = interp.load("wired")
before = repr(model)
shell = InteractiveShell.instance()
model = interp.load("wired")
data, _ = shell.display_formatter.format(model)
assert data["text/html"].startswith("<table"), data
assert data["text/plain"].splitlines()[0].startswith("model         wired "), data
assert repr(model) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
