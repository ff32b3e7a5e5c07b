"""Runs chapters as a reader would, offline and twice in one kernel, and fails on whatever a reader would stumble on.

    python tests/twice.py                          # every chapter, in order
    python tests/twice.py 05 nbs/12_sampling.ipynb # these, by number, name or path

A finding is an error, anything on stderr (warnings, progress bars, logs), a file that a chapter leaves in its folder,
or a call to a server. No notebook is changed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from run_notebooks import ROOT, find

# The first cell of every run: a socket that leaves this machine says so. What a chapter starts as a command of its own
# meets a proxy where nobody listens instead.
OFFLINE = """
import socket
def _connect(self, address, reached=socket.socket.connect):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise OSError(f"a call to {address[0]}: chapters run offline")
    return reached(self, address)
socket.socket.connect = _connect
del socket, _connect
"""
NOWHERE = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}


def run_twice(path: Path, timeout: float | None = 600) -> Iterator[str]:
    "What a reader would stumble on in the notebook at `path`: where, and what. Nothing is written."
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    number = {cell.id: i for i, cell in enumerate(notebook.cells)}
    for cell in cells:
        cell.outputs = []
    again = [nbformat.from_dict(cell | {"id": f"{cell.id}-again"}) for cell in cells]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(OFFLINE), *cells, *again])
    folder, before = path.parent, set(os.listdir(path.parent))
    client = NotebookClient(book, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.extra_arguments = ["--log-level=ERROR"]  # else each kernel warns about its own transport
    try:
        client.execute(env={**os.environ, **NOWHERE})
    except (CellTimeoutError, DeadKernelError) as error:
        yield f"the kernel: {error}"
    except CellExecutionError:
        pass  # the cell's outputs say it
    for cell in book.cells[1:]:
        where = f"cell {number[cell.id.removesuffix('-again')]}, {'second' if cell.id.endswith('-again') else 'first'} run"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{where}: {output.ename}: {output.evalue}"
            elif output.output_type == "stream" and output.name == "stderr":
                yield f"{where}: {output.text.strip()[:600]}"
    left = {name for name in set(os.listdir(folder)) - before if not name.endswith((".ipynb", "__pycache__", ".ipynb_checkpoints"))}
    if left:
        yield f"left behind: {', '.join(sorted(left))}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="numbers, words or paths; every chapter where none is given")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds that one cell may take (600)")
    options = parser.parse_args(arguments)
    try:
        chapters = find(options.chapters, ROOT / "nbs")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    bad = 0
    for path in chapters:
        start = time.monotonic()
        found = list(run_twice(path, options.timeout))
        bad += bool(found)
        print(f"{path.stem}: {'stumbles' if found else 'well'}, {time.monotonic() - start:.0f} s", flush=True)
        for line in found:
            print(f"  {line}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
