"""The candidate table as the page takes it: plain columns of numbers and text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FIRST = ("id", "snr", "flux", "flux_err", "x", "y", "ra", "dec", "real", "flag_text", "sign", "flags")
"""Columns that come first, in this order."""
HIDDEN = ("real", "sign", "flags")
"""Of these, the ones that stand with the details only: they repeat others."""
DIGITS = {"id": 0, "snr": 2, "x": 2, "y": 2, "ra": 6, "dec": 6, "sign": 0, "flags": 0}
LABELS = {
    "id": "ID",
    "snr": "S/N",
    "flux": "Flux",
    "flux_err": "Flux error",
    "sign": "Sign",
    "x": "x",
    "y": "y",
    "ra": "RA",
    "dec": "Dec",
    "real": "Real?",
    "flag_text": "Flags",
    "flags": "Flag bits",
    "rank": "Rank",
}


@dataclass(frozen=True, eq=False)
class CandidateList:
    """Candidates, the best first.

    Attributes
    ----------
    columns : list of dict
        ``key label unit description kind digits main values`` of each column; kind is 'number', 'text' or 'flag',
        missing values are None.
    xy : float64 array, shape (n, 2)
    flagged : bool array, shape (n,)
    error_scale : float
        The factor on their errors that the width of the score asked for; 1 if unknown.
    """

    columns: list[dict[str, Any]]
    xy: npt.NDArray[np.float64]
    flagged: npt.NDArray[np.bool_]
    error_scale: float = 1.0

    def __len__(self) -> int:
        return len(self.flagged)


def candidate_list(table: Any) -> CandidateList:
    """Turn a table (or None: no candidates) into plain columns, the best first: by rank, else by absolute S/N."""
    error_scale = float((getattr(table, "meta", None) or {}).get("error_scale", 1.0))
    if table is None or len(table) == 0:
        return CandidateList([], np.empty((0, 2)), np.zeros(0, bool), error_scale)
    names = list(table.colnames)
    order = np.arange(len(table))
    if "rank" in names:
        order = np.argsort(filled(table["rank"]), kind="stable")
    elif "snr" in names:
        snr = filled(table["snr"])
        order = np.argsort(np.where(np.isfinite(snr), -np.abs(snr), np.inf), kind="stable")
    first = [name for name in FIRST if name in names]
    names_in_order = [*first, *(name for name in names if name not in first)]
    made = [_column(name, table[name], order) for name in names_in_order]
    columns = [column for column in made if column is not None and _worth(column)]
    if "id" not in names:
        columns.insert(
            0,
            {
                "key": "id",
                "label": "ID",
                "unit": "",
                "description": "Number of the candidate",
                "kind": "number",
                "digits": 0,
                "main": True,
                "values": list(range(1, len(order) + 1)),
            },
        )
    xy = np.column_stack([filled(table[name]) if name in names else np.full(len(order), np.nan) for name in "xy"])
    return CandidateList(columns, xy[order], _flagged(table)[order], error_scale)


def _flagged(table: Any) -> npt.NDArray[np.bool_]:
    if "flags" in table.colnames:
        return np.nan_to_num(filled(table["flags"])) != 0
    if "flag_text" in table.colnames:
        return np.array([bool(str(text).strip()) for text in table["flag_text"]])
    return np.zeros(len(table), bool)


def _worth(column: dict[str, Any]) -> bool:
    """Tell whether a column says anything: positions on the sky are empty when there is no WCS."""
    return column["key"] in ("id", "flag_text") or any(value is not None for value in column["values"])


def filled(column: Any) -> npt.NDArray[np.float64]:
    """Return a numeric column as float64 with NaN where it is masked."""
    values = np.ma.asarray(getattr(column, "value", column))
    return np.ma.filled(values.astype(np.float64), np.nan)


def _column(name: str, column: Any, order: npt.NDArray[np.intp]) -> dict[str, Any] | None:
    """Return one column as plain values, or None when it is not a column of scalars."""
    values = np.ma.asarray(getattr(column, "value", column))
    if values.ndim != 1:
        return None
    kind = {"b": "flag", "i": "number", "u": "number", "f": "number"}.get(values.dtype.kind, "text")
    missing = np.ma.getmaskarray(values)
    plain: list[Any]
    if kind == "number":
        numbers = filled(column)[order]
        whole = values.dtype.kind in "iu"
        plain = [None if not np.isfinite(v) else int(v) if whole else float(f"{v:.9g}") for v in numbers]
        digits = DIGITS.get(name, 0 if whole else _digits(numbers))
    else:
        digits = 0
        convert = bool if kind == "flag" else _word
        plain = [None if missing[i] else convert(values.data[i]) for i in order]
        if name == "flag_text":
            plain = [None if word is None else _flag_words(word) for word in plain]
    return {
        "key": name,
        "label": LABELS.get(name, name.replace("_", " ")),
        "unit": str(getattr(column, "unit", None) or ""),
        "description": str(getattr(column, "description", None) or ""),
        "kind": kind,
        "digits": digits,
        "main": name in FIRST and name not in HIDDEN,
        "values": plain,
    }


def _word(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _flag_words(text: str) -> str:
    """Turn names of flags (``edge bright_residual``) into words to read; leave other texts alone."""
    return (
        text.replace(" ", ", ").replace("_", " ")
        if re.fullmatch(r"[a-z]+(_[a-z]+)*( [a-z]+(_[a-z]+)*)*", text)
        else text
    )


def _digits(numbers: npt.NDArray[np.float64]) -> int:
    """Return the decimals that give the middle value about four significant digits."""
    size = np.abs(numbers[np.isfinite(numbers) & (numbers != 0)])
    return int(np.clip(3 - np.floor(np.log10(np.median(size))), 0, 8)) if size.size else 0
