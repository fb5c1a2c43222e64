"""What text does a bundled model learn from, and what text is seen only by its tokenizer?

The corpus is source text. Every file has one of three parts:

- `seen`: the model trains on it;
- `withheld`: only the tokenizer sees it, which is how glitch tokens arise;
- `heldout`: the tokenizer sees it and the model is evaluated on it, never trained.

By default the text is the Python standard library of the running interpreter, without its tests
(Linux distributions leave them out) and without files generated at installation.
"""

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from interp.errors import InterpError

WITHHELD = ("encodings", "html", "lib2to3", "idlelib", "pydoc_data", "turtledemo")
_LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "lib-dynload"}
_GENERATED = ("_sysconfigdata", "config-")
_SUFFIXES = {".py", ".txt", ".md", ".rst"}
_HELDOUT_SHARE = 0.06


@dataclass(frozen=True)
class Corpus:
    """Source texts by part, in a fixed order, with a hash over names and contents."""

    name: str
    seen: tuple[str, ...]
    withheld: tuple[str, ...]
    heldout: tuple[str, ...]
    sha256: str

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts: what the tokenizer is trained on."""
        return self.seen + self.withheld + self.heldout


def corpus(folder: str | Path | None = None, withheld: tuple[str, ...] | None = None) -> Corpus:
    """Read the standard library, or every text file below `folder`.

    `withheld` names the top-level folders or files that the model never sees (default: `WITHHELD` for
    the standard library, nothing for another folder). About 6% of the other files, chosen by a hash of
    their name, are held out. Raises `InterpError` where there is too little text to train on.
    """
    root = Path(folder) if folder is not None else Path(sysconfig.get_paths()["stdlib"])
    if not root.is_dir():
        raise InterpError(f"no text folder at {root}: give a folder that holds .py, .txt, .md or .rst files")
    hidden = WITHHELD if withheld is None and folder is None else withheld or ()
    parts: dict[str, list[str]] = {"seen": [], "withheld": [], "heldout": []}
    digest = hashlib.sha256()
    paths = sorted(p for p in root.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
    names = {path.relative_to(root).parts[0] for path in paths}
    absent = [name for name in withheld or () if name not in names]
    if absent:
        raise InterpError(f"nothing to withhold at {root / absent[0]}: name a folder or file at the top of {root}")
    for path in paths:
        name = path.relative_to(root)
        if folder is None and (_LEFT_OUT.intersection(name.parts) or name.parts[0].startswith(_GENERATED)):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        chance = int(hashlib.sha256(name.as_posix().encode()).hexdigest()[:8], 16) / 2**32
        part = "withheld" if name.parts[0] in hidden else "heldout" if chance < _HELDOUT_SHARE else "seen"
        parts[part].append(text)
        digest.update(f"{part} {name.as_posix()} {len(text)}\n{text}".encode("utf-8", "replace"))
    size = sum(map(len, parts["seen"]))
    if size < 100_000 or not parts["heldout"]:
        raise InterpError(
            f"{root} holds {size} characters to train on and {len(parts['heldout'])} held-out files: "
            "give a folder with at least 100,000 characters of text in 30 files or more"
        )
    label = f"Python {sysconfig.get_python_version()} standard library" if folder is None else root.name
    return Corpus(label, tuple(parts["seen"]), tuple(parts["withheld"]), tuple(parts["heldout"]), digest.hexdigest())
