"""Splits for retrieval: queries, training and validation images, and the database that is searched.

Protocols are those of published work on binary codes (:data:`sstune.schema.PROTOCOLS`). ``split.seed`` seeds
every draw, whatever the run's seed, for the reason given at :data:`sstune.datasets.splits.SPLIT_SEED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sstune.datasets.files import ImageFiles
from sstune.datasets.splits import Split, Splits, permutation
from sstune.schema import PROTOCOLS, Queries, RequestError, RetrievalProtocol, SplitConfig
from sstune.seeding import seed_from

_NAMES = {"test": "the queries", "database": "the database"}


def retrieval_splits(splits: Splits, config: SplitConfig) -> Splits:
    """The splits of a retrieval benchmark; the queries become the test split.

    All images, in the order train, val, test, are the pool. Queries are drawn from the test split, training
    and validation images from the other two; with ``queries=pooled`` all are drawn from the pool. The draws
    are per class and nested: a larger number of images contains a smaller one. If images have several labels,
    n images a class are n times the number of classes, drawn at random from the images that have a label.

    A dataset with a database of its own keeps its splits. Only an empty validation split is drawn: from the
    database, outside the training images.

    The database's order is shuffled by the seed, since ties in a ranking are often broken by this order, and
    a list sorted by class would bias them. The other splits keep the order of the pool.

    Raises:
        RequestError: a class has too few images, or a split would be empty.
    """
    protocol = _with_own_numbers(config)
    make = _drawn if splits.database is None else _completed
    drawn = make(splits, config, protocol)
    database = drawn.named["database"]
    for name, part in drawn.named.items():
        if not len(part):
            key = {"test": "n_query", "train": "n_train", "val": "n_val"}.get(name, "protocol")
            raise RequestError(f"split.{key}: no image is left for {_NAMES.get(name, f'the {name} split')}")
    order = permutation(len(database), seed_from(config.seed, "retrieval", "database"))
    assert drawn.indices is not None
    indices = {**drawn.indices, "database": drawn.indices["database"][order]}
    drawn = replace(drawn, database=database.take(order), indices=indices)
    return replace(drawn, remarks=[*splits.remarks, _remark(splits, drawn, config)])


def _with_own_numbers(config: SplitConfig) -> RetrievalProtocol:
    """The protocol, with the numbers that the configuration sets."""
    own = {name: getattr(config, name) for name in ("n_query", "n_train", "n_val")}
    return replace(PROTOCOLS[config.protocol], **{name: n for name, n in own.items() if n is not None})


def _drawn(splits: Splits, config: SplitConfig, protocol: RetrievalProtocol) -> Splits:
    """Splits drawn from the pool; the database is in the pool's order."""
    pool = [splits.train, splits.val, splits.test]
    draw = _Draw(torch.cat([part.targets for part in pool]), splits.classes)
    pooled = config.queries is Queries.pooled
    in_test = torch.arange(len(draw)) >= len(splits.train) + len(splits.val)

    among, where = (torch.ones_like(in_test), "") if pooled else (in_test, " in the test split")
    draw.require("n_query", protocol.n_query, among, where)
    query = draw.first(protocol.n_query, among, seed_from(config.seed, "retrieval", "query"))

    among, where = (~query, " besides the queries") if pooled else (~in_test, " outside the test split")
    seed = seed_from(config.seed, "retrieval", "train")
    draw.require("n_val", protocol.n_val, among, where)
    val = draw.last(protocol.n_val, among, seed)
    draw.require("n_train", protocol.n_train, among & ~val, f"{where} and besides the validation images")
    train = draw.first(protocol.n_train, among, seed) & ~val

    held = {"train": train, "val": val, "rest": ~(query | train | val)}
    database = torch.stack([held[name] for name in protocol.database]).any(0)
    masks = {"train": train, "val": val, "test": query, "database": database}
    indices = {name: mask.nonzero()[:, 0] for name, mask in masks.items()}
    parts = {name: _take(pool, index) for name, index in indices.items()}
    return replace(splits, **parts, indices=indices)  # type: ignore[arg-type]


