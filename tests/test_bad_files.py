"""Data files and checkpoints that are wrong, damaged or hostile, and what a command line answers to each.

One line that names the file (and the entry in it), exit status 2, and no run directory.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import pickle
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR10, SVHN, Flowers102

Ask = Callable[..., Any]
Make = Callable[[Path], object]

TINY = ["backbone=mlp", "backbone.hidden=[4]", "epochs=1", "batch_size=8", "device=cpu", "threads=1"]
FOLDER = ["train", "dataset=folder", "dataset.label=d", "dataset.cache=cache", *TINY]
IMAGE = "train/one/3.png"


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file by its parts, which may contradict each other."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


GREY = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
COLOUR = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
GOOD = encoded(GREY)
JPEG = encoded(COLOUR, "JPEG")


def deep_tiff() -> bytes:
    data = np.full((8, 8, 3), 0x1234, "<u2").tobytes()
    tags = [(256, 3, 1, 8), (257, 3, 1, 8), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 128), (277, 3, 1, 3), (278, 3, 1, 8), (279, 4, 1, len(data))]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0\x08\0\0\0\x09\0" + entries + b"\0" * 4 + struct.pack("<HHH", 16, 16, 16) + data


DEEP = np.full(8 * 8 * 4, 0x1234, ">u2").tobytes()


def deep(channels: int) -> bytes:
    return b"".join(b"\0" + DEEP[: 16 * channels] for _ in range(8))


# What stands in an image file -> what is said of it.
IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM image"),
    "text": (b"hello" * 20, "not a JPEG"),
    "HTML page": (b"<!DOCTYPE html><html>404</html>", "not a JPEG"),
    "EPS, for Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", "not a JPEG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG"),
    "ICO": (encoded(COLOUR, "ICO"), "not a JPEG"),
    "PDF": (b"%PDF-1.4\n", "not a JPEG"),
    "PCX": (encoded(GREY, "PCX"), "not a JPEG"),
    "zip": (b"PK\x03\x04" + b"\0" * 40, "not a JPEG"),
    "PNG, half": (GOOD[: len(GOOD) // 2], "cannot decode"),
    "PNG, its header only": (GOOD[:33], "cannot decode"),
    "PNG, a bit flipped": (GOOD[:50] + bytes([GOOD[50] ^ 1]) + GOOD[51:], "cannot decode"),
    "PNG of 16-bit grey": (png(8, 8, 16, 0, deep(1)), "more than 8 bits per channel"),
    "PNG of 16-bit RGB": (png(8, 8, 16, 2, deep(3)), "more than 8 bits per channel"),
    "PNG of 16-bit RGBA": (png(8, 8, 16, 6, deep(4)), "more than 8 bits per channel"),
    "PNG of 16-bit grey with alpha": (png(8, 8, 16, 4, deep(2)), "more than 8 bits per channel"),
    "TIFF of 16-bit RGB": (deep_tiff(), "more than 8 bits per channel"),
    "TIFF of floats": (encoded(Image.new("F", (8, 8)), "TIFF"), "more than 8 bits per channel"),
    "PPM of 16 bits": (b"P6 8 8 65535\n" + DEEP, "more than 8 bits per channel"),
    "PPM of 10 bits": (b"P6 8 8 1023\n" + b"\1\2" * 192, "more than 8 bits per channel"),
    "PGM of 16 bits": (b"P5 8 8 65535\n" + DEEP, "more than 8 bits per channel"),
    "PGM of no size": (b"P5 0 0 255\n", "cannot decode"),
    "a strip of 60,000 x 1": (encoded(Image.new("L", (60_000, 1))), "60,000 x 1 pixels"),
    "a column of 1 x 60,000": (encoded(Image.new("L", (1, 60_000))), "1 x 60,000 pixels"),
    "bomb": (png(50_000, 50_000, 1, 0, b""), "decompression bomb"),
    "smaller bomb": (png(13_000, 13_000, 1, 0, b""), "13,000 x 13,000 pixels"),
    "JPEG, half": (JPEG[: len(JPEG) // 2], "runcated"),
    "JPEG, without its end": (JPEG[:-2], "truncated"),
    "GIF, half": (encoded(GREY, "GIF")[:60], "cannot decode"),
    "BMP, half": (encoded(COLOUR, "BMP")[:100], "truncated"),
    "WebP, half": (encoded(COLOUR, "WEBP")[:40], "cannot decode"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of 2 classes, 10 + 3 images each."""
    root = tmp_path_factory.mktemp("sound")
    for split, n in (("train", 10), ("test", 3)):
        for label, name in enumerate(("one", "two")):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.full((8, 8), 100 * label + i, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def answered(ask: Ask, tmp_path: Path, line: list[str], *named: str) -> None:
    answer = ask(*line)
    assert answer.status == 2, answer.err
    assert len(answer.errors) == 1, answer.err
    assert answer.err.startswith("sstune: ")
    assert len(answer.errors[0]) <= 200, answer.err
    assert [part for part in named if part not in answer.err] == [], answer.err
    assert not [path for path in (tmp_path / "runs").glob("*/*") if path.name != "lock"]


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_file(case: str, ask: Ask, sound: Path, tmp_path: Path) -> None:
    """In a directory and in memory; see also the next two tests."""
    shutil.copytree(sound, tmp_path / "tree")
    content, said = IMAGES[case]
    (tmp_path / "tree" / IMAGE).write_bytes(content)
    line = [*FOLDER, "dataset.root=tree", "dataset.image_size=8"]
    answered(ask, tmp_path, line, f"dataset.root: cannot decode {IMAGE} in tree: ", said)


@pytest.mark.parametrize("case", ["EPS, for Ghostscript", "a strip of 60,000 x 1", "PNG of 16-bit RGB"])
@pytest.mark.parametrize("way", ["in an archive", "streamed"])
def test_an_image_file_elsewhere(case: str, way: str, ask: Ask, sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "tree")
    content, said = IMAGES[case]
    for file in (tmp_path / "tree/train").rglob("*.png"):
        file.write_bytes(content)
    line = [*FOLDER, "dataset.image_size=8", "workers=0"]
    if way == "streamed":
        answered(ask, tmp_path, [*line, "dataset.root=tree", "dataset.stream=true"], ".png in tree: ", said)
    else:
        with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "tree", ".")
        answered(ask, tmp_path, [*line, "dataset.root=a.tar.gz"], ".png in a.tar.gz: ", said)


