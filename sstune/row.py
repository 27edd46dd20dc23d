"""The row: the content of a finished run's ``result.json``. Imports no torch.

Writers and readers are type-checked against these types, ``sstune report`` validates rows by them, and a test
compares ``docs/results.md`` with them. Keys that are ``NotRequired`` are absent or null if they do not apply,
and in rows of earlier versions.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict, Unpack

Pair = Annotated[list[int], 2]
"""Two integers."""
Interval = Annotated[list[float], 2]
"""A lower and an upper bound."""


class Details(TypedDict, total=False):
    """Optional keys of a measurement."""

    correct: int
    """Counted metrics: number of correct samples (under attack: that stay correct), 0 to ``n``."""
    metric: str
    """Name of the metric; absent: "accuracy"."""
    value: float
    """The metric in [0, 1]; absent for counted metrics, whose value is ``correct / n``."""
    outcomes: str
    """Counted metrics: which samples are correct; see ``sstune.packing.pack``."""
    values: str
    """The metric of each sample in [0, 1], whose mean is ``value``; see ``sstune.packing.pack_values``."""
    interval: Interval
    """95 % interval of ``value``, in [0, 1]; for metrics without a value per sample."""
    more: dict[str, float]
    """Further metrics of the same predictions, by name."""
    source: str | None
    """The surrogate whose gradient was used, as ``NAME@DIGEST``; "" or null: the network itself."""
    reached: int
    """Targeted attacks: number of samples classified as their target, 0 to ``n``."""
    found: list[Pair]
    """Pairs ``[effort, samples]``: number of samples broken after so many gradient steps or queries; empty if
    the attack does not report it."""
    seconds: float
    """Wall time of the attack in s."""
    zero_gradients: float
    """Mean share of the attack's gradients that were zero in every pixel, 0 to 1; absent if not reported."""
    curves: dict[str, list[float]]
    """Curves of the same predictions, by name, such as the precision at each recall level."""


class Measurement(Details):
    """The metric of a network on a split, clean or under one attack at one eps."""

    split: str
    """"val" or "test"."""
    n: int
    """Number of samples, at least 1."""
    attack: str | None
    """Name of the attack; "audit": the worst case over all that an audit tried; null: clean."""
    gradient: str | None
    """The gradient that was used: "rule", "exact" or "surrogate"; null: none."""
    eps: str | None
    """Radius of the ball as configured, such as "8/255"; null: clean."""


class AuditCell(Measurement):
    """An attack that is specific to the audit: other settings, another eps, or a part of the samples."""

    made_on: NotRequired[str]
    """Which of the audit's samples were attacked, packed like ``outcomes``; absent: all."""
    among: NotRequired[str]
    """Which of them ``correct`` covers: those that were not attacked count as not correct; absent: all."""


class CheckEntry(TypedDict):
    """The result of one check of an audit."""

    id: str
    """"D0" to "D16"."""
    title: str
    """What it checks."""
    status: str
    """"ok", "report", "warn", "masked", "error" or "not run"."""
    figure: float | None
    """The measured value, in ``unit``; null if there is no single number."""
    unit: str | None
    """Unit of ``figure``, such as "points"; may be empty."""
    threshold: str
    """What ``figure`` is compared with, in words."""
    n: int | None
    """Number of samples."""
    text: str
    """One sentence of explanation; may be empty."""
    finds: NotRequired[float | None]
    """The fewest points of hidden robustness that a deciding check would have found with 80 % power."""


class AuditEntry(TypedDict):
    """A masking audit (``attack=audit``)."""

    verdict: str
    """"MASKED", "NOT MASKED" or "INCONCLUSIVE"."""
    because: list[str]
    """Ids of the checks that the verdict is based on."""
    not_run: dict[str, str]
    """Id of each check that did not run -> reason."""
    checks: list[CheckEntry]
    """Every check, D0 first."""
    cells: list[AuditCell]
    """Attacks that are not in ``measurements`` of the row."""
    pgd: NotRequired[str]
    """Retrieval: the attack that the checks call PGD, such as "mainstay"; the other gradient attacks increase
    its loss."""
    chance: NotRequired[float]
    """Retrieval: the metric of a database in random order."""