def _completed(splits: Splits, config: SplitConfig, protocol: RetrievalProtocol) -> Splits:
    """The splits of a dataset with a database; an empty validation split is drawn from the database."""
    assert splits.database is not None
    indices = splits.indices
    if indices is None:  # the dataset does not say which images are the same: none
        sizes = [len(split) for split in splits.named.values()]
        indices = dict(zip(splits.named, torch.arange(sum(sizes)).split(sizes), strict=True))
    if len(splits.val):
        return replace(splits, indices=indices)
    draw = _Draw(splits.database.targets, splits.classes)
    among = ~torch.isin(indices["database"], indices["train"])
    draw.require("n_val", protocol.n_val, among, " in the database besides the training images")
    seed = seed_from(config.seed, "retrieval", "train")
    chosen = draw.last(protocol.n_val, among, seed).nonzero()[:, 0]
    indices = {**indices, "val": indices["database"][chosen]}
    return replace(splits, val=splits.database.take(chosen), indices=indices)


class _Draw:
    """Draws among images, within each class; if they have several labels, within all that have a label.

    Args:
        targets: int64 [N], or float32 [N, L] multi-hot.
        classes: names of the classes.
    """

    def __init__(self, targets: Tensor, classes: Sequence[str]) -> None:
        self.several = targets.ndim == 2
        self.classes = classes
        self.labelled = targets.any(1) if self.several else torch.ones_like(targets, dtype=torch.bool)
        self.strata = torch.zeros(len(targets), dtype=torch.int64) if self.several else targets

    def __len__(self) -> int:
        return len(self.strata)

    def require(self, key: str, n: int | None, among: Tensor, where: str) -> None:
        """Raise RequestError unless ``n`` images of each class are ``among`` (bool [N]) the images."""
        if n is None:
            return
        counts = self._counts(among)
        fewest = int(counts.argmin())
        if counts[fewest] >= self._quota(n):
            return
        found = f"{int(counts[fewest]):,} images{where}"
        if self.several:
            needs = (
                f"{n} images a class, {self._quota(n):,} in all, are needed, but only {found} have a label"
            )
        else:
            needs = f"{n} images of each class are needed, but class {self.classes[fewest]!r} has {found}"
        raise RequestError(f"split.{key}: {needs}")

    def first(self, n: int | None, among: Tensor, seed: int) -> Tensor:
        """The first ``n`` of each class in a random order of those ``among``, bool [N]; None: all."""
        rank = self._rank(among, seed)
        return rank >= 0 if n is None else (rank >= 0) & (rank < self._quota(n))

    def last(self, n: int, among: Tensor, seed: int) -> Tensor:
        """The last ``n`` of each class in the same order, bool [N]."""
        rank = self._rank(among, seed)
        return (rank >= 0) & (rank >= self._counts(among)[self.strata] - self._quota(n))

    def _quota(self, n: int) -> int:
        return n * len(self.classes) if self.several else n

    def _counts(self, among: Tensor) -> Tensor:
        n_strata = 1 if self.several else len(self.classes)
        return self.strata[among & self.labelled].bincount(minlength=n_strata)

    def _rank(self, among: Tensor, seed: int) -> Tensor:
        """Place of each image in the random order of its class, from 0, int64 [N]; -1: not drawn from."""
        order = permutation(len(self), seed)
        order = order[(among & self.labelled)[order]]
        order = order[self.strata[order].argsort(stable=True)]
        counts = self._counts(among)
        rank = torch.full((len(self),), -1)
        rank[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[self.strata[order]]
        return rank


def _take(pool: Sequence[Split], index: Tensor) -> Split:
    """The samples at ``index`` (int64 [n]) of the concatenated splits, which are not copied as a whole."""
    targets = torch.cat([part.targets for part in pool])[index]
    files = [part.images for part in pool if isinstance(part.images, ImageFiles)]
    if files:
        return Split(ImageFiles.joined(files)[index], targets)
    images = torch.empty((len(index), *pool[0].images.shape[1:]), dtype=torch.uint8)
    start = 0
    for part in pool:
        assert isinstance(part.images, Tensor)
        here = (index >= start) & (index < start + len(part))
        images[here] = part.images[index[here] - start]
        start += len(part)
    return Split(images, targets)


def _remark(before: Splits, after: Splits, config: SplitConfig) -> str:
    """What the parts are, with their numbers of images."""
    n = {name: f"{len(split):,}" for name, split in after.named.items()}
    if before.database is None:
        protocol = f"retrieval {config.protocol}"
        among = "the test split" if config.queries is Queries.test else "all images"
        query, val = f"{n['test']} queries (from {among})", f"{n['val']} val"
        drawn = ", drawn from all classes together" if after.test.targets.ndim == 2 else ""
    else:
        protocol, query, drawn = "retrieval", f"{n['test']} queries", ""
        val = f"{n['val']} val" + ("" if len(before.val) else " (from the database)")
    return f"{protocol}: {query}, {n['train']} train, {val}, database {n['database']}{drawn}"