def a_socket(path: Path) -> None:
    path.unlink()
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
    os.chdir(here)


def replaced(make: Callable[[Path], object]) -> Make:
    """Something else in the place of one image."""

    def at(root: Path) -> None:
        (root / IMAGE).unlink()
        make(root / IMAGE)

    return at


def renamed(name: bytes) -> Make:
    """A damaged image of that name."""

    def at(root: Path) -> None:
        (root / IMAGE).unlink()
        with open(os.path.join(os.fsencode(root / "train/one"), name), "wb") as file:
            file.write(b"damaged")

    return at


def long_ago(root: Path) -> None:
    shutil.rmtree(root / "test")


# What is done to a tree -> what is said of it.
TREES: dict[str, tuple[Make, tuple[str, ...]]] = {
    "FIFO": (replaced(os.mkfifo), (IMAGE, "is a FIFO")),
    "socket": (lambda root: a_socket(root / IMAGE), (IMAGE, "is a socket")),
    "device": (replaced(lambda path: path.symlink_to("/dev/zero")), (IMAGE, "is a device")),
    "link to nothing": (replaced(lambda path: path.symlink_to("nowhere")), (IMAGE, "cannot be read")),
    "link to itself": (replaced(lambda path: path.symlink_to(path.name)), (IMAGE, "cannot be read")),
    "file of 300 MB": (lambda root: os.truncate(root / IMAGE, 300 * 2**20), (IMAGE, "314,572,800 bytes")),
    "loop": (lambda root: (root / "train/one/again").symlink_to(".."), ("train/one/again", "contains it")),
    "loop to its root": (lambda root: (root / "train/all").symlink_to(root), ("train/all", "contains it")),
    "name of two lines": (renamed(b"a\nb.png"), ("train/one/a\\nb.png in tree",)),
    "name with escapes": (renamed(b"\x1b[31mred.png"), ("train/one/\\x1b[31mred.png in tree",)),
    "name that is not Unicode": (renamed(b"\xff.png"), ("train/one/\\udcff.png in tree",)),
    "no test split": (long_ago, ("dataset.test_split: 'test' not found in tree", "available: train")),
    "a class of test only": (
        lambda root: (root / "test/one").rename(root / "test/th\nree"),
        ("dataset.test_split: class 'th\\nree' of 'test' is absent from 'train'",),
    ),
    "one class of train": (lambda root: shutil.rmtree(root / "train/two"), ("class 'two' of 'test'",)),
    "no image": (lambda root: [path.unlink() for path in root.rglob("*.png")], ("no image <split>",)),
    "images of two sizes": (
        lambda root: Image.new("L", (9, 7)).save(root / IMAGE),
        ("dataset.image_size: must be set", IMAGE, "9x7"),
    ),
    "a tree of links to one file": (
        lambda root: [path.unlink() or path.symlink_to("/dev/full") for path in root.rglob("*.png")],
        ("is a device",),
    ),
}


