"""Weights from files as they are found in the wild: the good, the odd and the malicious."""

from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sstune import backbones, datasets, tasks
from sstune.backbones import Network, load_third_party, read_state_dict
from sstune.schema import BackboneConfig, ClassificationConfig, FolderConfig, RequestError

State = dict[str, Tensor]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def build(outputs: int = 10, name: str = "resnet20", seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return backbones.build(BackboneConfig(name), (3, 32, 32), outputs, MEAN, STD)


def state_of(network: Network) -> State:
    return {key: value.clone() for key, value in network.backbone.state_dict().items()}


def prefixed(state: State) -> State:
    return {f"module.{key}": value for key, value in state.items()}


WRAPPINGS: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state},
    "model": lambda state: {"model": state, "epoch": 3},
    "module-prefix": prefixed,
    "akamaster": lambda state: {"best_prec1": 91.78, "state_dict": prefixed(state)},
    "nested": lambda state: {"state_dict": {"model": state}},
    "entries-that-are-no-tensors": lambda state: {"state_dict": {**state, "arch": "resnet20", "epoch": 7}},
    "optimizer-beside": lambda state: {
        "model": state,
        "optimizer": {"state": {0: torch.ones(2)}},
        "args": None,
    },
    "without-step-counters": lambda state: {
        key: value for key, value in state.items() if not key.endswith("num_batches_tracked")
    },
}


class TestUnwrapping:
    @pytest.mark.parametrize("wrapping", WRAPPINGS)
    @pytest.mark.parametrize("zipped", [True, False])
    def test_loads_every_tensor(self, wrapping: str, zipped: bool, tmp_path: Path) -> None:
        source, target = build(seed=1), build(seed=2)
        path = tmp_path / "weights.th"
        torch.save(WRAPPINGS[wrapping](state_of(source)), path, _use_new_zipfile_serialization=zipped)
        assert load_third_party(target, path) == []
        expected, loaded = state_of(source), state_of(target)
        assert list(loaded) == list(expected)
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)

    @pytest.mark.parametrize("name", ["resnet32", "resnet44", "resnet56"])
    def test_loads_the_rest_of_the_family(self, name: str, tmp_path: Path) -> None:
        source, target = build(name=name, seed=1), build(name=name, seed=2)
        path = tmp_path / "weights.th"
        torch.save(WRAPPINGS["akamaster"](state_of(source)), path)
        assert load_third_party(target, path) == []
        images = torch.rand(2, 3, 16, 16)
        assert torch.equal(target.eval()(images), source.eval()(images))

    def test_half_precision_is_loaded_into_float32(self, tmp_path: Path) -> None:
        source, target = build(seed=1), build(seed=2)
        path = tmp_path / "half.pt"
        torch.save({key: value.half() for key, value in state_of(source).items()}, path)
        load_third_party(target, path)
        assert target.backbone.state_dict()["conv1.weight"].dtype == torch.float32


