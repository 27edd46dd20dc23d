from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sstune.datasets import contents
from sstune.datasets.archive import fingerprint, read, tree_layout
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
    monkeypatch.setattr(contents, "MAX_FILE_BYTES", 2000)
    with pytest.raises(RequestError, match=r"train/zero/0003.png .* 2,001 bytes"):
        list(read(pack(tree, "a.tar") if packed else tree))


@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".tar.gz"])
def test_an_archive_cut_anywhere_is_an_error_not_a_smaller_dataset(
    suffix: str, tree: Path, pack: Pack
) -> None:
    """At every boundary of a plain archive's blocks, and at many places of a compressed one."""
    root = pack(tree, f"a{suffix}")
    content = root.read_bytes()
    with tarfile.open(root) as archive:
        archive.getmembers()
        end = archive.offset + 2 * tarfile.BLOCKSIZE  # behind it are zeros that nobody needs
    cuts = range(0, end, 512) if suffix == ".tar" else [*range(0, len(content), 97), len(content) - 1]
    for cut in cuts:
        root.write_bytes(content[:cut])
        with pytest.raises(RequestError, match="damaged or not a tar archive"):
            list(read(root))
    root.write_bytes(content[:end] if suffix == ".tar" else content)
    assert len(list(read(root))) == 42


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
def test_tree_layout(names: list[str], placed: list[str | None]) -> None:
    expected = {name: path for name, path in zip(names, placed, strict=True) if path is not None}
    assert tree_layout(names) == expected
