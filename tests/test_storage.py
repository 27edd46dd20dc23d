"""Files are written whole or not at all; what a full disk or a kill leaves is told, and cleared."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import sstune
from sstune.storage import StorageError, in_short, read_state, set_aside, write_bytes, write_json, write_text

ROOT = Path(sstune.__file__).parents[1]


class TestWrite:
    def test_replaces_the_file_and_follows_the_umask(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        before = os.umask(0o027)
        try:
            write_json(path, {"b": 1, "a": 2})
            write_json(path, {"b": 3, "a": 4})
        finally:
            os.umask(before)
        assert path.read_text() == '{\n "a": 4,\n "b": 3\n}\n'
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.listdir(tmp_path) == ["a.json"]

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (OSError(errno.ENOSPC, "x"), r"no space left on /\S* while writing {path}"),
            (OSError(errno.EDQUOT, "x"), "disk quota exceeded while writing {path}"),
            (OSError(errno.EIO, "x"), "input/output error while writing {path}"),
            (OSError(errno.EROFS, "x"), "read-only file system while writing {path}"),
            (KeyboardInterrupt(), ""),
        ],
    )
    @pytest.mark.parametrize("step", ["fsync", "replace"])
    @pytest.mark.parametrize("there", [True, False])
    def test_a_failure_is_named_and_leaves_things_as_they_were(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        said: str,
        step: str,
        there: bool,
    ) -> None:
        path = tmp_path / "a.json"
        if there:
            path.write_text("old")

        def fail(*arguments: object) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(os, step, fail)
            if isinstance(error, OSError):
                said = said.format(path=path) + ("; the earlier a.json is intact" if there else "") + "$"
                with pytest.raises(StorageError, match=said) as caught:
                    write_text(path, "new")
                assert caught.value.errno == error.errno
            else:
                with pytest.raises(KeyboardInterrupt):
                    write_text(path, "new")
        assert os.listdir(tmp_path) == (["a.json"] if there else [])
        assert not there or path.read_text() == "old"

    def test_a_real_limit_on_the_file_size_leaves_the_old_file(self, tmp_path: Path) -> None:
        program = (
            "import resource, sys; from pathlib import Path; from sstune.storage import write_json\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
            "path = Path(sys.argv[1]); write_json(path, 'small')\n"
            "try: write_json(path, 'large' * 4096)\n"
            "except OSError as error: print(error)"
        )
        path = tmp_path / "a.json"
        printed = subprocess.check_output(
            [sys.executable, "-c", program, str(path)], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True
        )
        assert printed == f"file too large while writing {path}; the earlier a.json is intact\n"
        assert json.loads(path.read_text()) == "small"
        assert os.listdir(tmp_path) == ["a.json"]

    def test_a_directory_that_is_gone_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "gone" / "a.json"
        with pytest.raises(StorageError, match=f"^{path.parent} is gone while writing {path}$"):
            write_text(path, "a")

    def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_ones_is_not(
        self, tmp_path: Path
    ) -> None:
        program = (
            "import os, sys, time; from pathlib import Path; from sstune import storage\n"
            "os.fsync = lambda file: (print('there', flush=True), time.sleep(60))\n"
            "storage.write_text(Path(sys.argv[1]), 'half')"
        )
        path = tmp_path / "table [1].csv"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program, str(path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "there\n"
            (half,) = os.listdir(tmp_path)
            write_text(path, "whole")
            assert set(os.listdir(tmp_path)) == {half, path.name}
            process.kill()
        write_text(tmp_path / "other.csv", "another's leftovers are let be")
        assert half in os.listdir(tmp_path)
        write_text(path, "again")
        assert set(os.listdir(tmp_path)) == {path.name, "other.csv"}

    def test_a_name_that_is_no_unicode_is_written_as_text(self, tmp_path: Path) -> None:
        write_text(tmp_path / "a.json", json.dumps("caf\udce9", ensure_ascii=False))
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == "caf\udce9"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_is_named_and_nothing_is_written(value: float, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"seconds": 1.5})
    with pytest.raises(FloatingPointError, match=r"result.json: layers.1.angle is -?(nan|inf), expected"):
        write_json(path, {"n": 1, "layers": [{"angle": 3.0}, {"angle": value}]})
    assert json.loads(path.read_text()) == {"seconds": 1.5}


class TestState:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "state.npz"
        np.savez_compressed(path, a=np.arange(1000))
        return path

    def read(self, path: Path) -> int:
        with np.load(path) as file:
            return int(file["a"].sum())

    def test_what_is_sound_is_read(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert read_state(path, self.read) == 499500
        assert read_state(path.with_name("none.npz"), self.read) is None
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("damage", ["half", "empty", "directory", "type", "fifo", "dangling", "key"])
    def test_what_is_not_is_set_aside_in_one_line(
        self, path: Path, damage: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = path.read_bytes()
        path.unlink()
        if damage in ("half", "empty"):
            path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
        elif damage == "directory":
            path.mkdir()
        elif damage == "fifo":
            os.mkfifo(path)
        elif damage == "dangling":
            path.symlink_to("nowhere")
        elif damage == "key":
            np.savez_compressed(path, b=np.arange(3))
        else:
            path.write_text("text")
        assert read_state(path, self.read) is None
        assert os.listdir(path.parent) == ["damaged.state.npz"]
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"sstune: {path}: cannot be used (")
        assert line.endswith("); renamed to damaged.state.npz, starting over")

    def test_every_flipped_bit_that_changes_the_content_is_found(self, path: Path) -> None:
        content = path.read_bytes()
        for place in range(0, len(content), 7):
            path.write_bytes(bytes([*content[:place], content[place] ^ 4, *content[place + 1 :]]))
            assert read_state(path, self.read) in (None, 499500)

    def test_a_flipped_bit_in_a_tensor_is_found(self, path: Path) -> None:
        np.savez(path, a=np.arange(1000))  # stored as it is: np.load would read the wrong number
        with zipfile.ZipFile(path) as file:
            place = path.read_bytes().index(np.arange(1000).tobytes())
            assert file.getinfo("a.npy").compress_type == zipfile.ZIP_STORED
        content = bytearray(path.read_bytes())
        content[place + 8] ^= 1
        path.write_bytes(content)
        assert read_state(path, self.read) is None

    def test_an_earlier_one_is_not_overwritten(self, path: Path) -> None:
        for name in ("damaged.state.npz", "damaged.2.state.npz", "damaged.3.state.npz"):
            path.write_text(name)
            set_aside(path, "why")
            assert (path.parent / name).read_text() == name

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            OSError(errno.ESTALE, "x"),
            OSError(errno.EMFILE, "x"),
            PermissionError(errno.EACCES, "x"),
        ],
    )
    def test_what_is_no_fault_of_the_file_is_not_taken_for_damage(self, path: Path, error: Exception) -> None:
        def read(path: Path) -> None:
            raise error

        with pytest.raises((MemoryError, StorageError)):
            read_state(path, read)
        assert os.listdir(path.parent) == [path.name]


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"\0\r\n")
    assert (tmp_path / "a").read_bytes() == b"\0\r\n"


def test_an_error_is_told_in_short() -> None:
    """A line that names a path has at most 200 characters: it leaves room for some of a foreign error."""
    assert (
        in_short(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "/a/long/path"))
        == "Is a directory"
    )
    assert in_short(ValueError("one\ntwo " + 50 * "x")) == "one two …"
    assert in_short(KeyError()) == "KeyError"
