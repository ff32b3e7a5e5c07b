"""Tells editors and type checkers the names at the top of the package, which `tinygpt/__init__.py` looks up as they are asked for.

    python tests/type_stub.py  # writes tinygpt/__init__.pyi; make export calls it
"""

from __future__ import annotations

from pathlib import Path

import tinygpt

STUB = Path(tinygpt.__file__).with_suffix(".pyi")


def stub() -> str:
    "The stub that says what `_HOMES` and `_MODULES` say. `as` is how a stub gives a name on."
    lines = [f'"{tinygpt.__doc__}"', "", "# Written by tests/type_stub.py from the names in __init__.py.", ""]
    lines += [f"from . import {module} as {module}" for module in sorted(tinygpt._MODULES)]
    for module, names in sorted(tinygpt._HOMES.items()):
        lines += [f"from .{module} import {name} as {name}" for name in sorted(names)]
    return "\n".join([*lines, "", "__version__: str", f"__all__ = {tinygpt.__all__}".replace("'", '"'), ""])


if __name__ == "__main__":
    STUB.write_text(stub(), encoding="utf-8", newline="\n")
