"""The module paths of other packages, served by skyloom: programs written for those run here as they are.

`skyloom.compat.drizzle.resample` has the names, arguments, defaults and return values of `drizzle.resample`, and so on.
`activate` makes the original paths themselves resolve to these modules::

    import skyloom.compat

    skyloom.compat.activate("drizzle")
    from drizzle.resample import Drizzle        # skyloom's

and ``python -m skyloom.compat drizzle -- script.py`` (or ``-- -m module``) runs a program that way. Only the modules
in `PROVIDED` are replaced: other parts of an original that is installed stay what they are, and an original that is not
installed is not needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from skyloom.compat._children import ToChildren
from skyloom.errors import InputError

__all__ = ["PROVIDED", "activate", "deactivate"]

PROVIDED: dict[str, tuple[str, ...]] = {
    "drizzle": ("drizzle", "drizzle.cdrizzle", "drizzle.resample", "drizzle.util", "drizzle.utils"),
    "spalipy": ("spalipy", "spalipy.spalipy", "spalipy.utils"),
    "stcal": ("stcal.resample", "stcal.resample.resample", "stcal.resample.utils"),
    "stdpipe": ("stdpipe.psf", "stdpipe.sfft", "stdpipe.subtraction"),
}
"""For each original, those of its modules that the module of the same path in `skyloom.compat` replaces."""


def activate(*names: str) -> ExitStack:
    """Let modules of other packages resolve to those of skyloom, in this process and from now on.

    Processes that `multiprocessing` starts from it do the same.

    Parameters
    ----------
    *names : str
        Originals: keys of `PROVIDED`.

    Returns
    -------
    ExitStack
        May be dropped. Used as a context manager it deactivates at the end what this call has activated.

    Raises
    ------
    InputError
        A name is not among those provided, or a module to be replaced has been imported already: others may hold
        classes and functions of it, which nothing could replace. Then nothing is activated.
    """
    _check(names)
    new = [name for name in dict.fromkeys(names) if name not in _finder.active]
    imported = [module for name in new for module in PROVIDED[name] if module in sys.modules]
    if imported:
        raise InputError(
            f"{', '.join(imported)} of the original package: imported already, and what others took from it would stay "
            f"in use. Call skyloom.compat.activate({', '.join(map(repr, new))}) before the first such import, or run "
            f"the program by: python -m skyloom.compat {','.join(new)} -- ...",
            imported=imported,
        )
    if new and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        _children.begin()
    _finder.active += new
    undo = ExitStack()
    if new:
        undo.callback(deactivate, *new)
    return undo


def deactivate(*names: str) -> None:
    """Let modules resolve to the originals again; modules imported meanwhile keep what they have got.

    Parameters
    ----------
    *names : str
        Originals; those that are not active are left alone. Without a name: all that are active.

    Raises
    ------
    InputError
        A name is not among those provided.
    """
    _check(names)
    for name in [name for name in _finder.active if name in names or not names]:
        _finder.active.remove(name)
        for module in (*PROVIDED[name], name):
            if module in PROVIDED[name] or getattr(sys.modules.get(module), "__loader__", None) is _empty_package:
                _forget(module)
    if not _finder.active and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
        _children.end()


def _check(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in PROVIDED]
    if unknown:
        raise InputError(
            f"skyloom does not replace {', '.join(map(repr, unknown))}; it replaces: {', '.join(sorted(PROVIDED))}.",
            unknown=unknown,
            known=sorted(PROVIDED),
        )


def _forget(name: str) -> None:
    """Take a module, and all below it, out of the imported ones, so that the next import looks for it anew."""
    for module in [module for module in sys.modules if module == name or module.startswith(name + ".")]:
        del sys.modules[module]
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        vars(sys.modules[parent]).pop(child, None)


class _Finder(MetaPathFinder):
    """Finds the modules of active originals before anyone else does."""

    def __init__(self) -> None:
        self.active: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        replaced = [module for name in self.active for module in PROVIDED[name]]
        if fullname in replaced:
            ours = importlib.util.find_spec(f"{__name__}.{fullname}")
            assert ours is not None
            spec = ModuleSpec(fullname, _replacement, origin=ours.origin)
            if ours.submodule_search_locations is not None:  # other modules of the package are the original's
                spec.submodule_search_locations = self._places_of_original(fullname, path, target) or []
            return spec
        above = any(module.startswith(fullname + ".") for module in replaced)
        if above and self._places_of_original(fullname, path, target) is None:  # not installed
            return ModuleSpec(fullname, _empty_package, is_package=True)
        return None

    def _places_of_original(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> list[str] | None:
        """Return where the other modules of an original package lie; None if it is not installed."""
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                return spec.submodule_search_locations
        return None


class _Replacement(Loader):
    """Puts the module of skyloom in the place of the one that is asked for."""

    def exec_module(self, module: ModuleType) -> None:
        ours = importlib.import_module(f"{__name__}.{module.__name__}")
        if hasattr(module, "__path__"):  # a package keeps its own path, so it cannot be the same object
            own = {"__name__", "__package__", "__path__", "__loader__", "__spec__"}
            vars(module).update({name: value for name, value in vars(ours).items() if name not in own})
        else:
            sys.modules[module.__name__] = ours


class _EmptyPackage(Loader):
    """Stands for a package that is not installed, above the modules that replace parts of it."""

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = f"Stands for {module.__name__}, which is not installed; skyloom serves parts of it."


_finder, _replacement, _empty_package = _Finder(), _Replacement(), _EmptyPackage()
_children = ToChildren(_finder.active)
