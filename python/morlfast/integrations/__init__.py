"""Drop-ins for other libraries, each imported only by those who have that library.

`morlfast.integrations.pymoo`, `.evox`, `.evomo`, `.morl_baselines`, `.botorch`, `.verl`, `.nemo_rl` and `.openrlhf`
give the names, signatures and numbers of the originals. `patch()` of each puts them in place of the originals in that
library's own modules:

    with patch():       # until the end of the block
    patched = patch()   # until patched.undo(), or as long as the process

`.trl` has a mixin for trainers, `.torchrl` a transform and `.slime` functions for its options: these are named where
the library asks for such, and nothing is patched.
"""

from __future__ import annotations

import importlib.util
import re
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


def check_version(
    distribution: str,
    checked: Sequence[str],
    any_version: bool,
    *,
    later_patches: bool = False,
    extra: str | None = None,
    required: bool = True,
) -> None:
    """RuntimeError for a version whose numbers nobody has compared, unless `any_version`.

    With `later_patches` also those are taken that are newer than a checked one in their third number only. Without
    `required` a library that is absent, or does not say its version, is not refused. `extra` is the one of morlfast
    that installs the library.
    """
    if any_version:
        return
    try:
        found = metadata.version(distribution).partition("+")[0]
    except metadata.PackageNotFoundError:
        if not required:
            return
        module = distribution.replace("-", "_")
        if module not in sys.modules and importlib.util.find_spec(module) is None:
            hint = f"; pip install morlfast[{extra}]" if extra is not None else ""
            raise RuntimeError(f"{distribution} is not installed{hint}") from None
        found = "of an unknown version"
    if found in checked or (later_patches and any(_is_later_patch(found, version) for version in checked)):
        return
    versions = ", ".join(checked) + (" and later patch releases of it" if later_patches else "")
    raise RuntimeError(
        f"{distribution} {found} is installed, and morlfast was checked against {versions} only; "
        "pass any_version=True to use it nevertheless"
    )


def needs_extra(error: ModuleNotFoundError, library: str, extra: str) -> ImportError:
    """What to raise from `error`: how to install `library`, or the error itself if another module is missing."""
    if error.name != library:
        return error
    return ImportError(f"{library} is not installed; pip install morlfast[{extra}]", name=library)


def _is_later_patch(version: str, checked: str) -> bool:
    """Of the same two numbers, and no pre-release."""
    numbers, least = (re.fullmatch(r"(\d+\.\d+)(?:\.(\d+))?(?:\.post\d+)?", text) for text in (version, checked))
    if numbers is None or least is None:
        return False
    return numbers[1] == least[1] and int(numbers[2] or 0) >= int(least[2] or 0)


def _rebind(package: str, replacements: Mapping[Any, Any]) -> None:
    """In each loaded module of `package`, every global that is a key of `replacements` becomes its value."""
    values = {id(old): new for old, new in replacements.items()}
    for path, module in list(sys.modules.items()):
        if path != package and not path.startswith(f"{package}."):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in values:
                setattr(module, name, values[id(value)])
