"""Image retrieval by binary codes: codes, labels, metrics of a ranking, and an index of a database."""

from sstune.retrieval.codes import Codes
from sstune.retrieval.index import StoredCodes, nearest, read_codes, to_faiss, write_codes
from sstune.retrieval.labels import Labels
from sstune.retrieval.metrics import Ranked, RankSettings, average_precision, rank

__all__ = [
    "Codes",
    "Labels",
    "RankSettings",
    "Ranked",
    "StoredCodes",
    "average_precision",
    "nearest",
    "rank",
    "read_codes",
    "to_faiss",
    "write_codes",
]
