"""Retrieval protocols: how many images are queries, training and validation images, and what is searched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RetrievalProtocol:
    """Numbers of images of each class, and the parts that make up the database.

    ``n_query`` None: the whole test split; ``n_train`` None: all images that are left. ``database``: some of
    "train", "val" and "rest", the images that are neither queries nor training nor validation images.
    """

    n_query: int | None
    n_train: int | None
    n_val: int
    database: tuple[str, ...]


# In cifar10-2 all images but the queries are training images and database; validation images are held out of
# the training images and stay in the database.
PROTOCOLS: dict[str, RetrievalProtocol] = {
    "cifar10-0": RetrievalProtocol(100, 500, 100, ("val", "rest")),
    "cifar10-1": RetrievalProtocol(100, 500, 100, ("train", "val", "rest")),
    "cifar10-2": RetrievalProtocol(None, None, 100, ("train", "val")),
    "cifar10-authors": RetrievalProtocol(100, 500, 100, ("rest",)),
    "mnist": RetrievalProtocol(100, 500, 100, ("train", "val", "rest")),
    "tiny-imagenet-32": RetrievalProtocol(25, 65, 10, ("train", "val", "rest")),
}
