"""Registry of model families: the subclass of LVLM for a checkpoint's model_type.

Classes are found by reading the sources beside this file; only the one that is wanted is imported, since some bring
half of transformers along.
"""

from __future__ import annotations

import ast
import functools
import importlib
from pathlib import Path


def adapter_for(family: str | None) -> type | None:
    """The subclass of LVLM that is for a family; None where the general one is, or nothing is known of it.

    Args:
        family: transformers' name of it, the model_type of its config.
    """
    if family not in adapters():
        return None
    module, name = adapters()[family]
    return getattr(importlib.import_module(module), name)


@functools.cache
def adapters() -> dict[str, tuple[str, str]]:
    """Family -> module and name of its class."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in (node for node in tree.body if isinstance(node, ast.ClassDef)):
            for line in node.body:
                if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "families":
                    found |= dict.fromkeys(
                        ast.literal_eval(line.value), (f"btp.models.families.{path.stem}", node.name)
                    )
    return found
