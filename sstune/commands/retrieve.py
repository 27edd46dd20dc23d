"""``sstune retrieve``: the images of a run's database that are nearest to given images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sstune.locking import file_in_the_way, make_directory
from sstune.schema import Precision, RequestError, shown
from sstune.validation.leaves import text_problem
from sstune.validation.places import exists, place_problem

if TYPE_CHECKING:
    import torch

    from sstune.commands.lineage import Source
    from sstune.datasets import Splits
    from sstune.schema import RunConfig
    from sstune.tasks import Neighbours, Task

MOST = 1000  # nearest images of a query


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"retrieve: {message}; see {self.prog} --help")


def run(argv: Sequence[str]) -> int:
    """Print the nearest database images of each given image; with ``--out`` also draw them. Returns the exit
    status.

    Raises:
        RequestError: the command line is invalid, RUN is no finished run of a task with a database, an image
            cannot be read, or ``--out`` cannot be written to.
        StorageError: the picture cannot be written.
    """
    parser = _parser()
    if {"-h", "--help"} & set(argv):
        print(parser.format_help(), end="")
        return 0
    asked = parser.parse_intermixed_args(argv)
    _check(asked)
    # imported late: torch takes seconds, which --help and a mistyped option need not wait for
    import torch

    from sstune import tasks
    from sstune.commands.lineage import open_source
    from sstune.runs import read_result

    with _naming_the_run():
        source = open_source(asked.run)
        row = None if source.config is None else read_result(source.path.parent)
        if source.config is None or row is None:
            raise RequestError(f"init_from: {asked.run} is a file, expected the directory of a run")
        task = tasks.build(source.config.task, row["n_classes"])
        if task.reference_file is None:  # before the dataset is loaded
            raise _no_database(asked, source.config)
        with torch.no_grad():
            _answer(asked, source, task)
    return 0


def _parser() -> _Parser:
    parser = _Parser(
        prog="sstune retrieve",
        allow_abbrev=False,
        description="Find the images of a run's database that are nearest to yours by Hamming distance.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a finished run with task=hashing")
    parser.add_argument("images", metavar="IMAGE", type=Path, nargs="+", help="image files, the queries")
    parser.add_argument("--n", type=int, default=10, help=f"number of nearest images, 1 to {MOST} (10)")
    parser.add_argument("--out", metavar="FILE.png", type=Path, help="draw queries and nearest images there")
    return parser


def _check(asked: argparse.Namespace) -> None:
    """Check the command line before anything heavy is imported."""
    for path in [asked.run, *asked.images, asked.out or Path()]:
        if problem := text_problem(str(path)):
            raise RequestError(f"retrieve: a path {problem}")
    if not 1 <= asked.n <= MOST:
        raise RequestError(f"--n: {asked.n} is out of range, expected 1 to {MOST}")
    for path in asked.images:
        if not exists(str(path)):
            raise RequestError(f"retrieve: {path} does not exist")
    if asked.out is None:
        return
    if asked.out.suffix.lower() != ".png" or asked.out.is_dir():
        raise RequestError(f"--out {asked.out}: expected a file FILE.png")
    if (file := file_in_the_way(asked.out.parent)) is not None:
        raise RequestError(f"--out {asked.out}: {file} is a file, expected a directory")
    if problem := place_problem(str(asked.out.parent)):
        raise RequestError(f"--out {problem}")


@contextmanager
def _naming_the_run() -> Iterator[None]:
    """Inside, an error about ``init_from`` is one about this command."""
    try:
        yield
    except RequestError as error:
        raise RequestError(*(p.replace("init_from:", "retrieve:") for p in error.problems)) from error


def _no_database(asked: argparse.Namespace, config: RunConfig) -> RequestError:
    return RequestError(f"retrieve: {asked.run} has task={config.task.name}, which searches no database")


def _answer(asked: argparse.Namespace, source: Source, task: Task) -> None:
    """Print, and draw, the nearest images of each query."""
    from sstune.commands.data import arranged
    from sstune.commands.run_once import prepare
    from sstune.datasets import read_images
    from sstune.training import init_distributed

    config = source.config
    assert config is not None
    here = replace(config, device="auto", precision=Precision.float32)
    device = prepare(here, init_distributed())
    data = arranged(config)
    if data.database is None:
        raise _no_database(asked, config)
    queries = read_images(asked.images, data.database, config.dataset)
    nearest = _nearest(queries, source, task, data, device, asked.n)
    for number, path in enumerate(asked.images):
        print(*_lines(shown(str(path)), number, nearest, data), sep="\n")
    if asked.out is not None:
        from sstune.commands.nearest import found_images
        from sstune.report.nearest import neighbour_grid
        from sstune.storage import write_bytes

        titles = [shown(path.name) for path in asked.images]
        found = found_images(titles, queries.numpy(), nearest, data)
        make_directory(asked.out.parent, "--out")
        write_bytes(asked.out, neighbour_grid(found, "nearest database images: label (Hamming distance)"))
        print(f"\nwrote\n  {asked.out}")


def _nearest(
    queries: torch.Tensor,
    source: Source,
    task: Task,
    data: Splits,
    device: torch.device,
    n: int,
) -> Neighbours:
    """Encode the queries, and the database if the run has not kept its codes."""
    import torch

    from sstune import tasks
    from sstune.commands.references import kept_reference
    from sstune.commands.victim import build
    from sstune.datasets import Split

    config = source.config
    assert config is not None
    network = build(config, source, data, task.outputs).to(device)
    reference = kept_reference(task, data, source, config)
    if reference is None:
        print(
            f"{task.reference_file} is absent or of other weights or images: encoding the database",
            flush=True,
        )
        reference = task.reference(network, data, device)
    images = Split(queries, torch.zeros(len(queries), dtype=torch.int64))
    predictions, _ = tasks.predict(network, task, images, device, with_loss=False)
    found = task.neighbours(predictions, reference, n)
    assert found is not None  # there is a database
    return found


def _lines(title: str, query: int, nearest: Neighbours, data: Splits) -> list[str]:
    """A table of one query: rank, distance, label and name of each image."""
    from sstune.commands.nearest import image_name, label_text

    assert data.database is not None
    targets = data.database.targets
    rows = [("rank", "distance", "label", "image")]
    for rank, place in enumerate(nearest.positions[query].tolist()):
        distance = str(nearest.distances[query, rank])
        rows.append(
            (str(rank + 1), distance, label_text(targets[place], data.classes), image_name(data, place))
        )
    wide = max(len(label) for _, _, label, _ in rows)
    return [
        title,
        *(f"  {rank:>4}  {away:>8}  {label:<{wide}}  {image}" for rank, away, label, image in rows),
    ]
