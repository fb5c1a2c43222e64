"""Does the README work in a fresh clone? A fresh clone, then every command of the page, in order.

    python scripts/newcomer.py                            # the README: installs, runs the tests, then each command
    python scripts/newcomer.py --page docs/tour.md --without "make test"
    python scripts/newcomer.py --hub                      # those that fetch GPT-2, too

The last commit is cloned. The clone and its environments are removed, unless --keep names a folder for them.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HUB = ("gpt2", "EleutherAI/")  # names available only on the hub
_ENTRY = re.compile(r"```sh\n(?P<block>.*?)```|^\|[^\n]*?\| `(?P<cell>interp [^`\n]*)` \|", re.S | re.M)
_SAVED = re.compile(r"```python\n(.*?)```\n+Saved as `(\S+\.py)`", re.S)
_LASTING = ("make notebook",)  # starts a server that keeps running


def commands(page: str) -> list[str]:
    """The lines that a page tells its reader to type, in order: of its sh blocks and of its tables.

    Raises `ValueError` for any that are unknown here.
    """
    found = []
    for entry in _ENTRY.finditer(page):
        lines = (entry["block"] or entry["cell"]).replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines]
        odd = next((line for line in words if line and line[0] not in ("make", "interp")), None)
        if odd:
            raise ValueError(f"this script knows make and interp, and the page has: {shlex.join(odd)}")
        found += [shlex.join(line) for line in words if line]
    return [line for line in found if line not in _LASTING]


def saved(page: str) -> dict[str, str]:
    """The files that a page tells its reader to save: name and text."""
    return {name: code for code, name in _SAVED.findall(page)}


def walk(
    lines: list[str], folder: Path, environment: dict[str, str], hub: bool = False
) -> list[tuple[str, str, float]]:
    """Type each line in `folder`; (line, outcome, seconds). Failures show their last lines."""
    done = []
    for line in lines:
        if not hub and any(name in line for name in HUB):
            done.append((line, "skipped: needs the hub", 0.0))
            continue
        print(f"$ {line}", flush=True)
        began = time.monotonic()
        ran = subprocess.run(shlex.split(line), cwd=folder, env=environment, text=True, capture_output=True)
        verdict = "ok" if ran.returncode == 0 else f"FAILED ({ran.returncode})"
        done.append((line, verdict, time.monotonic() - began))
        if ran.returncode:
            print("\n".join((ran.stdout + ran.stderr).splitlines()[-25:]), flush=True)
    return done


def main(arguments: list[str] | None = None) -> int:
    """0 if every command worked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", action="append", help="a page of the clone (default: README.md); repeatable")
    parser.add_argument("--without", action="append", default=[], help="a command to leave out; repeatable")
    parser.add_argument("--hub", action="store_true", help="run what needs the Hugging Face hub, too")
    parser.add_argument("--pip", default="", help="options for pip, as in make demo PIP=...")
    parser.add_argument("--keep", type=Path, help="the clone goes here and stays")
    given = parser.parse_args(arguments)
    pages = given.page or ["README.md"]
    missing = next((page for page in pages if not (ROOT / page).is_file()), None)
    if missing or (given.keep and given.keep.exists()):
        parser.error(f"no page {missing}" if missing else f"{given.keep} exists: name a folder that does not")
    with tempfile.TemporaryDirectory() as temporary:
        clone = given.keep or Path(temporary) / "interp"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        outside = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "HF_HOME", "MAKEFLAGS", "MAKELEVEL"}
        environment = {name: value for name, value in os.environ.items() if name not in outside}
        environment |= {"HF_HOME": str(Path(temporary) / "huggingface"), "PIP": given.pip}
        environment["PATH"] = f"{clone / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"
        rows = []
        for name in pages:
            page = (clone / name).read_text(encoding="utf-8")
            for file, text in saved(page).items():
                (clone / file).write_text(text, encoding="utf-8")
            lines = [line for line in commands(page) if line not in given.without]
            if not lines:
                parser.error(f"{name} tells its reader to type nothing")
            if not (clone / ".venv").exists() and "make demo" not in lines:
                lines.insert(0, "make demo")
            rows += walk(lines, clone, environment, given.hub)
    print()
    for line, verdict, seconds in rows:
        print(f"{seconds:7.1f} s  {verdict:24}{line}")
    return int(any(verdict.startswith("FAILED") for _, verdict, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
