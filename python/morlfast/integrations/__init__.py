"""Drop-ins for other libraries, each imported only by those who have that library.

`morlfast.integrations.pymoo`, `.morl_baselines` and `.botorch` give the names, signatures and numbers of the originals.
The last two also have `install()`, which puts them in place of the originals in that library's own modules.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any


def rebind(package: str, replacements: Mapping[Any, Any]) -> ExitStack:
    """In each loaded module of `package`, every global that is a key of `replacements` becomes its value.

    Returns what undoes it: `with rebind(...)` for a while, or nothing further to let it stay.
    """
    undo = ExitStack()
    originals = {id(original): new for original, new in replacements.items()}
    for path, module in list(sys.modules.items()):
        if path != package and not path.startswith(f"{package}."):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in originals:
                setattr(module, name, originals[id(value)])
                undo.callback(setattr, module, name, value)
    return undo
