"""What every `patch()` does, on a library made up here, and that each refuses versions it was not checked against."""

from __future__ import annotations

import importlib
import sys
import types
from importlib import metadata

import pytest
from morlfast.integrations import Patch, check_version


def old():
    return "old"


def new():
    return "new"


@pytest.fixture
def shelf(monkeypatch):
    """A package "shelf" with `old`, and "shelf.user" that has imported it under another name."""
    package, user = types.ModuleType("shelf"), types.ModuleType("shelf.user")
    package.old = user.alias = old
    monkeypatch.setitem(sys.modules, "shelf", package)
    monkeypatch.setitem(sys.modules, "shelf.user", user)
    return types.SimpleNamespace(package=package, user=user, names=lambda: (package.old(), user.alias()))


def test_a_block_begins_with_the_new_and_ends_with_the_old(shelf):
    with Patch("shelf", {old: new}):
        assert shelf.names() == ("new", "new")
    assert shelf.names() == ("old", "old")


def test_an_exception_ends_it_too(shelf):
    with pytest.raises(KeyError), Patch("shelf", {old: new}):
        raise KeyError
    assert shelf.names() == ("old", "old")


def test_a_call_stays_until_it_is_undone_once_or_twice(shelf):
    patch = Patch("shelf", {old: new})
    assert shelf.names() == ("new", "new")
    patch.undo()
    assert shelf.names() == ("old", "old")
    with Patch("shelf", {old: new}):
        patch.undo()
        assert shelf.names() == ("new", "new")
    assert shelf.names() == ("old", "old")


def test_patches_may_be_nested_and_may_overlap(shelf):
    with Patch("shelf", {old: new}):
        with Patch("shelf", {old: new}):
            assert shelf.names() == ("new", "new")
        assert shelf.names() == ("new", "new")
    assert shelf.names() == ("old", "old")
    first, second = (Patch("shelf", {old: new}) for _ in range(2))
    first.undo()
    assert shelf.names() == ("new", "new")
    second.undo()
    assert shelf.names() == ("old", "old")


def test_an_undone_patch_can_be_applied_again(shelf):
    patch = Patch("shelf", {old: new})
    for _ in range(2):
        with patch:
            assert shelf.names() == ("new", "new")
        assert shelf.names() == ("old", "old")


def test_modules_imported_in_between_get_the_old_back(shelf, monkeypatch):
    late = types.ModuleType("shelf.late")
    with Patch("shelf", {old: new}):
        late.mine = shelf.package.old
        monkeypatch.setitem(sys.modules, "shelf.late", late)
        assert late.mine() == "new"
    assert late.mine() == "old"


def test_other_packages_keep_what_they_have(shelf, monkeypatch):
    other = types.ModuleType("shelves")
    other.old = old
    monkeypatch.setitem(sys.modules, "shelves", other)
    with Patch("shelf", {old: new}):
        assert other.old() == "old"


class Base:
    def read(self):
        return "old"


class Book(Base):
    def open(self):
        return "old"


def test_methods_are_replaced_and_inherited_ones_inherited_again(shelf):
    book, methods = Book(), {(Book, "open"): lambda self: "new", (Book, "read"): lambda self: "new"}
    original = Book.open
    with Patch("shelf", {}, methods):
        other = Patch("shelf", {}, methods)
        assert (book.open(), book.read(), Base().read()) == ("new", "new", "old")
    assert (book.open(), book.read()) == ("new", "new")
    for _ in range(2):
        other.undo()
        assert (book.open(), book.read()) == ("old", "old")
        assert Book.open is original
        assert "read" not in vars(Book)


LIBRARIES = ["pymoo", "evox", "evomo", "morl_baselines", "botorch"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_unknown_version_is_refused_by_name_unless_asked_for(library, monkeypatch):
    pytest.importorskip(library)
    ours = importlib.import_module(f"morlfast.integrations.{library}")
    ours.patch().undo()
    monkeypatch.setattr(metadata, "version", lambda distribution: "0.0.7")
    with pytest.raises(RuntimeError, match=rf"0\.0\.7 .*{ours.CHECKED_VERSIONS[-1]} only; pass any_version=True"):
        ours.patch()
    ours.patch(any_version=True).undo()


def test_local_versions_are_their_public_ones_and_no_version_is_unknown(shelf, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda distribution: "1.2+cpu")
    check_version("shelf", ("1.2",), any_version=False)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "shelf", types.ModuleType("shelf"))
    with pytest.raises(RuntimeError, match="shelf of an unknown version is installed"):
        check_version("shelf", ("1.2",), any_version=False)
    check_version("shelf", (), any_version=True)
    check_version("shelf", (), any_version=False, required=False)


def test_what_is_not_installed_is_called_so():
    with pytest.raises(RuntimeError, match=r"^no-such-shelf is not installed; pip install morlfast\[shelves\]$"):
        check_version("no-such-shelf", ("1.2",), any_version=False, extra="shelves")
    check_version("no-such-shelf", ("1.2",), any_version=False, required=False)


@pytest.mark.parametrize(
    ("version", "taken"),
    [("1.16.0", True), ("1.16", True), ("1.16.3", True), ("1.16.1.post1", True), ("1.16.2+cu130", True)]
    + [
        (version, False) for version in ("1.15.9", "1.17.0", "2.16.0", "1.160.0", "1.16.1rc1", "1.16.0.dev0", "nightly")
    ],
)
def test_later_patch_releases_are_taken_where_a_range_is_meant(version, taken, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda distribution: version)
    for distribution in ("shelf", "no-such-shelf"):
        if taken:
            check_version(distribution, ("1.16.0",), any_version=False, later_patches=True)
            continue
        with pytest.raises(RuntimeError, match=r"1\.16\.0 and later patch releases of it only; pass any_version=True"):
            check_version(distribution, ("1.16.0",), any_version=False, later_patches=True)
    monkeypatch.setattr(metadata, "version", lambda distribution: "0.9.0")
    with pytest.raises(RuntimeError, match=r"0\.9\.0"):
        check_version("shelf", ("0.9.1",), any_version=False, later_patches=True)


@pytest.mark.parametrize("library", ["trl", "torchrl"])
def test_an_import_without_the_library_names_the_extra(library, monkeypatch):
    class Absent:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == library:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"morlfast.integrations.{library}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    with pytest.raises(ImportError, match=rf"{library} is not installed; pip install morlfast\[{library}\]"):
        importlib.import_module(f"morlfast.integrations.{library}")
