"""Is a file written atomically, also by two processes at once?"""

import os
import platform
import subprocess
import sys

import pytest

from interp import files
from interp.errors import InterpError


def _fail_half_way(path):
    with files.replacing(path) as temporary:
        temporary.write_text("half")
        temporary.write_text(str(1 / 0))


def test_a_file_is_written_atomically(tmp_path):
    files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(ZeroDivisionError):
        _fail_half_way(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_processes_never_share_a_temporary_name(tmp_path):
    code = f"""
from interp.files import replacing
with replacing({str(tmp_path / "a.txt")!r}) as temporary:
    print(temporary, flush=True)
    temporary.write_text("theirs")
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = other.stdout.readline().strip()
        with files.replacing(tmp_path / "a.txt") as mine:
            assert str(mine) != theirs
            mine.write_text("mine")
        assert (tmp_path / "a.txt").read_text() == "mine"
        other.communicate("\n")
    assert (other.returncode, (tmp_path / "a.txt").read_text()) == (0, "theirs")


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = platform.node()
    left = tmp_path / f".a.tmp-{host}-{dead.pid}.txt"
    of_others = [tmp_path / f".a.tmp-elsewhere-{dead.pid}.txt", tmp_path / f".a.tmp-{host}-{os.getppid()}.txt"]
    for path in (left, *of_others):
        path.touch()
    files.write_text(tmp_path / "a.txt", "whole")
    assert not left.exists()
    assert all(path.exists() for path in of_others)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path):
    assert files.writable(tmp_path / "new" / "folder").is_dir()
    assert os.listdir(tmp_path / "new" / "folder") == []
    (tmp_path / "file").touch()
    with pytest.raises(InterpError, match="choose another --out"):
        files.writable(tmp_path / "file" / "folder")


def test_what_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InterpError, match=r"^cannot write here \(Not a directory\): choose another --out$"),
        files.write_errors("here"),
    ):
        (tmp_path / "file" / "folder").mkdir()
    with (
        pytest.raises(InterpError, match=r"\(netCDF says no\)"),  # an error without a number of the system's
        files.write_errors("here"),
    ):
        raise OSError("netCDF says no")