class TestFit:
    @pytest.mark.parametrize("outputs", [2, 100])
    def test_a_head_of_another_width_stays_new_and_that_is_said(self, outputs: int, tmp_path: Path) -> None:
        source, target = build(10, seed=1), build(outputs, seed=2)
        before = state_of(target)
        path = tmp_path / "weights.th"
        torch.save(WRAPPINGS["akamaster"](state_of(source)), path)
        assert load_third_party(target, path) == [
            f"linear.weight: new, {outputs}x64 (the file has 10x64)",
            f"linear.bias: new, {outputs} (the file has 10)",
        ]
        for key, value in state_of(target).items():
            expected = before if key.startswith("linear.") else state_of(source)
            assert torch.equal(value, expected[key])

    @pytest.mark.parametrize(
        ("change", "messages"),
        [
            ({"layer1.0.conv1.weight": None}, ["missing layer1.0.conv1.weight"]),
            ({"linear.bias": None}, ["missing linear.bias"]),
            ({"bn1.running_mean": None}, ["missing bn1.running_mean"]),
            ({"fc.weight": torch.ones(1)}, ["unexpected fc.weight"]),
            ({"conv1.weight": torch.ones(16, 1, 3, 3)}, ["conv1.weight is 16x1x3x3, expected 16x3x3x3"]),
            ({"bn1.weight": torch.tensor(1.0)}, ["bn1.weight is a scalar, expected 16"]),
            ({"linear.weight": torch.ones(10, 128)}, ["linear.weight is 10x128, expected 10x64"]),
            (
                {"conv1.weight": None, "stem.weight": torch.ones(2), "bn1.bias": torch.ones(8)},
                ["missing conv1.weight", "unexpected stem.weight", "bn1.bias is 8, expected 16"],
            ),
        ],
    )
    def test_any_other_misfit_is_refused_by_key(
        self, change: dict[str, Tensor | None], messages: list[str], tmp_path: Path
    ) -> None:
        target = build(seed=2)
        before = state_of(target)
        state = {**state_of(build(seed=1)), **change}
        path = tmp_path / "weights.th"
        torch.save({key: value for key, value in state.items() if value is not None}, path)
        with pytest.raises(RequestError) as caught:
            load_third_party(target, path)
        assert str(caught.value) == f"init_from: {path} does not fit the backbone: {', '.join(messages)}"
        assert all(torch.equal(value, before[key]) for key, value in state_of(target).items())

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
    @pytest.mark.parametrize("name", ["conv1.weight", "bn1.running_var", "linear.bias"])
    def test_weights_that_are_no_numbers_are_named(self, name: str, value: float, tmp_path: Path) -> None:
        """1e300 is a number in float64 and infinite in the network's float32."""
        target, state = build(seed=2), state_of(build(seed=1))
        before = state_of(target)
        state[name] = state[name].double()
        state[name].view(-1)[3] = value
        path = tmp_path / "weights.th"
        torch.save(state, path)
        said = f"{path} has non-finite weights: {name}: 1 of {state[name].numel()} values"
        with pytest.raises(RequestError, match=re.escape(said)):
            load_third_party(target, path)
        assert all(torch.equal(value, before[key]) for key, value in state_of(target).items())

    def test_infinity_is_kept_where_the_network_has_it_itself(self, tmp_path: Path) -> None:
        """A mask of minus infinity is a constant, not a weight."""
        path = tmp_path / "weights.th"
        source, target = build(seed=1), build(seed=2)
        for network in (source, target):
            network.backbone.register_buffer("mask", torch.full((2,), -torch.inf))
        torch.save(state_of(source), path)
        assert load_third_party(target, path) == []

    def test_a_long_list_of_misfits_is_cut_and_counted(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.th"
        torch.save(state_of(build(name="resnet32")), path)
        with pytest.raises(RequestError, match=r"backbone: (unexpected layer1\.3\.[\w.]+, ){3}and \d+ more$"):
            load_third_party(build(), path)


class Malicious:
    """Unpickling it would run a shell command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.witness}",)


def legacy(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def zipped(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def bare_pickle(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


SMALL = {"state_dict": nn.Linear(3, 2).state_dict(), "epoch": 1}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
class TestRefusals:
    @pytest.mark.parametrize("dump", [zipped, legacy, bare_pickle])
    @pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"state_dict": {"conv1.weight": bad}}])
    def test_code_in_a_file_is_not_run(self, dump: Any, wrap: Any, tmp_path: Path) -> None:
        witness, path = tmp_path / "witness", tmp_path / "weights.th"
        path.write_bytes(dump(wrap(Malicious(witness))))
        with pytest.raises(RequestError, match="is not a checkpoint that can be read safely"):
            read_state_dict(path)
        assert not witness.exists()
        pickle.loads(path.read_bytes()) if dump is bare_pickle else torch.load(path, weights_only=False)
        assert witness.exists()  # the file is indeed malicious

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n",
            b"hello",
            b"init_from: a text file\nof two lines\n",
            b"<html></html>",
            b"{}",
            b"PK\x03\x04",
            b"]",
        ],
    )
    def test_files_of_another_kind(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "weights.th"
        path.write_bytes(content)
        with pytest.raises(RequestError, match=r"^init_from: .*weights\.th is not a checkpoint [^\n]*$"):
            read_state_dict(path)

    @pytest.mark.parametrize("dump", [zipped, legacy])
    def test_truncation_anywhere(self, dump: Callable[[Any], bytes], tmp_path: Path) -> None:
        whole, path = dump(SMALL), tmp_path / "weights.th"
        for length in range(0, len(whole), 23):
            path.write_bytes(whole[:length])
            with pytest.raises(RequestError, match="is not a checkpoint"):
                read_state_dict(path)
        path.write_bytes(whole)
        assert list(read_state_dict(path)) == ["weight", "bias"]

    @settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(content=st.one_of(st.binary(max_size=64), st.text(max_size=64).map(str.encode)))
    def test_any_bytes(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "weights.th"
        path.write_bytes(content)
        with pytest.raises(RequestError):
            read_state_dict(path)

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_flipped_bytes_load_or_are_refused(self, data: st.DataObject, tmp_path: Path) -> None:
        damaged = bytearray(data.draw(st.sampled_from([zipped(SMALL), legacy(SMALL)])))
        for _ in range(4):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path / "weights.th"
        path.write_bytes(damaged)
        try:
            state = read_state_dict(path)
        except RequestError:
            return
        assert state
        assert all(isinstance(value, Tensor) for value in state.values())

    @pytest.mark.parametrize(
        "content", [[1, 2], {}, {"epoch": 3}, {"state_dict": {}}, torch.ones(2), "weights"]
    )
    def test_checkpoints_without_tensors_by_name(self, content: Any, tmp_path: Path) -> None:
        path = tmp_path / "weights.th"
        torch.save(content, path)
        with pytest.raises(RequestError, match=r"weights\.th holds no state dict"):
            read_state_dict(path)

    def test_a_whole_pickled_module(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.th"
        torch.save(nn.Linear(2, 2), path)
        with pytest.raises(RequestError, match="is not a checkpoint that can be read safely"):
            read_state_dict(path)

    @pytest.mark.parametrize("where", ["nowhere.th", "."])
    def test_paths_that_are_no_file(self, where: str, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="is not a checkpoint that can be read safely"):
            read_state_dict(tmp_path / where)


def shared(name: str) -> Path:
    root = Path(os.environ.get("SSTUNE_SHARED", Path(__file__).parents[2].parent / "shared"))
    if not (root / name).exists():
        pytest.skip(f"{root / name} is absent; set SSTUNE_SHARED to the folder that holds {name}")
    return root / name


def without_most_of_train(archive: Path, path: Path) -> Path:
    """A copy with all test images and 10 training images of each class, as 50,000 take long to decode."""
    with tarfile.open(archive) as source, tarfile.open(path, "w") as target:
        for member in source:
            *_, split, _, name = ("", "", *member.name.split("/"))
            if member.isreg() and (split == "test" or int(Path(name).stem) < 10):
                target.addfile(member, source.extractfile(member))
    return path


def test_the_published_resnet20(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """81.03 % of all test images of cifar10-jpeg, as measured by others (91.78 % on the official ones)."""
    checkpoint, archive = shared("checkpoints/resnet20-12fca82f.th"), shared("data/cifar10.tar.xz")
    network = build()
    assert load_third_party(network, checkpoint) == []
    network.to(memory_format=torch.channels_last)
    root = without_most_of_train(archive, tmp_path / "test.tar")
    config = FolderConfig("folder", "cifar10-jpeg", MEAN, STD, root=str(root), cache=str(tmp_path / "cache"))
    test = datasets.load(config).test
    task = tasks.build(ClassificationConfig("classification"), 10)
    monkeypatch.setattr("sstune.tasks.evaluation.BATCH_SIZE", 64)  # stays in a CPU's cache: half the time
    judged = tasks.evaluate(network, task, test, torch.device("cpu"))
    assert len(test) == 10_000
    assert judged.score.correct == pytest.approx(8103, abs=3)