@pytest.mark.parametrize("case", TREES)
def test_a_tree(case: str, ask: Ask, sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "tree")
    harm, said = TREES[case]
    harm(tmp_path / "tree")
    answered(ask, tmp_path, [*FOLDER, "dataset.root=tree"], "dataset.", "tree", *said)


def _of_no_time(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = 0  # which a header of one block has room for
    return member


def packed(sound: Path, path: Path, change: Callable[[tarfile.TarFile], object] | None = None) -> bytes:
    """The sound tree as an archive, ``change`` adding something to it; returns its bytes."""
    mode = {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w")
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for file in sorted(sound.rglob("*.png")):
            tar.add(file, file.relative_to(sound).as_posix(), filter=_of_no_time)
        if change is not None:
            change(tar)
    return path.read_bytes()


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Path, Path], object]:
    return lambda sound, path: path.write_bytes(change(packed(sound, path)))


def cut(n: int) -> Callable[[Path, Path], object]:
    return rewritten(lambda content: content[:n])


def with_file(name: str, content: bytes = GOOD) -> Callable[[Path, Path], object]:
    def change(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))

    return lambda sound, path: packed(sound, path, change)


def overwritten(content: bytes, start: int, by: bytes) -> bytes:
    return content[:start] + by + content[start + len(by) :]


