"""A virtual environment with sstune and BioTorch (PyPI package biotorch 0.0.16), made on first use."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIOTORCH = "biotorch==0.0.16"


def environment(folder: Path) -> Path:
    """Create or update the virtual environment in ``folder``; return its interpreter.

    torch and torchvision have the versions of the running interpreter, whatever constraints.txt says.
    BioTorch is installed without its dependencies: its layers need torch only, and the others (jupyter,
    tensorboard) are large.
    """
    python = folder / "bin" / "python"
    pins = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
    others = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith(("torch==", "torchvision=="))
    ]
    wanted = "\n".join([*others, *pins])
    made = folder / "made-for"
    if made.exists() and made.read_text() == f"{wanted}\n{BIOTORCH}":
        return python
    print(f"installing {BIOTORCH} and {', '.join(pins)} into {folder}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (folder / ".gitignore").write_text("*\n")
    constraints = folder / "constraints.txt"
    constraints.write_text(wanted)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--constraint", constraints, "--editable", ROOT], check=True)
    subprocess.run([*pip, "--no-deps", BIOTORCH], check=True)
    made.write_text(f"{wanted}\n{BIOTORCH}")
    return python
