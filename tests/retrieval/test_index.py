"""Nearest neighbours, files of codes, and faiss."""

from __future__ import annotations

import builtins
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sstune.retrieval import Codes, Labels, StoredCodes, nearest, read_codes, to_faiss, write_codes
from sstune.schema import RequestError
from sstune.storage import StorageError

SEEDS = st.integers(0, 2**32 - 1)
BITS = st.sampled_from([1, 6, 8, 12, 64, 100, 260])


def drawn(seed: int, n: int, bits: int) -> Codes:
    """Codes with many duplicates."""
    draw = torch.Generator().manual_seed(seed)
    return Codes.of(torch.randn(5, bits, generator=draw)[torch.randint(5, (n,), generator=draw)])


@settings(max_examples=40)
@given(SEEDS, BITS, st.integers(1, 60), st.integers(1, 70))
def test_nearest_items_ties_by_index(seed: int, bits: int, n: int, k: int) -> None:
    queries, database = drawn(seed + 1, 4, bits), drawn(seed, n, bits)
    indices, distances = nearest(queries, database, k)
    assert indices.shape == distances.shape == (4, min(k, n))
    for number in range(4):
        each = (database.signs() != queries.signs()[number]).sum(1).tolist()
        expected = sorted(range(n), key=lambda item: (each[item], item))[:k]
        assert indices[number].tolist() == expected
        assert distances[number].tolist() == [each[item] for item in expected]


def test_threads_do_not_matter() -> None:
    queries, database = drawn(1, 20, 16), drawn(0, 300, 16)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(nearest(queries, database, 10))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])


def test_neighbours_that_cannot_be_found() -> None:
    with pytest.raises(ValueError, match="got 0"):
        nearest(drawn(0, 2, 4), drawn(0, 2, 4), 0)
    with pytest.raises(ValueError, match="4 bits, the database has 5"):
        nearest(drawn(0, 2, 4), drawn(0, 2, 5), 1)


@settings(max_examples=30)
@given(SEEDS, BITS, st.sampled_from([1, 50, 1000]), st.sampled_from([1, 10, 50]))
def test_faiss_finds_the_same_in_the_same_order(seed: int, bits: int, n: int, k: int) -> None:
    pytest.importorskip("faiss", reason="needs faiss-cpu")
    queries, database = drawn(seed + 1, 4, bits), drawn(seed, n, bits)
    distances, indices = to_faiss(database).search(queries.packed, min(k, n))
    expected = nearest(queries, database, k)
    assert np.array_equal(indices, expected[0])
    assert np.array_equal(distances, expected[1])


def test_without_faiss_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RequestError, match=r'pip install "sstune\[faiss\]"$'):
        to_faiss(drawn(0, 2, 4))


CLASSES = Labels.of(torch.tensor([4, 0, 9]))
SEVERAL = Labels.of(torch.tensor([[0, 1], [0, 0], [1, 1]]))


@pytest.mark.parametrize("labels", [CLASSES, SEVERAL])
@pytest.mark.parametrize("ids", [["a/1.png", "a/2.png", "ü"], np.array([5, 7, 1])])
def test_a_file_holds_what_was_written(tmp_path: Path, labels: Labels, ids: Any) -> None:
    path, codes = tmp_path / "codes.npz", drawn(0, 3, 70)
    write_codes(path, StoredCodes(codes, ids, labels, "0123abcd"))
    found = read_codes(path)
    assert isinstance(found, StoredCodes)
    assert np.array_equal(found.codes.packed, codes.packed)
    assert found.codes.bits == 70
    assert found.ids.tolist() == list(ids)
    assert np.array_equal(found.labels.values, labels.values)
    assert found.labels.n_labels == labels.n_labels
    assert found.model == "0123abcd"
    members = np.load(path)
    assert members["labels"].dtype == (np.uint8 if labels.several else np.int64)
    written = path.read_bytes()
    write_codes(path, StoredCodes(codes, ids, labels, "0123abcd"))
    assert path.read_bytes() == written


def test_what_is_no_set_of_codes_is_not_written(tmp_path: Path) -> None:
    path, codes = tmp_path / "codes.npz", drawn(0, 3, 8)
    for ids in (["a", "b"], [1.5, 2, 3], [["a"], ["b"], ["c"]], [None, "a", "b"]):
        with pytest.raises(ValueError, match="ids"):
            write_codes(path, StoredCodes(codes, ids, CLASSES, ""))
    with pytest.raises(ValueError, match="3 codes, 3 ids and labels of 2 items"):
        write_codes(path, StoredCodes(codes, ["a", "b", "c"], CLASSES.take(slice(0, 2)), ""))
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, codes = tmp_path / "codes.npz", drawn(0, 3, 8)
    write_codes(path, StoredCodes(codes, ["a", "b", "c"], CLASSES, "first"))

    def full(file: Any, **_: Any) -> None:
        file.write(b"PK")
        raise OSError(28, "no space")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(StorageError, match=r"earlier codes\.npz is intact"):
        write_codes(path, StoredCodes(codes, ["a", "b", "c"], CLASSES, "second"))
    assert read_codes(path).model == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_any_damaged_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    path, codes = tmp_path / "codes.npz", drawn(0, 3, 12)
    write_codes(path, StoredCodes(codes, ["a", "b", "c"], CLASSES, "digest"))
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        message = ""
        try:
            found = read_codes(path)
        except ValueError as error:
            message = str(error)
        if message:
            assert message.startswith(f"{path}: not a file of codes, or damaged (")
            noticed += 1
            continue
        assert np.array_equal(found.codes.packed, codes.packed)  # a date or an attribute was damaged
        assert (found.ids.tolist(), found.model) == (["a", "b", "c"], "digest")
        assert np.array_equal(found.labels.values, CLASSES.values)
    assert noticed > len(whole) / 3 * 0.7
    for end in range(0, len(whole), 40):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"codes\.npz: not a file of codes, or damaged"):
            read_codes(path)


GOOD: dict[str, Any] = {
    "packed": np.zeros((2, 1), np.uint8), "bits": np.int64(8), "ids": np.array(["a", "b"]),
    "labels": np.zeros(2, np.int64), "model": np.array("digest"),
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"bits": np.int64(9)},
        {"bits": np.float64(8)},
        {"bits": np.array([8])},
        {"bits": np.int64(7), "packed": np.full((2, 1), 255, np.uint8)},
        {"packed": np.zeros((2, 1), np.int8)},
        {"ids": np.array(["a"])},
        {"ids": np.array([0.5, 1])},
        {"ids": np.array([print, None])},
        {"labels": np.zeros(3, np.int64)},
        {"labels": np.zeros(2)},
        {"labels": np.full((2, 2), 2)},
        {"labels": np.int64(0)},
        {"model": np.int64(3)},
    ],
)
def test_a_foreign_archive_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "codes.npz"
    np.savez(path, **GOOD)
    assert read_codes(path).model == "digest"
    np.savez(path, **{**GOOD, **changed})
    with pytest.raises(ValueError, match=r"codes\.npz: not a file of codes, or damaged"):
        read_codes(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "codes.npz"
    plain = io.BytesIO()
    np.save(plain, np.zeros(3))
    for content in (b"", b"text", plain.getvalue(), pickle.dumps(builtins.print)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"codes\.npz: not a file of codes, or damaged"):
            read_codes(path)
    with pytest.raises(ValueError, match="not a file of codes"):
        read_codes(tmp_path)
    with pytest.raises(StorageError, match=r"while reading .*absent\.npz"):
        read_codes(tmp_path / "absent.npz")