END = 26 * 1024  # 26 images of a header and one block each
# An archive's name and how it comes to be -> what is said of it.
ARCHIVES: dict[str, tuple[str, Callable[[Path, Path], object], str]] = {
    "empty": ("a.tar", lambda _, path: path.write_bytes(b""), "damaged or not a tar archive"),
    "text": ("a.tar", lambda _, path: path.write_text("hello" * 999), "damaged or not a tar archive"),
    "HTML page": (
        "a.tar.gz",
        lambda _, path: path.write_text("<html>404</html>"),
        "damaged or not a tar archive",
    ),
    "zip": ("a.zip", lambda _, path: zipfile.ZipFile(path, "w").close(), "damaged or not a tar archive"),
    "an image": ("a.png", lambda _, path: path.write_bytes(GOOD), "damaged or not a tar archive"),
    "FIFO": ("a.tar", lambda _, path: os.mkfifo(path), "is a FIFO, not a file"),
    "device": ("a.tar", lambda _, path: path.symlink_to("/dev/zero"), "is a device, not a file"),
    "link to nothing": ("a.tar", lambda _, path: path.symlink_to("nowhere"), "does not exist"),
    "no images": (
        "a.tar",
        lambda _, path: tarfile.open(path, "w").close(),
        "no image <split>/<class>/<image>",
    ),
    "cut between members": ("a.tar", cut(10 * 1024), "it is truncated"),
    "cut behind a header": ("a.tar", cut(10 * 1024 + 512), "unexpected end of data"),
    "cut inside a header": ("a.tar", cut(10 * 1024 + 100), "bad header at byte 10240"),
    "cut behind the last member": ("a.tar", cut(END), "it is truncated"),
    "cut between its end blocks": ("a.tar", cut(END + 512), "it is truncated"),
    "a header damaged": (
        "a.tar",
        rewritten(lambda content: overwritten(content, 10 * 1024, b"x" * 512)),
        "bad header at byte 10240",
    ),
    "a header of zeros": (
        "a.tar",
        rewritten(lambda content: overwritten(content, 10 * 1024, b"\0" * 512)),
        "bad header at byte 10240",
    ),
    "garbage behind its end": ("a.tar", rewritten(lambda content: content + b"x" * 512), "behind its end"),
    "another archive behind it": ("a.tar", rewritten(lambda content: 2 * content), "behind its end"),
    "gzip, half": ("a.tar.gz", rewritten(lambda content: content[: len(content) // 2]), "end-of-stream"),
    "gzip, without its checksum": ("a.tar.gz", rewritten(lambda content: content[:-8]), "end-of-stream"),
    "gzip, another checksum": (
        "a.tar.gz",
        rewritten(lambda content: overwritten(content, len(content) - 8, b"xxxx")),
        "CRC check failed",
    ),
    "gzip, garbage behind it": ("a.tar.gz", rewritten(lambda content: content + b"x"), "Not a gzipped file"),
    "gzip of a cut archive": (
        "a.tar.gz",
        rewritten(lambda content: gzip.compress(gzip.decompress(content)[: 10 * 1024])),
        "it is truncated",
    ),
    "xz, half": ("a.tar.xz", rewritten(lambda content: content[: len(content) // 2]), "end-of-stream"),
    "xz, without its footer": ("a.tar.xz", rewritten(lambda content: content[:-12]), "end-of-stream"),
    "xz, garbage behind it": ("a.tar.xz", rewritten(lambda content: content + b"xxxx"), "behind the end"),
    "xz of a cut archive": (
        "a.tar.xz",
        rewritten(lambda content: lzma.compress(lzma.decompress(content)[:END])),
        "it is truncated",
    ),
    "xz of zeros without end": (
        "a.tar.xz",
        rewritten(lambda content: lzma.compress(lzma.decompress(content) + bytes(65 * 2**20), preset=0)),
        "zeros follow its end",
    ),
    "an image twice": ("a.tar", with_file(f"./{IMAGE}"), f"{IMAGE} appears twice"),
    "a damaged image": ("a.tar", with_file("train/one/x.png", b"x"), "cannot decode train/one/x.png"),
    "a name of two lines": ("a.tar", with_file("train/one/x\ny.png", b"x"), "train/one/x\\ny.png"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive(case: str, ask: Ask, sound: Path, tmp_path: Path) -> None:
    name, make, said = ARCHIVES[case]
    make(sound, tmp_path / name)
    answered(ask, tmp_path, [*FOLDER, f"dataset.root={name}"], "dataset.root: ", f"{name}", said)


def idx(root: Path, **changes: bytes | int) -> None:
    """MNIST's four files, unpacked, with zeros for pixels and labels; one of them changed."""
    folder = root / "MNIST/raw"
    folder.mkdir(parents=True)
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        for what, magic, shape in (("images-idx3", 2051, (n, 28, 28)), ("labels-idx1", 2049, (n,))):
            with (folder / f"{part}-{what}-ubyte").open("wb") as file:
                file.write(b"".join(value.to_bytes(4, "big") for value in (magic, *shape)))
                file.truncate(file.tell() + int(np.prod(shape)))
    file_changed = folder / str(changes["file"])
    with file_changed.open("r+b") as file:
        if "size" in changes:
            file.truncate(int(changes["size"]))
        else:
            file.seek(int(changes["at"]))
            file.write(bytes(changes["by"]))  # type: ignore[arg-type]


def put(name: str, content: bytes = b"damaged") -> Make:
    def at(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)

    return at


TRAIN_IMAGES, TEST_LABELS = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
# A published dataset and what lies in its root -> what is said of it.
PACKAGES: dict[str, tuple[str, Make, tuple[str, ...]]] = {
    "MNIST, a file cut short": (
        "mnist",
        lambda root: idx(root, file=TRAIN_IMAGES, size=999),
        (TRAIN_IMAGES, "999 bytes, not 47,040,016"),
    ),
    "MNIST, an empty file": ("mnist", lambda root: idx(root, file=TEST_LABELS, size=0), (TEST_LABELS,)),
    "MNIST, another magic number": (
        "mnist",
        lambda root: idx(root, file=TRAIN_IMAGES, at=0, by=b"\0\0\x0d"),
        (TRAIN_IMAGES, "does not begin"),
    ),
    "MNIST, another number of images": (
        "mnist",
        lambda root: idx(root, file=TRAIN_IMAGES, at=4, by=b"\xff\xff\xff\xff"),
        (TRAIN_IMAGES, "does not begin"),
    ),
    "MNIST, a label that is none": (
        "mnist",
        lambda root: idx(root, file=TEST_LABELS, at=99, by=b"\x4d"),
        (TEST_LABELS, "the label 77"),
    ),
    "Fashion-MNIST, its archive damaged": (
        "fashion_mnist",
        put("FashionMNIST/raw/train-images-idx3-ubyte.gz"),
        ("train-images-idx3-ubyte.gz", "md5"),
    ),
    "CIFAR-10, its archive damaged": ("cifar10", put(CIFAR10.filename), (CIFAR10.filename, "md5")),
    "CIFAR-10, its archive empty": ("cifar10", put(CIFAR10.filename, b""), (CIFAR10.filename, "md5")),
    "CIFAR-10, a pickle with code": (
        "cifar10",
        put("cifar-10-batches-py/data_batch_1", pickle.dumps(os.getcwd)),
        ("data_batch_1", "md5"),
    ),
    "CIFAR-10, an unpacked file absent": (
        "cifar10",
        lambda root: (root / "cifar-10-batches-py").mkdir(parents=True),
        ("data_batch_1", "is absent"),
    ),
    "CIFAR-100, an unpacked file damaged": ("cifar100", put("cifar-100-python/train"), ("train", "md5")),
    "SVHN, damaged": ("svhn", put(SVHN.split_list["train"][1]), (SVHN.split_list["train"][1], "md5")),
    "Flowers, labels damaged": (
        "flowers102",
        put("flowers-102/imagelabels.mat"),
        ("imagelabels.mat", Flowers102._file_dict["label"][1]),
    ),
    "Imagenette, its archive damaged": ("imagenette", put("imagenette2-320.tgz"), ("imagenette2-320.tgz",)),
    "Tiny ImageNet, without a list": ("tiny_imagenet", put("train/x/images/0.JPEG"), ("wnids.txt",)),
    "Tiny ImageNet, a list of bytes": ("tiny_imagenet", put("wnids.txt", b"\xff\xfe\0"), ("wnids.txt",)),
    "Tiny ImageNet, a list that is a folder": (
        "tiny_imagenet",
        lambda root: (root / "wnids.txt").mkdir(parents=True),
        ("wnids.txt", "not a regular file"),
    ),
    "Tiny ImageNet, labels of another kind": (
        "tiny_imagenet",
        lambda root: [put("wnids.txt", b"n1")(root), put("val/val_annotations.txt", b"one column\n")(root)],
        ("val_annotations.txt",),
    ),
}


@pytest.mark.parametrize("case", PACKAGES)
def test_a_package(case: str, ask: Ask, tmp_path: Path) -> None:
    name, make, said = PACKAGES[case]
    make(tmp_path / "root")
    line = ["train", f"dataset={name}", "dataset.root=root", "backbone=mlp", "device=cpu", "threads=1"]
    if name != "tiny_imagenet":
        line.append("dataset.download=false")
    answered(ask, tmp_path, line, "dataset.root: ", "root", *said)


class Code:
    """Unpickling it would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def saved(content: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def expanding() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x")
        archive.writestr("archive/data/0", bytes(20 * 2**20))
    return file.getvalue()


STATE = {"state_dict": nn.Linear(64, 10).state_dict()}
WHOLE = saved(STATE)
FLIPPED = overwritten(WHOLE, WHOLE.index(STATE["state_dict"]["weight"].numpy().tobytes()[:64]), b"flip")

CHECKPOINTS: dict[str, tuple[bytes, str]] = {
    "empty.pth": (b"", "it is empty"),
    "text.pth": (b"hello\nworld\n", "neither a zip of tensors nor a pickle"),
    "page.pth": (b"<!DOCTYPE html><html>404</html>", "neither a zip of tensors nor a pickle"),
    "half.pth": (WHOLE[: len(WHOLE) // 2], "damaged or truncated"),
    "tail.pth": (WHOLE[:-20], "damaged or truncated"),
    "flipped.pth": (FLIPPED, "wrong checksum of "),
    "half-legacy.pth": (saved(STATE, zipped=False)[:400], "not a checkpoint that can be read safely"),
    "bomb.pth": (expanding(), "expand to 20,971,521"),
    "code.pth": (saved(Code()), "imports posix.system, which could run code"),
    "code-legacy.pth": (saved({"state_dict": {"a": Code()}}, zipped=False), "imports posix.system"),
    "code-pickle.pth": (pickle.dumps(Code(), protocol=2), "imports posix.system"),
    "module.pth": (saved(nn.Linear(2, 2)), "torch.nn.modules.linear.Linear, which could run code"),
    "archive.pth": (gzip.compress(WHOLE), "neither a zip of tensors nor a pickle"),
    "list.pth": (saved([1, 2]), "holds no state dict"),
    "no-tensors.pth": (saved({"epoch": 3}), "holds no state dict"),
    "sparse.pth": (saved({"w": torch.eye(3).to_sparse()}), "w is not a dense tensor"),
    "meta.pth": (saved({"w": torch.empty(3, device="meta")}), "w is not a dense tensor"),
    "shape.pth": (saved({"layers.0.weight": torch.ones(3)}), "does not fit the backbone"),
    "name.pth": (saved({"a\nb": torch.ones(3)}), "does not fit the backbone"),
    "text.safetensors": (b"hello", "not a checkpoint that can be read safely"),
    "huge-header.safetensors": (b"\xff" * 8 + b"{", "not a checkpoint that can be read safely"),
    "nothing.safetensors": (b"\2\0\0\0\0\0\0\0{}", "holds no state dict"),
}
DIGITS = ["dataset.test_fraction=0.8", "dataset.val_fraction=0.2", *TINY]


@pytest.mark.parametrize("case", CHECKPOINTS)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_checkpoint(case: str, ask: Ask, tmp_path: Path) -> None:
    content, said = CHECKPOINTS[case]
    (tmp_path / case).write_bytes(content)
    answered(ask, tmp_path, ["finetune", f"init_from={case}", *DIGITS], "init_from: ", case, said)
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_no_real_numbers(ask: Ask, tmp_path: Path) -> None:
    """The shapes fit; complex numbers and integers would be converted in silence."""
    made = ask("train", *DIGITS)
    assert made.status == 0
    (model,) = (tmp_path / "runs/train").glob("*/model.pt")
    state = torch.load(model)["state_dict"]
    name = next(name for name in state if name.endswith("weight"))
    shutil.rmtree(tmp_path / "runs")
    for kind in ("complex64", "int8"):
        torch.save({**state, name: state[name].to(getattr(torch, kind))}, tmp_path / "other.pth")
        line = ["finetune", "init_from=other.pth", *DIGITS]
        answered(ask, tmp_path, line, f"{name} holds {kind}, not real numbers")


@pytest.mark.parametrize("key", ["init_from", "attack.surrogates"])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "is a FIFO"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
        (lambda path: path.mkdir(), "not a finished train or finetune run"),
        (lambda path: path.symlink_to("nowhere"), "does not exist"),
        (lambda path: path.symlink_to(path.name), "does not exist"),
    ],
)
def test_a_path_that_is_no_file(key: str, make: Make, said: str, ask: Ask, tmp_path: Path) -> None:
    make(tmp_path / "weights.pth")
    if key == "init_from":
        line = ["finetune", "init_from=weights.pth", *DIGITS]
    else:
        (tmp_path / "own.pth").write_bytes(WHOLE)
        line = [
            "attack",
            "attack=transfer",
            "init_from=own.pth",
            "attack.surrogates=[weights.pth]",
            *DIGITS[:-4],
        ]
        line += ["device=cpu", "threads=1"]
    answered(ask, tmp_path, line, f"{key}: ", "weights.pth", said)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
@pytest.mark.parametrize("what", ["checkpoint", "archive", "image", "folder"])
def test_what_may_not_be_read(what: str, ask: Ask, sound: Path, tmp_path: Path) -> None:
    shutil.copytree(sound, tmp_path / "tree")
    path = {"image": tmp_path / "tree" / IMAGE, "folder": tmp_path / "tree/train/one"}.get(
        what, tmp_path / "x"
    )
    if what in ("checkpoint", "archive"):
        path.write_bytes(WHOLE)
    path.chmod(0)
    line = [*FOLDER, f"dataset.root={'x' if what == 'archive' else 'tree'}"]
    if what == "checkpoint":
        line = ["finetune", "init_from=x", *DIGITS]
    try:
        answered(ask, tmp_path, line, path.name, "Permission denied")
    finally:
        path.chmod(0o700)


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert sum(map(len, (IMAGES, TREES, ARCHIVES, PACKAGES, CHECKPOINTS))) >= 80
