"""What users install: the wheel holds the configurations, and works without a checkout."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import sstune
from sstune.composition import compose, restore

ROOT = Path(sstune.__file__).parents[1]

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling"),
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="needs a checkout"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from a copy and without network."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("sstune", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (found,) = dist.glob("*.whl")
    return found


def test_the_wheel_has_the_version_and_every_file(wheel: Path) -> None:
    assert wheel.name == f"sstune-{sstune.__version__}-py3-none-any.whl"
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        f"sstune/{'conf/' if folder == 'conf' else ''}{path.relative_to(ROOT / folder).as_posix()}"
        for folder, pattern in (("conf", "*.yaml"), ("sstune", "*.py"))
        for path in (ROOT / folder).rglob(pattern)
        if "local" not in path.parts
    }
    assert len(expected) > 60
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == expected
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


def test_the_wheel_declares_the_command_and_what_it_needs(wheel: Path) -> None:
    folder = f"sstune-{sstune.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert "sstune = sstune.__main__:main" in archive.read(f"{folder}/entry_points.txt").decode()
        metadata = archive.read(f"{folder}/METADATA").decode()
    assert f"Version: {sstune.__version__}\n" in metadata
    assert "Requires-Python: <3.14,>=3.11\n" in metadata
    for name in ("torch", "torchvision", "timm", "hydra-core", "omegaconf", "torchattacks", "pandas"):
        assert f"\nRequires-Dist: {name}" in metadata


def test_unpacked_anywhere_it_finds_its_configurations(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    program = "import sstune, sys; from sstune.cli import main; print(sstune.__file__); "
    program += "sys.exit(main(['attack', '--cfg', 'job', 'experiment=quickstart']))"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    where, _, text = answer.stdout.partition("\n")
    assert where == str(tmp_path / "site" / "sstune" / "__init__.py")
    assert restore(yaml.safe_load(text)) == compose("attack", ["experiment=quickstart"])
