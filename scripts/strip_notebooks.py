"""Take outputs and execution counts out of notebooks.

    python scripts/strip_notebooks.py < in.ipynb > out.ipynb      as git's clean filter uses it
    python scripts/strip_notebooks.py notebooks/*.ipynb           in place
    python scripts/strip_notebooks.py --check notebooks/*.ipynb   change nothing: 1 where one is not stripped

A notebook that is stripped already stays as it is, to the byte. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any


def stripped(text: str) -> str:
    """The notebook without outputs, execution counts, times of execution and the state of widgets.

    Raises `ValueError` for a text that is no notebook of format 4.
    """
    notebook = json.loads(text)
    if not isinstance(notebook, dict) or notebook.get("nbformat") != 4 or not isinstance(notebook.get("cells"), list):
        raise ValueError("not a notebook of format 4")
    changed = [_strip(cell) for cell in notebook["cells"]]
    changed.append(notebook.get("metadata", {}).pop("widgets", None) is not None)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n" if any(changed) else text


def _strip(cell: dict[str, Any]) -> bool:
    """Strip one cell where it lies; whether there was anything to strip."""
    changed = cell.get("metadata", {}).pop("execution", None) is not None
    if cell.get("cell_type") == "code":
        changed |= bool(cell.get("outputs")) or cell.get("execution_count") is not None
        cell["outputs"], cell["execution_count"] = [], None
    return changed


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 where a file cannot be read as a notebook or, with `--check`, is not stripped."""
    parser = argparse.ArgumentParser(description="Take outputs and execution counts out of notebooks.")
    parser.add_argument("files", nargs="*", type=Path, help="notebooks, in place; none: from stdin to stdout")
    parser.add_argument("--check", action="store_true", help="change nothing, name those that are not stripped")
    asked = parser.parse_args(arguments)
    if not asked.files:
        try:
            before = sys.stdin.buffer.read().decode()
            after = stripped(before)
        except ValueError as error:
            return _say(f"stdin: {error}")
        if not asked.check:
            sys.stdout.buffer.write(after.encode())
            return 0
        return 0 if after == before else _say("stdin: not stripped")
    return max([_file(path, asked.check) for path in asked.files])


def _file(path: Path, check: bool) -> int:
    try:
        before = path.read_bytes().decode()  # bytes, so that line ends stay what they are
        after = stripped(before)
        if after == before:
            return 0
        if check:
            return _say(f"{path}: not stripped; mend it with: python scripts/strip_notebooks.py {path}")
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(after.encode())
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        return _say(f"{path}: {error}")
    return 0


def _say(line: str) -> int:
    sys.stderr.write(f"{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
