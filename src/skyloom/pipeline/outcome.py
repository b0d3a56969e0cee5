"""What becomes of the images of a run: one row of a table for each."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyloom.errors import InputError, WriteError

if TYPE_CHECKING:
    from astropy.table import Table

    from skyloom.pipeline.products import Products

_DIGITS = 7
"""Significant digits of what is measured; the dates have more."""


@dataclass(frozen=True)
class Outcome:
    """What became of one science image; numbers are None where there are none.

    The fields are the columns of the table, in its order: first what tells whether the image is any good.

    Attributes
    ----------
    science : str
        Its path.
    status : {'done', 'kept', 'failed'}
        Kept are products that an earlier run has made.
    depth : {'usual', 'poor', ''}
        Poor: it shows much less than others, or than it should; see `skyloom.pipeline.conditions`.
    n_candidates, n_artefacts : int or None
        Candidates without and with flags.
    limit_mag : float or None
        Magnitude of a point source of 5 standard deviations in the difference, if either image has a zero point;
    limit_flux, unit
        its flux, and the unit of that;
    limit_flux_template : float or None
        the same flux in the unit of the template, in which all images of a run can be compared.
    flux_scale, flux_scale_error : float or None
        Flux of a star in the science image over its flux in the template, and the standard error of that ratio as the
        registered stars tell it (None for other alignments).
    transparency : float or None
        The flux scale over what the exposure times let expect; see `skyloom.pipeline.conditions`.
    science_fwhm, template_fwhm : float or None
        Of the stars, in pixels of the science image.
    sky_rms : float or None
        Standard deviation of the difference over the sky, in `unit`.
    noise_std, score_std : float or None
        Standard deviations of difference / error and of the score over the sky; 1 is perfect.
    error_scale : float or None
        The factor on the errors of the candidates, for a score that is wider; 1: none.
    usable_fraction : float or None
        Part of the pixels that are in both images and not masked.
    registration_n : int or None
        Matched stars, of the template's first frame.
    registration_rms : float or None
        Of their positions, in pixels.
    date, filter : str
        From the header of the science image; the date is that of the beginning.
    mjd, exptime : float or None
        The same date, and the exposure time in seconds.
    method : str
        Of the subtraction.
    convolved : {'template', 'science', 'both', ''}
        The image that was filtered to match the other.
    n_templates : int or None
        Frames of the template that were used.
    seconds, cpu_seconds : float or None
        From the reading of the image to the writing of its products; the template is prepared before. The latter are
        those of all threads.
    warnings : str
        What was warned of, separated by line ends.
    error, message : str
        The type of the error, and what it says.
    remade : str
        Why products of an earlier run were not kept.
    difference, candidates, report : str
        Paths of the products.
    template_warnings : str
        What was warned of while the template was prepared.
    """

    science: str
    status: str
    depth: str = ""
    n_candidates: int | None = None
    n_artefacts: int | None = None
    limit_mag: float | None = None
    limit_flux: float | None = None
    unit: str = ""
    limit_flux_template: float | None = None
    flux_scale: float | None = None
    flux_scale_error: float | None = None
    transparency: float | None = None
    science_fwhm: float | None = None
    template_fwhm: float | None = None
    sky_rms: float | None = None
    noise_std: float | None = None
    score_std: float | None = None
    error_scale: float | None = None
    usable_fraction: float | None = None
    registration_n: int | None = None
    registration_rms: float | None = None
    date: str = ""
    mjd: float | None = None
    filter: str = ""
    exptime: float | None = None
    method: str = ""
    convolved: str = ""
    n_templates: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    warnings: str = ""
    error: str = ""
    message: str = ""
    remade: str = ""
    difference: str = ""
    candidates: str = ""
    report: str = ""
    template_warnings: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON: None for what does not apply, lists of warnings."""
        lists = {name: getattr(self, name).split("\n") for name in ("warnings", "template_warnings")}
        told = {name: None if value == "" else value for name, value in asdict(self).items()}
        return told | {name: [text for text in texts if text] for name, texts in lists.items()}


_OWN = {"science", "status", "method", "n_candidates", "template_warnings"}
"""Columns that no other table has, together."""


def outcome_of(science: str | Path, products: Products, numbers: Mapping[str, Any], candidates: Table) -> Outcome:
    """Return the outcome of an image whose products are written.

    `numbers` are the diagnostics of its difference and what is `skyloom.pipeline.conditions.observed` of its header.
    """
    numbers = {**numbers, "error_scale": candidates.meta.get("error_scale")}
    real = int(candidates["real"].sum())
    known = {item.name: numbers[item.name] for item in fields(Outcome) if numbers.get(item.name) is not None}
    known = {name: value for name, value in known.items() if not isinstance(value, float) or math.isfinite(value)}
    return Outcome(
        os.fspath(science),
        "done",
        depth="poor" if "warning" in numbers else "usual",
        n_candidates=real,
        n_artefacts=len(candidates) - real,
        difference=str(products.difference or ""),
        candidates=str(products.table),
        report=str(products.report or ""),
        **{name: _rounded(name, value) for name, value in known.items()},
    )


def _rounded(name: str, value: Any) -> Any:
    return value if not isinstance(value, float) or name == "mjd" else float(f"{value:.{_DIGITS}g}")


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    """Return outcomes as a table, one row for each; numbers that there are not are masked."""
    import numpy as np
    from astropy.table import MaskedColumn, Table

    rows = [asdict(one) for one in outcomes]
    table = Table()
    for name, kind in Outcome.__annotations__.items():
        values = [row[name] for row in rows]
        if kind == "str":
            table[name] = np.array(values, str)
        else:
            missing = [value is None for value in values]
            table[name] = MaskedColumn([value or 0 for value in values], mask=missing, dtype=kind.split(" |")[0])
    return table


def write_outcomes(outcomes: Sequence[Outcome], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write outcomes as a table: JSON, CSV or ECSV, as the name of the file ends.

    Raises
    ------
    InputError
        It has another ending.
    WriteError
        The file cannot be written.
    """
    from skyloom.io import atomic_write
    from skyloom.io.json import to_json

    kind = summary_format(path)
    with atomic_write(path, overwrite=overwrite) as temporary:
        if kind == "json":
            temporary.write_text(to_json([one.to_dict() for one in outcomes]) + "\n")
        else:
            outcome_table(outcomes).write(temporary, format=f"ascii.{kind}", overwrite=True)
    return Path(path)


def summary_format(path: str | Path) -> str:
    """Return 'json', 'csv' or 'ecsv'."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("json", "csv", "ecsv"):
        raise InputError(f"The name of the summary is {path}; it must end with .json, .csv or .ecsv.", path=str(path))
    return kind


def check_is_summary(path: str | Path) -> None:
    """Raise `WriteError` if a file exists that is not a summary of an earlier run, which a new one may replace."""
    path = Path(path).expanduser()
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            if summary_format(path) == "json":
                rows = json.load(stream)
                own = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= _OWN for row in rows)
            else:
                lines = (line for line in stream if not line.startswith("#"))
                delimiter = "," if summary_format(path) == "csv" else " "
                own = set(next(csv.reader(lines, delimiter=delimiter), ())) >= _OWN
    except (OSError, ValueError, csv.Error):
        own = False
    if not own:
        raise WriteError(
            f"{path} exists already and is not the summary of an earlier run, which is all that --resume replaces. "
            "Choose another name, or --overwrite to replace it.",
            path=str(path),
        )
