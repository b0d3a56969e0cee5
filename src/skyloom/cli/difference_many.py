"""``skyloom difference`` for many science images and one template."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skyloom.pipeline import BatchOptions, DifferenceOptions, Outcome


def run_many(arguments: argparse.Namespace, options: DifferenceOptions, batch: BatchOptions) -> int:
    """Difference all science images of the command line."""
    from skyloom.cli import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL
    from skyloom.cli.messages import progress_bar
    from skyloom.errors import InputError
    from skyloom.pipeline import Interrupted, difference_many

    sciences = [*arguments.images, *(_listed(arguments.list) if arguments.list else ())]
    if not sciences:
        raise InputError("No science image is given: name some before --template, or in a --list.")
    _check_summary(arguments, sciences)
    printed = not (arguments.quiet or arguments.json)
    number = 0

    def tell(one: Outcome) -> None:
        nonlocal number
        number += 1
        _tell(one, f"[{number}/{len(sciences)}] {one.science}", printed=printed)

    try:
        with progress_bar(arguments.quiet, lines=False) as progress:
            found = difference_many(
                sciences, arguments.template, arguments.output, options, batch, on_frame=tell, progress=progress
            )
    except Interrupted as end:
        if not end.outcomes:
            told = "" if arguments.summary is None else ", and no summary was written"
            raise KeyboardInterrupt(f"none of the {len(sciences)} images was finished{told}") from None
        _write(arguments, end.outcomes)
        told = "" if arguments.summary is None else f" (see {arguments.summary})"
        raise KeyboardInterrupt(
            f"{len(end.outcomes)} of {len(sciences)} images are finished{told}; what is written is complete, and "
            "--resume goes on from there"
        ) from None
    _write(arguments, found)
    if printed:
        print(_closing(arguments, found))
    failed = sum(one.status == "failed" for one in found)
    if failed == len(found):
        return EXIT_FAILED
    partial = failed or any(one.n_templates not in (None, len(arguments.template)) for one in found)
    return EXIT_PARTIAL if partial else EXIT_OK


def _check_summary(arguments: argparse.Namespace, sciences: Sequence[str]) -> None:
    """Raise before any work if the summary cannot be written, or would replace what is no summary."""
    from skyloom.io import check_not_input, check_writable
    from skyloom.pipeline.outcome import check_is_summary, summary_format

    if arguments.summary is None:
        return
    summary_format(arguments.summary)
    check_not_input([arguments.summary], [*sciences, *arguments.template, arguments.list])
    folder = Path(arguments.summary).expanduser().parent
    if folder.exists() or folder.absolute() != Path(arguments.output).absolute():  # which is made when it is needed
        check_writable(arguments.summary, overwrite=arguments.overwrite or arguments.resume)
    if not arguments.overwrite:
        check_is_summary(arguments.summary)


def _write(arguments: argparse.Namespace, outcomes: Sequence[Outcome]) -> None:
    """Write the summary, if it is asked for, and print the outcomes for programs, if that is."""
    from skyloom.io.atomic import no_empty_folder
    from skyloom.io.json import to_json
    from skyloom.pipeline import write_outcomes

    if arguments.summary is not None:
        folder = Path(arguments.summary).expanduser().parent
        with no_empty_folder(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_outcomes(outcomes, arguments.summary, overwrite=arguments.overwrite or arguments.resume)
    if arguments.json:
        print(to_json([one.to_dict() for one in outcomes]))


def _tell(one: Outcome, name: str, *, printed: bool) -> None:
    """Tell what became of an image."""
    from skyloom.cli.messages import logger
    from skyloom.cli.summary import depth_text
    from skyloom.detection.flags import found

    for text in filter(None, one.warnings.split("\n")):
        logger.warning("%s: warning: %s", name, text)
    if one.status == "failed":
        logger.error("%s: failed: %s: %s", name, one.error, one.message)
        return
    if not printed:
        return
    took = "kept" if one.seconds is None else f"{one.seconds:.1f} s"
    parts = [found(one.n_candidates or 0, one.n_artefacts or 0), *depth_text(vars(one))]
    if one.score_std is not None:
        wider = f" (errors of candidates x {one.error_scale:.3g})" if one.error_scale else ""
        parts.append(f"score std {one.score_std:.3f}{wider}")
    parts += [one.method, took]
    if one.remade:
        parts.append(f"made anew: {one.remade}")
    print(f"{name}: {', '.join(parts)}", flush=True)


def _closing(arguments: argparse.Namespace, outcomes: Sequence[Outcome]) -> str:
    """Return the last line: how many of each kind, and where the results are."""
    counts = Counter(one.status for one in outcomes)
    text = ", ".join(f"{counts[status]} {status}" for status in ("done", "kept", "failed"))
    poor = sum(one.depth == "poor" for one in outcomes)
    if poor:
        text += f", {poor} of poor depth (see the warnings)"
    return f"{text}: {arguments.output if arguments.summary is None else arguments.summary}"


def _listed(path: str) -> list[str]:
    """Return the names in a file, or in standard input.

    One stands in a line; what follows a # (at the beginning, or behind a space) is a comment. Names are relative to the
    current folder or, where there is no such file, to that of the list.
    """
    from skyloom.errors import ReadError

    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).expanduser().read_bytes()
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReadError(f"The list {path} cannot be read: {reason}.", path=path) from error
    beside = Path() if path == "-" else Path(path).expanduser().parent
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.split("\n"))
    names = [os.path.expanduser(line) for line in lines if line]  # noqa: PTH111  # names stay as they are
    return [str(beside / name) if not Path(name).exists() and (beside / name).exists() else name for name in names]
