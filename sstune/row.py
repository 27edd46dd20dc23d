"""A row: what a finished run writes into its ``result.json``. Imports no torch.

The types are what writers and readers are checked against, what ``sstune report`` accepts, and what
``docs/results.md`` explains. A key that is ``NotRequired`` is absent, or null, where it does not apply and in
rows of versions that did not write it.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict, Unpack

Pair = Annotated[list[int], 2]
"""Two whole numbers."""
Interval = Annotated[list[float], 2]
"""A lower and an upper bound."""


class Details(TypedDict, total=False):
    """The keys of a measurement that not every measurement has."""

    correct: int
    """Counted metrics: samples that were correct (under attack: that stayed so), 0 to ``n``."""
    metric: str
    """Name of the metric; absent: "accuracy"."""
    value: float
    """The metric in [0, 1]; absent where it is counted: ``correct / n``."""
    outcomes: str
    """Counted metrics: which samples were correct; see ``sstune.packing.pack``."""
    values: str
    """The metric of each sample in [0, 1], whose mean is ``value``; see ``sstune.packing.pack_values``."""
    interval: Interval
    """95 % interval of ``value``, in [0, 1]; where samples have no value of their own."""
    more: dict[str, float]
    """Further figures of the same predictions, by name."""
    source: str | None
    """The surrogate whose gradient was followed, as ``NAME@DIGEST``; "" or null: the network itself."""
    reached: int
    """Targeted attacks: samples that ended at their target, 0 to ``n``."""
    found: list[Pair]
    """Pairs ``[effort, samples]``: how many samples the attack broke after how many gradient steps or
    queries; empty where the attack does not tell."""
    seconds: float
    """Wall time of the attack in s."""


class Measurement(Details):
    """One figure: a network on a split, clean or under one attack at one eps."""

    split: str
    """"val" or "test"."""
    n: int
    """Samples measured, at least 1."""
    attack: str | None
    """Name of the attack; "audit": the worst case over all that an audit tried; null: clean."""
    gradient: str | None
    """The gradient that was followed: "rule", "exact" or "surrogate"; null: none."""
    eps: str | None
    """Radius of the ball as it was asked for, such as "8/255"; null: clean."""


class AuditCell(Measurement):
    """An attack that only an audit makes: other settings, another eps, or some of the samples."""

    made_on: NotRequired[str]
    """Which of the audit's samples were attacked, packed like ``outcomes``; absent: all."""
    among: NotRequired[str]
    """Which of them the count stands for: those that were not attacked count as not correct; absent: all."""


class CheckEntry(TypedDict):
    """The answer of one check of an audit."""

    id: str
    """"D0" to "D15"."""
    title: str
    """What it asks."""
    status: str
    """"ok", "report", "warn", "masked", "error" or "not run"."""
    figure: float | None
    """What was measured, in ``unit``; null where there is no single number."""
    unit: str | None
    """Unit of ``figure``, such as "points"; may be empty."""
    threshold: str
    """What ``figure`` was compared with, in words."""
    n: int | None
    """Samples that it rests on."""
    text: str
    """One sentence for a reader; may be empty."""


class AuditEntry(TypedDict):
    """A masking audit (``attack=audit``)."""

    verdict: str
    """"MASKED", "NOT MASKED" or "INCONCLUSIVE"."""
    because: list[str]
    """Ids of the checks that the verdict rests on."""
    not_run: dict[str, str]
    """Id of each check that did not run, and why."""
    checks: list[CheckEntry]
    """Every check, D0 first."""
    cells: list[AuditCell]
    """Attacks that are no ``measurements`` of the row."""


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
    """Which layers were given feedback: module name -> class."""

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
    """The splits that a run read."""

    train: SplitEntry
    """Training: what the weights were learnt from."""
    val: SplitEntry
    """Training: what the epoch was chosen on."""
    test: SplitEntry
    """What is measured."""


class SkippedEntry(TypedDict):
    """Image files that could not be read and were left out (``dataset.skip_corrupt``)."""

    n: int
    """How many."""
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
    """A group of the configuration; only the key that every reader needs is declared."""

    name: str


