from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sstune.datasets import archive
from sstune.datasets.archive import digests, fingerprint, place, read, scan
from sstune.schema import DigitsConfig, FolderConfig, RequestError, TorchvisionConfig

Pack = Callable[..., Path]
Config = Callable[..., FolderConfig]


def test_only_folders_have_a_fingerprint() -> None:
    assert fingerprint(DigitsConfig(name="digits")) is None
    assert fingerprint(TorchvisionConfig(name="cifar10")) is None


def test_fingerprint_of_an_archive_is_its_sha256_and_follows_its_content(
    tree: Path, pack: Pack, folder_config: Config
) -> None:
    root = pack(tree, "a.tar.gz")
    before = fingerprint(folder_config(root))
    assert before == hashlib.sha256(root.read_bytes()).hexdigest()
    root.write_bytes(root.read_bytes() + b"\0")
    assert fingerprint(folder_config(root)) == hashlib.sha256(root.read_bytes()).hexdigest() != before


def test_an_archive_is_hashed_once_per_process(
    tree: Path, pack: Pack, folder_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder_config(pack(tree, "a.tar"))
    first = fingerprint(config)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
    assert fingerprint(config) == first


def test_fingerprint_of_a_directory_follows_names_and_sizes_of_images(
    tree: Path, folder_config: Config
) -> None:
    config = folder_config(tree)
    before, momentary = digests(tree)
    assert fingerprint(config) == before
    (tree / "notes.txt").write_text("not an image")
    (tree / "train/zero/.hidden.png").write_text("not an image")
    os.utime(tree / "train/zero/0000.png", ns=(1, 1))
    assert digests(tree) == (before, momentary)  # once per process: a sweep does not scan for every cell
    scan.cache_clear()
    assert fingerprint(config) == before
    assert digests(tree)[1] != momentary

    image = tree / "train/zero/0000.png"
    image.rename(image.with_name("9999.png"))
    scan.cache_clear()
    renamed = fingerprint(config)
    assert renamed != before
    image.with_name("9999.png").write_bytes(b"longer")
    scan.cache_clear()
    assert fingerprint(config) not in (before, renamed)


def test_fingerprint_of_a_directory_does_not_depend_on_the_order_of_listing(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(tree)
    listing = list(os.walk(tree))
    monkeypatch.setattr(
        os, "walk", lambda *_, **__: [(at, dirs, files[::-1]) for at, dirs, files in listing[::-1]]
    )
    scan.cache_clear()
    assert digests(tree) == before


@pytest.mark.parametrize("name", ["absent", "absent.tar"])
def test_an_absent_root_is_named(name: str, tmp_path: Path, folder_config: Config) -> None:
    with pytest.raises(RequestError, match=f"dataset.root: .*{name}"):
        fingerprint(folder_config(tmp_path / name))


@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".tar.gz"])
@pytest.mark.parametrize("prefix", ["", "./", "/", "wrapping/"])
def test_an_archive_reads_like_the_directory(suffix: str, prefix: str, tree: Path, pack: Pack) -> None:
    names = dict(read(tree))
    assert len(names) == 42
    wrapper = "wrapping/" if prefix == "wrapping/" else ""
    found = dict(read(pack(tree, f"a{suffix}", prefix)))
    assert found == {wrapper + name: content for name, content in names.items()}


def test_only_visible_regular_image_files_are_read(
    tree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    png = (tree / "train/zero/0000.png").read_bytes()
    root = tmp_path / "mixed.tar"
    members = ["a/b/1.png", "a/b/2.PNG", "a/b/._1.png", "__MACOSX/a/1.png", ".git/b/1.png", "a/b/notes.txt"]
    with tarfile.open(root, "w") as tar:
        for name in [*members, "a/../../3.png"]:
            member = tarfile.TarInfo(name)
            member.size = len(png)
            tar.addfile(member, io.BytesIO(png))
        for name, kind in [("a/b/link.png", tarfile.SYMTYPE), ("a/b/pipe.png", tarfile.FIFOTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        directory = tarfile.TarInfo("a/b/folder.png")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
    assert [name for name, _ in read(root)] == ["a/b/1.png", "a/b/2.PNG"]
    assert "skipped 2 links" in caplog.text


@pytest.mark.parametrize("packed", [False, True])
def test_oversized_files_are_refused_by_name(
    packed: bool, tree: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "train/zero/0003.png").write_bytes(b"x" * 2001)
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 2000)
    with pytest.raises(RequestError, match=r"train/zero/0003.png .* 2,001 bytes"):
        list(read(pack(tree, "a.tar") if packed else tree))


@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".tar.gz"])
@pytest.mark.parametrize("kept", [0.1, 0.35, 0.6, 0.9])
def test_a_truncated_archive_is_an_error_not_a_smaller_dataset(
    suffix: str, kept: float, tree: Path, pack: Pack
) -> None:
    root = pack(tree, f"a{suffix}")
    content = root.read_bytes()
    end = len(content) if suffix != ".tar" else 42 * 1024  # what follows is tar's zero padding
    cut = int(end * kept) // 1024 * 1024 + 100 if suffix == ".tar" else int(end * kept)  # inside a header
    root.write_bytes(content[:cut])
    with pytest.raises(RequestError, match="damaged or no tar archive"):
        list(read(root))


def test_a_damaged_header_in_the_middle_is_an_error(tree: Path, pack: Pack) -> None:
    root = pack(tree, "a.tar")
    content = bytearray(root.read_bytes())
    content[10 * 1024 : 10 * 1024 + 512] = b"x" * 512
    root.write_bytes(content)
    with pytest.raises(RequestError, match="bad header at byte 10240"):
        list(read(root))


def test_a_file_that_is_no_archive_is_an_error(tree: Path) -> None:
    with pytest.raises(RequestError, match="damaged or no tar archive"):
        list(read(tree / "train/zero/0000.png"))


@pytest.mark.parametrize(
    ("names", "placed"),
    [
        (["train/a/1.png", "test/a/1.png"], ["train/a/1.png", "test/a/1.png"]),
        (["w/train/a/1.png", "w/test/a/1.png"], ["train/a/1.png", "test/a/1.png"]),
        (["w/train/a/1.png", "w/preview/1.png"], ["train/a/1.png", None]),
        (["preview.png", "train/1.png", "train/a/1.png"], [None, None, "train/a/1.png"]),
        (["train/a/1.png", "train/b/1.png"], ["train/a/1.png", "train/b/1.png"]),
        (["train/a/x/1.png", "test/a/1.png"], ["train/a/x/1.png", "test/a/1.png"]),
        (["w/train/a/x/1.png"], ["train/a/x/1.png"]),
        ([], []),
    ],
)
def test_place(names: list[str], placed: list[str | None]) -> None:
    expected = {name: path for name, path in zip(names, placed, strict=True) if path is not None}
    assert place(names) == expected
