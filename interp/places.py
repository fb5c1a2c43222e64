"""Where do results lie that several processes share: in a folder, or at an address that fsspec knows?"""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePosixPath

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from interp.errors import InterpError, first_line
from interp.files import replacing, write_errors


class Place:
    """Files under one root, each read and written as a whole: nobody meets half of one.

    Args:
        address: a folder, or an address that fsspec knows, such as s3://bucket/survey.

    Raises:
        InterpError: the address is of a kind that is not installed.
    """

    def __init__(self, address: str | Path):
        try:
            self.system, self.root = url_to_fs(str(address))
        except (ImportError, ValueError) as error:
            raise InterpError(f"no way to {address} ({first_line(error)}): install what fsspec needs for it") from error
        self.folder = Path(self.root) if isinstance(self.system, LocalFileSystem) else None
        # as other processes find it, wherever they were started
        self.address = str(address) if self.folder is None else str(self.folder)

    def _at(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        try:
            return bytes(self.system.cat_file(self._at(name)))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def read_all(self, pattern: str) -> dict[str, bytes]:
        """The contents of all files that a pattern names, by their names."""
        paths = self.system.glob(self._at(pattern))
        found = self.system.cat(paths, on_error="omit") if paths else {}
        root = PurePosixPath(self.root)
        return {str(PurePosixPath(path).relative_to(root)): bytes(content) for path, content in found.items()}

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically. Raises `InterpError` where that is not possible."""
        with write_errors(f"{name} in {self.address}"):
            if self.folder is None:  # what stores objects shows one when all of it is there
                self.system.pipe_file(self._at(name), content)
                return
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(content)

    def size(self, name: str) -> int | None:
        """How many bytes a file has; None where there is none."""
        try:
            return int(self.system.info(self._at(name))["size"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def fetch(self, name: str, path: Path) -> bool:
        """Copy a file to this machine; whether there is one."""
        content = self.read(name)
        if content is None:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        return True

    def remove(self, name: str) -> None:
        """Remove a file or a folder, if it is there."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self.system.rm(self._at(name), recursive=True)
