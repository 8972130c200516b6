"""Drop-ins for other libraries, each imported only by those who have that library.

`morlfast.integrations.pymoo`, `.evox`, `.evomo`, `.morl_baselines` and `.botorch` give the names, signatures and
numbers of the originals. `patch()` of each puts them in place of the originals in that library's own modules:

    with patch():       # until the end of the block
    patched = patch()   # until patched.undo(), or as long as the process
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from types import MappingProxyType, TracebackType
from typing import Any

# How many patches want each thing replaced: a global by the id of its original, which modules keep alive, or a method
# by its class and name. And the methods that are replaced, or None where a class inherits one.
_holders: Counter[int | tuple[type, str]] = Counter()
_original_methods: dict[tuple[type, str], Any] = {}


class Patch:
    """Originals of one library replaced in its modules, from `patch()` to `undo()` or the end of a `with` block.

    Patches of one library may overlap: the originals return when the last of them is undone, also to modules that were
    imported in between. `undo()` may be called again; `with` on an undone patch applies it again.
    """

    def __init__(
        self,
        package: str,
        replacements: Mapping[Any, Any],
        methods: Mapping[tuple[type, str], Any] = MappingProxyType({}),
    ) -> None:
        """`replacements`: globals of `package`, original to new; `methods`: (class, name) to new."""
        self._package = package
        self._replacements = dict(replacements)
        self._methods = dict(methods)
        self._applied = False
        self._apply()

    def undo(self) -> None:
        """Give the originals back."""
        if not self._applied:
            return
        self._applied = False
        _holders.subtract([*map(id, self._replacements), *self._methods])
        _rebind(self._package, {new: old for old, new in self._replacements.items() if _holders[id(old)] == 0})
        for cls, name in self._methods:
            if _holders[cls, name] == 0:
                original = _original_methods.pop((cls, name))
                if original is None:
                    delattr(cls, name)
                else:
                    setattr(cls, name, original)

    def _apply(self) -> None:
        if not self._applied:
            self._applied = True
            _holders.update([*map(id, self._replacements), *self._methods])
        _rebind(self._package, self._replacements)
        for (cls, name), new in self._methods.items():
            _original_methods.setdefault((cls, name), vars(cls).get(name))
            setattr(cls, name, new)

    def __enter__(self) -> Patch:
        self._apply()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.undo()


def check_version(distribution: str, checked: Sequence[str], any_version: bool) -> None:
    """RuntimeError for a version whose numbers nobody has compared, unless `any_version`."""
    try:
        found = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        found = "without a version"
    if found.partition("+")[0] not in checked and not any_version:
        raise RuntimeError(
            f"{distribution} {found} is installed, and its drop-ins were checked against {', '.join(checked)} only; "
            "patch(any_version=True) puts them in place nevertheless"
        )


def _rebind(package: str, replacements: Mapping[Any, Any]) -> None:
    """In each loaded module of `package`, every global that is a key of `replacements` becomes its value."""
    values = {id(old): new for old, new in replacements.items()}
    for path, module in list(sys.modules.items()):
        if path != package and not path.startswith(f"{package}."):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in values:
                setattr(module, name, values[id(value)])
