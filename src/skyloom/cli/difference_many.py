"""``skyloom difference`` for many science images and one template."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skyloom.pipeline import BatchOptions, DifferenceOptions, Outcome


def run_many(arguments: argparse.Namespace, options: DifferenceOptions, batch: BatchOptions) -> int:
    """Difference all science images of the command line."""
    from dataclasses import asdict

    from skyloom.cli import EXIT_FAILED, EXIT_OK, EXIT_PARTIAL
    from skyloom.cli.messages import logger, progress_bar
    from skyloom.io import check_not_input, check_writable
    from skyloom.io.json import to_json
    from skyloom.pipeline import difference_many, write_outcomes
    from skyloom.pipeline.many import summary_format

    sciences = [*arguments.images, *(_listed(arguments.list) if arguments.list else ())]
    replace = arguments.overwrite or arguments.resume
    if arguments.summary is not None:
        summary_format(arguments.summary)
        check_not_input([arguments.summary], [*sciences, *arguments.template, arguments.list])
        check_writable(arguments.summary, overwrite=replace)
    known: list[Outcome] = []

    def tell(one: Outcome) -> None:
        known.append(one)
        for text in filter(None, one.warnings.split("\n")):
            logger.warning("%s: warning: %s", one.science, text)
        if one.status == "failed":
            logger.error("%s: failed: %s: %s", one.science, one.error, one.message)
        elif not (arguments.quiet or arguments.json):
            print(f"{one.science}: {_line(one)}", flush=True)

    try:
        with progress_bar(arguments.quiet) as progress:
            difference_many(
                sciences, arguments.template, arguments.output, options, batch, on_frame=tell, progress=progress
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what is written is complete, and --resume goes on from there") from None
    if arguments.summary is not None:
        write_outcomes(known, arguments.summary, overwrite=replace)
    if arguments.json:
        print(to_json([asdict(one) for one in known]))
    counts = {status: sum(one.status == status for one in known) for status in ("done", "kept", "failed")}
    if not (arguments.quiet or arguments.json):
        where = arguments.output if arguments.summary is None else arguments.summary
        print(", ".join(f"{n} {status}" for status, n in counts.items()) + f": {where}")
    if counts["failed"] == len(known):
        return EXIT_FAILED
    partial = counts["failed"] or any(one.n_templates not in (None, len(arguments.template)) for one in known)
    return EXIT_PARTIAL if partial else EXIT_OK


def _line(one: Outcome) -> str:
    """Return in a few words what became of an image."""
    took = "kept" if one.seconds is None else f"{one.seconds:.1f} s"
    noise = " ".join(f"{value:.3f}" for value in (one.noise_std, one.score_std) if value is not None)
    found = f"{one.n_candidates} candidates (and {one.n_artefacts} flagged as artefacts)"
    return f"{found}, {one.method}, noise and score std {noise}, {took}"


def _listed(path: str) -> list[str]:
    """Return the lines of a file, or of standard input."""
    from skyloom.errors import ReadError

    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReadError(f"The list {path} cannot be read: {reason}.", path=path) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
