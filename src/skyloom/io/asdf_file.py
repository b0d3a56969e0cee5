"""Images in ASDF files (Roman, and whoever keeps data, err, dq and meta.wcs in one branch of the tree)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skyloom.errors import ReadError
from skyloom.io.fits_file import open_regular
from skyloom.io.profiles import JWST, mask_bits
from skyloom.io.quiet import quiet_astropy


def asdf_fields(path: Path) -> dict[str, Any]:
    """Return the fields of the `Exposure` in the first branch of an ASDF tree that has a two-dimensional ``data``.

    ``err``, ``dq`` (bits as in JWST, which Roman shares) and ``meta.wcs`` of the same branch go with it.

    Raises
    ------
    ReadError
        The file is no ASDF, damaged, has no image, or `asdf` is not installed.
    """
    try:
        import asdf
    except ImportError as error:
        raise ReadError(f"{path.name} is an ASDF file; install skyloom[asdf] to read it.", path=path.name) from error
    try:
        with (
            open_regular(path) as stream,
            quiet_astropy(),
            asdf.open(stream, lazy_load=False, memmap=False) as file,
        ):
            return _fields(next(_branches(file.tree), None), path.name)
    except ReadError:
        raise
    except Exception as error:
        raise ReadError(f"{path.name} cannot be read as ASDF: {error}.", path=path.name) from error


def _branches(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the mappings of a tree that hold a two-dimensional ``data``, the outer ones first."""
    if not isinstance(tree, Mapping):
        return
    data: Any = tree.get("data")
    if data is not None and np.ndim(getattr(data, "value", data)) == 2:
        yield tree
    for value in tree.values():
        yield from _branches(value)


def _fields(branch: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    if branch is None:
        raise ReadError(f"{name} has no two-dimensional array named 'data'.", path=name)
    data = _plain(branch["data"])
    variance = None
    if branch.get("err") is not None:
        error = _plain(branch["err"]).astype(np.float64)
        variance = np.where(error > 0, error**2, 0.0)
    mask = None
    if branch.get("dq") is not None:
        mask = mask_bits(_plain(branch["dq"]), JWST, {})
    meta: Any = branch.get("meta") or {}
    exptime: Any = (meta.get("exposure") or {}).get("exposure_time")
    return {
        "data": data,
        "variance": variance,
        "mask": mask,
        "wcs": meta.get("wcs"),
        "exptime": float(exptime) if isinstance(exptime, int | float) and exptime > 0 else None,
        "unit": str(getattr(branch["data"], "unit", "DN/s" if meta.get("telescope") == "ROMAN" else "adu")),
        "name": name,
    }


def _plain(array: Any) -> Any:
    return np.array(getattr(array, "value", array))
