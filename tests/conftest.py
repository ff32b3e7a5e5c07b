"""Shared by all tests: the repository's root, and real text where there is some."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads mostly wait for each other
sys.path.insert(0, str(ROOT / "tests"))  # the lint and its neighbours are scripts; tests import them

settings.register_profile("tinygpt", deadline=None, derandomize=True)
settings.load_profile("tinygpt")


@pytest.fixture(scope="session")
def root() -> Path:
    "The repository."
    return ROOT


@pytest.fixture(scope="session")
def real_text() -> Path:
    """The folder with real text: `TINYGPT_TEST_DATA`, else `../shared/data`.

    Where neither is there, the tests that ask for it are counted as skipped; nothing in the package needs it.
    """
    named = os.environ.get("TINYGPT_TEST_DATA")
    folder = Path(named).expanduser() if named else ROOT.parent / "shared" / "data"
    if named and not folder.is_dir():
        pytest.fail(f"TINYGPT_TEST_DATA names {named}, which is not a folder")
    if not folder.is_dir():
        pytest.skip("no real text here: set TINYGPT_TEST_DATA to a folder that holds it")
    return folder


@pytest.fixture
def here(begun, tmp_path, monkeypatch) -> Path:
    "Where the test works: a copy, to be spoiled, of the folder that its file has made in a fixture `begun`."
    shutil.copytree(begun, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("TINYGPT_DEBUG", raising=False)
    return tmp_path / "work"
