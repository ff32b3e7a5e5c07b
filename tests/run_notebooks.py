"""Runs chapters from top to bottom, each in a fresh kernel, and stores the outputs they give.

    python tests/run_notebooks.py            # every chapter, in order (make chapters)
    python tests/run_notebooks.py 00 05      # these, by number, name or path

A notebook is written only after its last cell has run, and clean; one that fails stays as it was.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
import strip_widgets
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

ROOT = Path(__file__).resolve().parents[1]


def find(names: list[str], folder: Path) -> list[Path]:
    "The notebooks meant by numbers (`5`, `05`), words (`attention`), stems or paths; all of them for no name at all."
    chapters = sorted(p for p in folder.glob("*.ipynb"))
    if not names:
        return chapters
    chosen = []
    for name in names:
        stem = Path(name).stem
        number = stem.zfill(2 + stem[-1:].isalpha())  # 7 is 07, 7b is 07b
        hits = [p for p in chapters if stem == p.stem or stem == p.stem.partition("_")[2] or p.stem.startswith(f"{number}_")]
        if not hits:
            raise ValueError(f"run_notebooks: {name!r} is no chapter; choose from {', '.join(p.stem for p in chapters)}")
        chosen += hits
    return chosen


def run(path: Path, timeout: float | None = 600) -> None:
    """Execute the notebook at `path` and store its outputs, clean.

    Raises CellExecutionError (a cell failed), CellTimeoutError (one took longer than `timeout` seconds)
    or DeadKernelError; the file is then unchanged.
    """
    from nbdev.clean import nbdev_clean  # here, so that `find` needs no nbdev

    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False, resources=where)
    client.extra_arguments = ["--log-level=ERROR"]  # else each kernel warns about its own transport
    client.execute()
    notebook.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    draft = path.with_name(f".draft-{path.name}")
    try:
        nbformat.write(notebook, draft)
        nbdev_clean(fname=str(draft))
        strip_widgets.main([str(draft)])
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="numbers, words or paths; every chapter where none is given")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds that one cell may take (600)")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)  # nbdev finds its settings from here
    try:
        chapters = find(options.chapters, ROOT / "nbs")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for path in chapters:
        start = time.monotonic()
        print(f"{path.stem} ...", end=" ", flush=True)
        try:
            run(path, options.timeout)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"failed; {path.name} stays as it was\n{error}", file=sys.stderr)
            return 1
        print(f"{time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
