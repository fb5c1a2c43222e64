"""Writes docs/models.md: which experiment runs on which architecture, tried on tiny random models of each.

    python scripts/models_page.py            # what takes a second or two each: five minutes
    python scripts/models_page.py --all      # all experiments, half an hour

Each model has large random weights, gains and biases (tests/architectures.py). "yes": it ran, and every identity that
it rests on held. Otherwise a number that refers to the line that a user would see.
"""

import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import architectures  # noqa: E402
import test_architectures as tried  # noqa: E402

from interp import catalog, models  # noqa: E402
from interp.errors import InterpError  # noqa: E402

SLOW = ("glitch_attribution", "undertrained", "embedding_repair", "repeat_prompt", "induction_heads", "argmaxability")
LEFT_OUT = ("dose_response", "check", "census")  # of bundled models, of every model, of the tokenizer alone
PAGE = """# What works on which architecture

**Does an experiment run, and is it right, on a given architecture?** Most do on most: the table has "yes" where the
experiment ran and every identity that it relies on held on the model at hand, including log-probs compared with an
independently loaded plain network. Otherwise it has the number of the message, below the table, that a user sees.

```sh
interp check organism-llama    # the same identities, on one model
```

The page is written by `python scripts/models_page.py --all`, not by hand. Each row is a tiny model with large random
weights, gains and biases, so that nothing is right by accident.

The tests try the cheap experiments on every row, the others on ten structurally different architectures
(`pytest -m architectures`) and, on request, on every row (`pytest -m everything`, an hour). `path_patching` needs
induction heads, which random models do not have: it is tried on copying circuits (`tests/test_architectures.py`).

{table}

{reasons}
"""


def answers(name: str, folder: Path, experiments: list[str]) -> Iterator[str]:
    """The outcome of each experiment on an architecture: "yes", or the line."""
    try:
        model = models.load(architectures.save(name, folder / name))
    except InterpError as error:
        yield from [str(error)] * len(experiments)
        return
    for experiment in experiments:
        try:
            result = tried.run(experiment, model)
        except InterpError as error:
            yield str(error)
            continue
        partly = [text for key, text in sorted(result.attrs.items()) if key.startswith("no_")]
        yield f"runs, but: {'; '.join(partly)}" if partly else "yes"


def plain(text: str, name: str, folder: Path) -> str:
    """A line without the paths of this machine."""
    return text.replace(str(folder / name), name).replace("|", "/")


def main() -> None:
    """Try everything and write the page."""
    warnings.simplefilter("ignore")
    left_out = (*LEFT_OUT, "path_patching", *(() if "--all" in sys.argv else SLOW))
    experiments = [name for name in catalog.names() if name not in left_out]
    rows, reasons = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in architectures.ARCHITECTURES:
            cells = []
            for text in answers(name, folder, experiments):
                said = plain(text, name, folder)
                cells.append(said if said == "yes" else str(reasons.setdefault(said, len(reasons) + 1)))
            rows.append(f"| `{name}` | {' | '.join(cells)} |")
            print(rows[-1], file=sys.stderr, flush=True)
    head = f"| architecture | {' | '.join(experiments)} |\n|{' --- |' * (len(experiments) + 1)}"
    listed = "\n".join(f"{number}. {text}" for text, number in reasons.items())
    (ROOT / "docs" / "models.md").write_text(
        PAGE.format(table="\n".join([head, *rows]), reasons=listed), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