class DatasetConfigEntry(TypedDict):
    """``config.dataset``; only the key that every reader needs is declared."""

    label: str


class RuleConfigEntry(TypedDict):
    """``config.rule``; only the keys that every reader needs are declared."""

    name: str
    scale: NotRequired[str]


class AttackConfigEntry(TypedDict, total=False):
    """``config.attack``; only the keys that every reader needs are declared."""

    eps: list[str]
    norm: str
    cascade: bool


class ConfigEntry(TypedDict):
    """The configuration as the identity holds it: keys at their neutral value are absent.

    Every key is explained in ``docs/configuration.md``; those that readers of rows need are declared here.
    """

    backbone: NameEntry
    dataset: DatasetConfigEntry
    rule: RuleConfigEntry
    seed: int
    task: NotRequired[dict[str, Any]]
    attack: NotRequired[AttackConfigEntry]
    audit: NotRequired[dict[str, Any]]


class AncestorConfigEntry(TypedDict, total=False):
    """An ancestor's configuration; ``seed`` alone must be of its type."""

    seed: int


class Ancestor(TypedDict, total=False):
    """What a run started from: a run of sstune, or a file."""

    command: str
    """Of a run: "train" or "finetune"."""
    identity: str
    """Of a run: its identity."""
    config: AncestorConfigEntry
    """Of a run: its configuration."""
    file: str
    """Of a file: its name, or ``module:factory`` of an imported network."""
    sha256: str
    """Of a file: digest of its content."""


class Measured(TypedDict):
    """What a command measured: the keys of a row that it returns; ``run_once`` adds device and threads."""

    n_classes: int
    """Classes of the dataset, at least 1."""
    measurements: list[Measurement]
    """The figures, in the order in which they were measured."""
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
    """The backend of ``compile``; null: not compiled."""
    processes: NotRequired[int]
    """Training: processes that shared the batch."""
    notes: NotRequired[list[str]]
    """What a reader has to know of data and weights, a sentence each."""
    datasets: NotRequired[DatasetsEntry]
    """The splits that the run read."""
    skipped: NotRequired[SkippedEntry]
    """Image files that were left out."""
    classes: NotRequired[list[str]]
    """Audits: names of the classes."""
    preprocessing: NotRequired[PreprocessingEntry | None]
    """Training: what the published weights expect; null: the backbone has none."""
    epoch: NotRequired[int]
    """Training: the chosen epoch, from 1."""
    epochs_trained: NotRequired[int]
    """Training: epochs that were completed."""
    model_sha256: NotRequired[str | None]
    """Training: sha256 of ``model.pt``."""
    layers: NotRequired[LayersEntry]
    """Training: which layers were given feedback."""
    alignment: NotRequired[list[AlignmentEntry]]
    """Training: feedback and updates in the chosen epoch, an entry for each feedback layer."""
    audit: NotRequired[AuditEntry]
    """Audits: checks and verdict."""


class Row(Measured):
    """A finished run: what it measured, and the configuration, data and code that reproduce it."""

    schema_version: int
    """Version of this format: 1."""
    identity: str
    """sha256 of configuration, ancestors and data: the same run has the same identity."""
    command: str
    """"train", "finetune" or "attack"."""
    config: ConfigEntry
    """The resolved configuration."""
    lineage: list[Ancestor]
    """What the run started from, oldest first; empty where it trained from random or published weights."""
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
    """A measurement of ``n`` samples of ``split``; clean, unless an attack is named.

    Raises:
        ValueError: neither ``correct`` nor ``value`` is given, or it is outside [0, n], or [0, 1].
    """
    found: Measurement = {
        "split": split, "n": n, "attack": attack, "gradient": gradient, "eps": eps, **details,
    }  # fmt: skip
    if not 0 <= value_of(found) <= 1:
        raise ValueError(f"a measurement of {value_of(found)} is outside [0, 1]")
    return found


def metric_of(measurement: Measurement) -> str:
    """Name of the metric; rows that do not say are of accuracy."""
    return measurement.get("metric") or "accuracy"


def is_counted(measurement: Measurement) -> bool:
    """Whether the metric is a count of correct samples."""
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