class AlignmentEntry(TypedDict):
    """How one layer's feedback matrix V and update compare with backpropagation's; null: not defined."""

    layer: str
    """Name of the module."""
    angle: float | None
    """Angle between V and the weights W, in degrees, 0 to 180."""
    sign_agreement: float | None
    """Share of entries whose signs agree in V and W, 0 to 1."""
    rms_ratio: float | None
    """RMS(V) / RMS(W)."""
    update_cosine: NotRequired[float | None]
    """Cosine between the update under the rule and the true gradient, -1 to 1."""


class LayersEntry(TypedDict):
    """Which layers use feedback: module name -> class."""

    feedback: dict[str, str]
    """Layers that use the rule's feedback."""
    exact: dict[str, str]
    """Other modules with parameters, which keep their exact derivative."""


class SplitEntry(TypedDict):
    """The images of one split."""

    n: NotRequired[int]
    """Number of images."""
    digest: str
    """sha256 of images and targets."""
    attacked: NotRequired[str]
    """sha256 of the part that was attacked."""


class DatasetsEntry(TypedDict, total=False):
    """The splits that a run used."""

    train: SplitEntry
    """Training images."""
    val: SplitEntry
    """Validation images, on which the epoch was chosen."""
    test: SplitEntry
    """Test images; in retrieval the queries."""
    database: SplitEntry
    """Retrieval: the images that are searched, in the order of the database."""


class SkippedEntry(TypedDict):
    """Image files that could not be read and were left out (``dataset.skip_corrupt``)."""

    n: int
    """Number of files."""
    first: list[str]
    """Names of the first 20."""


class GitEntry(TypedDict):
    """The checkout that the code ran from; null: installed, no checkout."""

    commit: str | None
    """The commit's hash."""
    dirty: bool | None
    """Whether files under version control, other than results, had been changed."""


class PreprocessingEntry(TypedDict):
    """How images were prepared when the published weights were measured, as their metadata say."""

    mean: list[float]
    """Mean of each channel, for images in [0, 1]."""
    std: list[float]
    """Standard deviation of each channel."""
    size: Pair
    """Height and width of the images that enter the network, in pixels."""
    crop_pct: float
    """Share of the resized image that the centre crop keeps, 0 to 1."""
    interpolation: str
    """How images are resized."""


class NameEntry(TypedDict):
    """A group of the configuration; only the key that all readers need is declared."""

    name: str


class DatasetConfigEntry(TypedDict):
    """``config.dataset``; only the key that all readers need is declared."""

    label: str


class RuleConfigEntry(TypedDict):
    """``config.rule``; only the keys that all readers need are declared."""

    name: str
    scale: NotRequired[str]


class AttackConfigEntry(TypedDict, total=False):
    """``config.attack``; only the keys that all readers need are declared."""

    eps: list[str]
    norm: str
    cascade: bool


class ConfigEntry(TypedDict):
    """The part of the configuration that the identity includes.

    ``docs/configuration.md`` explains all keys; only those that readers of rows need are declared here.
    """

    backbone: NameEntry
    dataset: DatasetConfigEntry
    rule: RuleConfigEntry
    seed: int
    task: NotRequired[dict[str, Any]]
    attack: NotRequired[AttackConfigEntry]
    audit: NotRequired[dict[str, Any]]


class AncestorConfigEntry(TypedDict, total=False):
    """An ancestor's configuration; only the type of ``seed`` is checked."""

    seed: int


class Ancestor(TypedDict, total=False):
    """A run of sstune or a file that a run started from."""

    command: str
    """"train" or "finetune", for a run."""
    identity: str
    """Identity, for a run."""
    config: AncestorConfigEntry
    """Configuration, for a run."""
    file: str
    """File name, or ``module:factory`` of an imported network; for a file."""
    sha256: str
    """sha256 of its content, for a file."""


