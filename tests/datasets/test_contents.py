"""What a directory's images hold is what it is known by; each is read once as long as it stays the same."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made import pairs
from PIL import Image

from sstune.composition import compose
from sstune.datasets import batches, contents, earlier_fingerprint, fingerprint, folder, load
from sstune.datasets.contents import scan
from sstune.runs import Run
from sstune.schema import FolderConfig, RequestError

Config = Callable[..., FolderConfig]
IMAGE = "train/zero/0000.png"


def exchange(one: Path, other: Path) -> None:
    """Two files of equal size exchange their contents; names, sizes and times of modification stay."""
    (first, second), stats = (one.read_bytes(), other.read_bytes()), (one.stat(), other.stat())
    size = max(len(first), len(second))
    for path, content, stat in zip((one, other), (second, first), stats, strict=True):
        path.write_bytes(content.ljust(size, b"\0"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def equal(tree: Path) -> Path:
    """The tree, all of whose files have the same size."""
    files = list(tree.rglob("*.png"))
    size = max(file.stat().st_size for file in files)
    for file in files:
        file.write_bytes(file.read_bytes().ljust(size, b"\0"))
    return tree


def again(config: FolderConfig) -> str | None:
    """The fingerprint that another process finds."""
    scan.cache_clear()
    return fingerprint(config)


@pytest.mark.parametrize("settled", [0, 10**12])
def test_other_bytes_of_the_same_size_are_other_data(
    settled: int, equal: Path, folder_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with the old times of modification, and whether or not digests are kept."""
    monkeypatch.setattr(contents, "_SETTLED", settled)
    config = folder_config(equal)
    before, known = again(config), earlier_fingerprint(config)
    exchange(equal / IMAGE, equal / "train/one/0000.png")
    assert again(config) != before
    assert earlier_fingerprint(config) == known  # by which they were the same
    exchange(equal / IMAGE, equal / "train/one/0000.png")
    assert again(config) == before


def test_it_follows_names_and_contents_of_images_alone(
    tree: Path, tmp_path: Path, folder_config: Config
) -> None:
    config = folder_config(tree)
    before = fingerprint(config)
    (tree / "notes.txt").write_text("not an image")
    (tree / "train/zero/.hidden.png").write_text("not an image")
    os.mkfifo(tree / "train/zero/pipe")
    os.utime(tree / IMAGE, ns=(1, 1))
    assert again(config) == before
    shutil.copytree(tree, tmp_path / "copy", ignore=shutil.ignore_patterns("pipe"))
    assert again(folder_config(tmp_path / "copy")) == before
    (tree / IMAGE).rename(tree / "train/zero/9999.png")
    assert again(config) != before


