"""Published datasets of image files: ImageNet, Tiny ImageNet, Imagenette, Flowers-102."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

from sstune.datasets.archive import is_tree
from sstune.datasets.folder import TreeLayout, load_folder
from sstune.datasets.packages import Package, Published
from sstune.datasets.sources import SOURCES
from sstune.datasets.splits import Splits
from sstune.schema import DownloadedFolderConfig, FolderConfig, RequestError

SOURCES.register("folder")(load_folder)

IMAGENET_CLASSES = 1000
IMAGENETTE = 9469 + 3925  # training and test images of imagenette2
TINY_IMAGENET = 500, 50  # training and validation images of each class
_TINY_CLASSES, _TINY_SIZE = 200, (64, 64)


@SOURCES.register("imagenet")
def imagenet(config: FolderConfig) -> Splits:
    """ImageNet-1k (ILSVRC 2012) as ``{train,val}/<wnid>/<image>``; its val is the test split.

    Raises:
        RequestError: there are not 1,000 classes; see also :func:`load_folder`.
    """
    splits = load_folder(config)
    if splits.n_classes != IMAGENET_CLASSES:
        raise _other(config, "ImageNet-1k", f"{splits.n_classes} classes, expected {IMAGENET_CLASSES}")
    return splits


@SOURCES.register("imagenette")
def imagenette(config: DownloadedFolderConfig) -> Splits:
    """Imagenette (version 2, 320 pixels) from torchvision or an image tree; val is the test split.

    Raises:
        RequestError: it is absent and cannot be downloaded, or has another number of images.
    """
    from torchvision.datasets import Imagenette

    root = Path(config.root).expanduser()
    if not is_tree(root):
        url, md5 = Imagenette._ARCHIVES["320px"]
        folder = Path(url).stem
        Package(
            "Imagenette",
            (Published(Path(url).name, url, md5),),
            "",
            (folder,),
            lambda root, download: [
                Imagenette(root, part, size="320px", download=download and not (root / folder).exists())
                for part in ("train", "val")
            ],
        ).opened(root, config.download)
        root = root / folder
    splits = load_folder(config, root)
    found = len(splits.train) + len(splits.val) + len(splits.test) + len(splits.skipped)
    if found != IMAGENETTE:
        raise _other(config, "Imagenette", f"{found} images, expected {IMAGENETTE}")
    return splits


@SOURCES.register("flowers102")
def flowers102(config: DownloadedFolderConfig) -> Splits:
    """Oxford Flowers-102 from torchvision, in its official splits: 1,020 + 1,020 + 6,149 images.

    ``train_split``, ``val_split`` and ``test_split`` may permute them, e.g. for more training images.

    Raises:
        RequestError: it is absent and cannot be downloaded.
    """
    from torchvision.datasets import Flowers102

    prefix, folder = Flowers102._download_url_prefix, "flowers-102"
    root = Path(config.root).expanduser()
    parts = Package(
        "Flowers-102",
        tuple(Published(name, prefix + name, md5) for name, md5 in Flowers102._file_dict.values()),
        folder,
        (folder,),
        lambda root, download: {
            part: Flowers102(root, part, download=download) for part in ("train", "val", "test")
        },
    ).opened(root, config.download)
    layout = {
        f"jpg/{file.name}": f"{part}/{label:03}/{file.name}"
        for part, images in parts.items()
        for file, label in zip(images._image_files, images._labels, strict=True)
    }
    splits = load_folder(config, root / folder, layout)
    return replace(splits, classes=[Flowers102.classes[int(label)] for label in splits.classes])


@SOURCES.register("tiny_imagenet")
def tiny_imagenet(config: FolderConfig) -> Splits:
    """Tiny ImageNet from the official directory ``tiny-imagenet-200``: 200 classes of 64x64 images.

    Its val is the test split; its own test images have no labels.

    Raises:
        RequestError: the directory has another layout, or other numbers or sizes of images.
    """
    root = Path(config.root).expanduser()
    splits = load_folder(config, root, _tiny_layout(config, root))
    if not config.stream and config.image_size is None and splits.image_size != _TINY_SIZE:
        height, width = splits.image_size
        raise _other(config, "Tiny ImageNet", f"images of {width}x{height} pixels, expected 64x64")
    return splits


def _tiny_layout(config: FolderConfig, root: Path) -> TreeLayout:
    try:
        classes = _text(root / "wnids.txt").split()
        lines = _text(root / "val" / "val_annotations.txt").splitlines()
        labelled = {name: wnid for name, wnid, *_ in (line.split("\t") for line in lines)}
        layout = {
            f"train/{wnid}/images/{file.name}": f"train/{wnid}/{file.name}"
            for wnid in classes
            for file in (root / "train" / wnid / "images").iterdir()
        }
    except OSError as error:
        found = Path(error.filename).relative_to(root)
        raise _other(config, "the official tiny-imagenet-200", f"{found}: {error.strerror}") from error
    except ValueError as error:
        what = "wnids.txt or val/val_annotations.txt has another format"
        raise _other(config, "the official tiny-imagenet-200", what) from error
    layout |= {f"val/images/{name}": f"val/{wnid}/{name}" for name, wnid in labelled.items()}
    n_train, n_test = len(layout) - len(labelled), len(labelled)
    expected_train, expected_test = (_TINY_CLASSES * n for n in TINY_IMAGENET)
    if (len(classes), n_train, n_test) != (_TINY_CLASSES, expected_train, expected_test):
        raise _other(
            config,
            "Tiny ImageNet",
            f"{n_train} + {n_test} images of {len(classes)} classes,"
            f" expected {expected_train} + {expected_test} of {_TINY_CLASSES}",
        )
    return layout


def _text(path: Path) -> str:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return path.read_text(encoding="utf-8")


def _other(config: FolderConfig, name: str, difference: str) -> RequestError:
    return RequestError(
        f"dataset.root: {config.root} is not {name}: {difference};"
        " use dataset=folder with a dataset.label of its own"
    )
