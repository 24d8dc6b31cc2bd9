"""What is installed is all there is: a folder left out of the list works in a checkout only."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAPPED = {"residcheck.claims", "residcheck.snapshots"}  # folders of the top level


def test_every_folder_of_the_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for init in (ROOT / "residcheck").rglob("__init__.py")
    }
    assert set(settings["packages"]) == there | MAPPED