def test_it_does_not_depend_on_the_order_of_listing(
    tree: Path, folder_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, walk = fingerprint(folder_config(tree)), contents.walk
    monkeypatch.setattr(contents, "walk", lambda root: list(walk(root))[::-1])
    assert again(folder_config(tree)) == before


def test_earlier_versions_knew_it_by_names_and_sizes(tree: Path, folder_config: Config) -> None:
    digest = hashlib.sha256()
    for name in sorted(file.relative_to(tree).as_posix() for file in tree.rglob("*.png")):
        digest.update(f"{name}\0{(tree / name).stat().st_size}\0".encode())
    found = earlier_fingerprint(folder_config(tree))
    assert found is not None
    assert found.fingerprint == digest.hexdigest()
    assert found.changed == pytest.approx(max(file.stat().st_mtime for file in tree.rglob("*.png")))


class TestCache:
    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The names of the files that were read, in order."""
        names: list[str] = []
        digest = contents._digest

        def spy(path: Path) -> bytes:
            names.append(path.name)
            return digest(path)

        monkeypatch.setattr(contents, "_digest", spy)
        monkeypatch.setattr(contents, "_SETTLED", -(10**12))  # these files were made just now
        return names

    def test_a_file_is_read_again_only_when_it_was_changed(
        self, tree: Path, folder_config: Config, read: list[str]
    ) -> None:
        config = folder_config(tree)
        before = again(config)
        assert len(read) == 42
        assert again(config) == before
        assert len(read) == 42
        (tree / IMAGE).write_bytes((tree / IMAGE).read_bytes())
        assert again(config) == before
        assert read[42:] == ["0000.png"]

    @pytest.mark.parametrize("damage", [b"", b"hello", None])
    def test_a_damaged_one_is_made_anew(
        self, damage: bytes | None, tree: Path, folder_config: Config, read: list[str]
    ) -> None:
        config = folder_config(tree)
        before = again(config)
        (file,) = Path(config.cache).glob("contents-*")
        file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
        assert again(config) == before
        assert len(read) == 84
        assert again(config) == before
        assert len(read) == 84

    @pytest.mark.usefixtures("read")
    def test_a_file_changed_within_the_grain_of_the_clock_is_not_kept(
        self, tree: Path, folder_config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contents, "_SETTLED", 10**12)
        again(folder_config(tree))
        assert not list(Path(folder_config(tree).cache).glob("contents-*"))

    def test_much_is_announced(
        self,
        tree: Path,
        folder_config: Config,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture,
    ) -> None:
        monkeypatch.setattr(contents, "_MUCH", 1000)
        assert again(folder_config(tree))
        assert f"hashing 42 images of {tree}, once" in capsys.readouterr().out


def test_images_edited_while_a_process_works_are_not_kept_for_those_it_hashed(
    tree: Path, folder_config: Config
) -> None:
    config = folder_config(tree)
    fingerprint(config)
    Image.new("L", (8, 8), 9).save(tree / IMAGE)
    with pytest.raises(RequestError, match=f"{IMAGE} in .* changed while this process was running"):
        load(config)
    assert not list(Path(config.cache).glob("images-*"))


def test_a_streamed_image_is_the_one_that_was_listed(tree: Path, folder_config: Config) -> None:
    splits = load(folder_config(tree, stream=True, image_size=8), workers=1)
    assert len(list(pairs(batches(splits.test, 4, "cpu")))) == 3
    edited = tree / "test/zero/0003.png"
    edited.write_bytes(edited.read_bytes())
    with pytest.raises(RequestError, match=r"zero/0003.png in .* changed while this process was running"):
        list(pairs(batches(splits.test, 4, "cpu")))


def test_a_folder_linked_twice_is_read_twice_and_one_that_contains_itself_never(
    tree: Path, folder_config: Config
) -> None:
    (tree / "val").symlink_to("test")
    assert len(load(folder_config(tree, val_split="val")).val) == 12
    (tree / "train/one/again").symlink_to("../..")
    scan.cache_clear()
    with pytest.raises(RequestError, match=r"train/one/again in .* is a link to a folder that contains it"):
        load(folder_config(tree))


class TestEarlierRuns:
    """A run from before contents were hashed is found, unless its images were changed since."""

    @pytest.fixture
    def made(self, tree: Path, tmp_path: Path, folder_config: Config) -> tuple[Run, Callable[[], Run]]:
        config = replace(compose("train", [f"out={tmp_path / 'runs'}"]), dataset=folder_config(tree))
        earlier = earlier_fingerprint(config.dataset)
        assert earlier is not None
        old = Run(config, [], earlier.fingerprint)
        with old.lock():
            old.begin()
            old.finish(measurements=[])

        def found() -> Run:
            scan.cache_clear()
            data = fingerprint(config.dataset)
            return Run(config, [], data, earlier=earlier_fingerprint(config.dataset))

        return old, found

    def test_is_found(self, made: tuple[Run, Callable[[], Run]]) -> None:
        old, found = made
        assert (found().identity, found().directory) == (old.identity, old.directory)
        assert found().result() is not None

    def test_is_another_once_an_image_was_changed(
        self, made: tuple[Run, Callable[[], Run]], tree: Path
    ) -> None:
        old, found = made
        exchange(tree / IMAGE, tree / "train/one/0000.png")
        later = old.directory.joinpath("config.yaml").stat().st_mtime + 1
        os.utime(tree / IMAGE, (later, later))
        assert found().identity != old.identity
        assert found().result() is None

    def test_a_new_run_has_the_new_identity_though_there_is_an_old_one(
        self, made: tuple[Run, Callable[[], Run]], tree: Path
    ) -> None:
        old, found = made
        new = Run(old.config, [], fingerprint(old.config.dataset))
        with new.lock():
            new.begin()
        assert found().identity == new.identity


def test_decoding_again_under_a_new_format(
    tree: Path, folder_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache of before EXIF was obeyed is not used."""
    monkeypatch.setattr("sstune.datasets.cache._FORMAT", 1)
    load(folder_config(tree))
    monkeypatch.undo()
    decoded = []
    decode = folder.decode
    monkeypatch.setattr(folder, "decode", lambda *asked: decoded.append(1) or decode(*asked))
    load(folder_config(tree))
    assert decoded
