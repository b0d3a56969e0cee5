"""Run the HOTPANTS binary, for those who want to compare."""

from __future__ import annotations

import logging
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.table import Table

from skyloom.errors import InputError, SubtractionError
from skyloom.subtraction.al_hotpants.inputs import HotpantsBit

log = logging.getLogger("skyloom.subtraction")

_TAIL = 2000  # characters of its messages in an error


@dataclass(frozen=True, eq=False)
class BinaryResult:
    """The layers of the file that the binary wrote: -allm and -hki."""

    diff: npt.NDArray[Any]
    convolved: npt.NDArray[Any]
    scaled: npt.NDArray[Any]
    noise: npt.NDArray[Any]
    kernel: Table
    header: fits.Header


def run_binary(
    exe: str, planes: Mapping[str, npt.NDArray[Any] | None], masks: Mapping[str, npt.NDArray[np.bool_]],
    params: Mapping[str, Any], *, positions: npt.NDArray[Any] | None = None, tmpdir: str | None = None,
    workdir: str | None = None, timeout: float | None = None,
) -> BinaryResult:  # fmt: skip
    """Run the executable `exe` on two images.

    Nothing goes through a shell. Its files lie in a folder of their own that is removed, come what may, unless it
    is given as `workdir`.

    Parameters
    ----------
    exe : str
        Path of the executable.
    planes : mapping
        'inim', 'tmplim' and, if there, their noise 'ini', 'tni'.
    masks : mapping
        'imi' and 'tmi'; bad pixels are written with the bits 0x20 and 0x80, which HOTPANTS needs to see them in its
        output.
    params : mapping
        Options and values; None and False are left out, True is a flag.
    positions : ndarray, shape (N, 2), optional
        x, y (0-based) for -ssf.

    Raises
    ------
    InputError
        There is no such executable.
    SubtractionError
        It failed, or wrote no difference; with the end of its messages.
    """
    if not Path(exe).is_file():
        raise InputError(
            f"There is no executable {exe!r}; give the path of HOTPANTS, or nothing to run natively.", exe=exe
        )
    with ExitStack() as stack:
        folder = Path(workdir or stack.enter_context(tempfile.TemporaryDirectory(prefix="hotpants", dir=tmpdir)))
        folder.mkdir(parents=True, exist_ok=True)
        files = {**_write(folder, planes, masks, positions), "outim": str(folder / "diff.fits")}
        Path(files["outim"]).unlink(missing_ok=True)
        stamps = folder / "stamps.reg"
        command = [str(exe), *arguments({"savexy": str(stamps), **files, "allm": True, "hki": True, **params})]
        log.info("running %s", command)
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace",
                                  timeout=timeout, check=False)  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SubtractionError(f"The HOTPANTS executable {exe} could not be run: {error}", exe=exe) from error
        messages = (done.stdout + done.stderr)[-_TAIL:]
        log.debug("%s", messages)
        if done.returncode != 0 or not Path(files["outim"]).is_file():
            raise SubtractionError(
                f"The HOTPANTS executable {exe} ended with status {done.returncode} and "
                f"{'a' if Path(files['outim']).is_file() else 'no'} difference. Its last messages: {messages}",
                returncode=done.returncode,
                messages=messages,
            )
        result = _read(files["outim"], messages)
        if stamps.is_file():
            result.header["NSTAMPS"] = max(0, len(stamps.read_text().splitlines()) - 1)
        return result


def arguments(params: Mapping[str, Any]) -> list[str]:
    """Return the argument list for options: None and False are left out, True is a flag, a sequence many arguments."""
    words: list[str] = []
    for name, value in params.items():
        if value is None or value is False:
            continue
        words.append(f"-{str(name).lstrip('-')}")
        if value is True:
            continue
        if isinstance(value, str):
            # options with many values may come as one string, file names may have spaces
            words += value.split() if name in ("ng", "gd", "pca", "rkw") else [value]
        elif np.ndim(value):
            words += [str(one) for one in value]
        else:
            words.append(str(value))
    return words


def _write(
    folder: Path, planes: Mapping[str, npt.NDArray[Any] | None], masks: Mapping[str, npt.NDArray[np.bool_]],
    positions: npt.NDArray[Any] | None,
) -> dict[str, str]:  # fmt: skip
    """Write the inputs; return the options that name them."""
    files: dict[str, str] = {}
    for name, plane in planes.items():
        if plane is not None:
            files[name] = str(folder / f"{name}.fits")
            data = np.asarray(plane, np.float32)
            # HOTPANTS does not know NaN, which would spread as far as its kernel reaches; these pixels are masked
            finite = np.isfinite(data)
            fits.writeto(files[name], np.where(finite, data, np.median(data[finite])), overwrite=True)
    for name, mask in masks.items():
        files[name] = str(folder / f"{name}.fits")
        bits = np.where(mask, np.int16(HotpantsBit.INPUT_MASK | HotpantsBit.INPUT_ISBAD), np.int16(0))
        fits.writeto(files[name], bits, overwrite=True)
    if positions is not None:
        files["ssf"] = str(folder / "objects.xy")
        np.savetxt(files["ssf"], np.asarray(positions) + 1, fmt="%.1f")
    return files


def _read(path: str, messages: str) -> BinaryResult:
    """Read what it wrote."""
    with fits.open(path) as hdus:
        if len(hdus) < 5 or not np.any(hdus[0].data):
            raise SubtractionError(
                f"HOTPANTS wrote {len(hdus)} extensions, and a difference that is 0 everywhere: it found no stamps. "
                f"Its last messages: {messages}",
                messages=messages,
            )
        diff, convolved, scaled, noise = (np.array(hdu.data, np.float32) for hdu in hdus[:4])
        return BinaryResult(diff, convolved, scaled, noise, Table.read(hdus[4]), hdus[0].header.copy())