class Measured(TypedDict):
    """What a command measured: the keys of a row that it returns; ``run_once`` adds device and threads."""

    n_classes: int
    """Classes of the dataset, at least 1."""
    measurements: list[Measurement]
    """The measurements, in the order in which they were made."""
    seconds: NotRequired[float]
    """Wall time of the training or of all attacks in s, summed over resumptions."""
    device: NotRequired[str]
    """Name of the GPU, or of the CPU with the instruction set that torch used."""
    threads: NotRequired[int]
    """CPU threads of torch."""
    deterministic: NotRequired[bool]
    """Whether only deterministic algorithms were used; always so on the CPU."""
    precision: NotRequired[str]
    """"float32", "tf32" or "bf16"."""
    compiled: NotRequired[str | None]
    """Mode of ``torch.compile``; null: not compiled."""
    processes: NotRequired[int]
    """Training: processes that shared the batch."""
    notes: NotRequired[list[str]]
    """Remarks on data and weights, a sentence each."""
    datasets: NotRequired[DatasetsEntry]
    """The splits that the run used."""
    skipped: NotRequired[SkippedEntry]
    """Image files that were left out."""
    classes: NotRequired[list[str]]
    """Audits: names of the classes."""
    preprocessing: NotRequired[PreprocessingEntry | None]
    """Training: preprocessing of the published weights; null: the backbone has none."""
    epoch: NotRequired[int]
    """Training: the chosen epoch, from 1."""
    epochs_trained: NotRequired[int]
    """Training: epochs that were completed."""
    model_sha256: NotRequired[str | None]
    """Training: sha256 of ``model.pt``."""
    layers: NotRequired[LayersEntry]
    """Training: which layers use feedback."""
    alignment: NotRequired[list[AlignmentEntry]]
    """Training: feedback and updates in the chosen epoch, an entry for each feedback layer."""
    audit: NotRequired[AuditEntry]
    """Audits: checks and verdict."""


class Row(Measured):
    """A finished run: its measurements, and the configuration, data and code that reproduce it."""

    schema_version: int
    """Version of this format: 1."""
    identity: str
    """sha256 of configuration, ancestors and data; equal for equal runs."""
    command: str
    """"train", "finetune" or "attack"."""
    config: ConfigEntry
    """The resolved configuration."""
    lineage: list[Ancestor]
    """Ancestors of the run, oldest first; empty if it trained from random or published weights."""
    versions: NotRequired[dict[str, str]]
    """Versions of sstune, Python and the packages that may change a figure."""
    git: NotRequired[GitEntry]
    """The checkout that the code ran from."""


def measurement(
    split: str,
    n: int,
    *,
    attack: str | None = None,
    gradient: str | None = None,
    eps: str | None = None,
    **details: Unpack[Details],
) -> Measurement:
    """A measurement of ``n`` samples of ``split``; clean if no ``attack`` is given.

    Raises:
        ValueError: neither ``correct`` nor ``value`` is given, or it is outside [0, ``n``] or [0, 1].
    """
    found: Measurement = {
        "split": split, "n": n, "attack": attack, "gradient": gradient, "eps": eps, **details,
    }  # fmt: skip
    if not 0 <= value_of(found) <= 1:
        raise ValueError(f"a measurement of {value_of(found)} is outside [0, 1]")
    return found


def metric_of(measurement: Measurement) -> str:
    """Name of the metric; accuracy if the measurement has none."""
    return measurement.get("metric") or "accuracy"


def is_counted(measurement: Measurement) -> bool:
    """Whether the metric is a share of correct samples."""
    return measurement.get("correct") is not None


def value_of(measurement: Measurement) -> float:
    """The metric in [0, 1].

    Raises:
        ValueError: the measurement holds neither ``correct`` nor ``value``.
    """
    correct, value = measurement.get("correct"), measurement.get("value")
    if correct is not None:
        return correct / measurement["n"]
    if value is None:
        raise ValueError("a measurement needs correct or value")
    return value
