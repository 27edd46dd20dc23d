"""The codes of a database: nearest neighbours, files, and an index of faiss."""

from __future__ import annotations

import importlib
import io
import stat
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sstune.retrieval.codes import Codes
from sstune.retrieval.labels import Labels
from sstune.retrieval.order import stable_order
from sstune.schema import RequestError
from sstune.storage import explained, in_short, write_file

_MEMBERS = {"packed", "bits", "ids", "labels", "model"}


def nearest(queries: Codes, database: Codes, k: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The nearest items of each query, ties by database index.

    Args:
        k: how many; all N items if there are fewer.

    Returns:
        Indices and Hamming distances, (Q, min(k, N)) each.

    Raises:
        ValueError: ``k`` is less than 1, or codes have different numbers of bits.
    """
    if k < 1:
        raise ValueError(f"the number of neighbours must be 1 or more, got {k}")
    if queries.bits != database.bits:
        raise ValueError(f"queries have {queries.bits} bits, the database has {database.bits}")
    shape = (len(queries), min(k, len(database)))
    indices, found = np.empty(shape, np.int64), np.empty(shape, np.int32)

    def search(number: int) -> None:
        distances = database.distances(queries.words[number])
        indices[number] = stable_order(distances, k)
        found[number] = distances[indices[number]]

    threads = torch.get_num_threads()
    if threads == 1:
        for number in range(len(queries)):
            search(number)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(search, range(len(queries))))
    return indices, found


@dataclass(frozen=True, eq=False)
class StoredCodes:
    """Content of a file of codes.

    Args:
        ids: (N,) integers or text, names of the items.
        model: digest of the weights that made the codes.
        more: further arrays, by name.
    """

    codes: Codes
    ids: NDArray[Any] | Sequence[str]
    labels: Labels
    model: str
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def write_codes(path: Path, stored: StoredCodes) -> None:
    """Write ``codes.npz`` atomically.

    Its members: ``packed``, (N, bytes) uint8, the most significant bit first, as in ``np.packbits`` and
    faiss; ``bits``; ``ids``; ``labels``, (N,) int64 classes or (N, L) uint8 of 0 and 1; ``model``; and those
    of ``more``.

    Raises:
        ValueError: numbers of items differ, or ids are neither integers nor text.
        StorageError: the file cannot be written.
    """
    codes, labels, names = stored.codes, stored.labels, np.asarray(stored.ids)
    if not len(codes) == len(names) == len(labels):
        raise ValueError(f"{len(codes)} codes, {len(names)} ids and labels of {len(labels)} items")
    if names.ndim != 1 or names.dtype.kind not in "iuU":
        raise ValueError(f"ids must be integers or text, (N,), got {names.dtype} {names.shape}")
    values = labels.hot().astype(np.uint8) if labels.several else labels.values
    members: dict[str, Any] = {
        "packed": codes.packed, "bits": np.int64(codes.bits), "ids": names, "labels": values,
        "model": stored.model, **stored.more,
    }  # fmt: skip
    write_file(path, lambda file: np.savez(file, **members))


def read_codes(path: Path) -> StoredCodes:
    """Read what :func:`write_codes` wrote.

    Raises:
        ValueError: the file is damaged, or holds something else; names the file.
        StorageError: the file cannot be read.
    """
    with explained("reading", path):
        regular = stat.S_ISREG(path.stat().st_mode)  # reading a device might never end
        content = path.read_bytes() if regular else b""
    try:
        return _stored(content)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(f"{path}: not a file of codes, or damaged ({in_short(error)})") from error


def _stored(content: bytes) -> StoredCodes:
    """Raises ValueError where the content is that of another file; a damaged one may raise anything."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if (name := archive.testzip()) is not None:
            raise ValueError(f"wrong checksum of {name}")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        members = {name: file[name] for name in file.files}
    if not set(members) >= _MEMBERS:
        raise ValueError("other members")
    bits, model, ids, labels = (members[name] for name in ("bits", "model", "ids", "labels"))
    if bits.shape or bits.dtype.kind not in "iu" or model.shape or model.dtype.kind != "U":
        raise ValueError("bits or model")
    codes = Codes(members["packed"], int(bits))
    if ids.shape != (len(codes),) or ids.dtype.kind not in "iuU":
        raise ValueError("ids")
    if labels.shape[:1] != (len(codes),) or labels.dtype.kind not in "iub":
        raise ValueError("labels")
    more = {name: value for name, value in members.items() if name not in _MEMBERS}
    return StoredCodes(codes, ids, Labels.of(torch.from_numpy(labels)), str(model), more)


def to_faiss(codes: Codes) -> Any:
    """An ``IndexBinaryFlat`` of the package faiss with these codes, for queries of the same number of bits.

    Its ``search(queries.packed, k)`` finds what :func:`nearest` finds, in the same order. faiss takes whole
    bytes: the unused bits are 0 on both sides and do not change a distance.

    Raises:
        RequestError: faiss is not installed.
    """
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        raise RequestError('an index of faiss needs one more package: pip install "sstune[faiss]"') from error
    index = faiss.IndexBinaryFlat(8 * codes.packed.shape[1])
    index.add(np.ascontiguousarray(codes.packed))
    return index
