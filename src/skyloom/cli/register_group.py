"""``skyloom register`` for many images: all to one frame, or all fitted together."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from skyloom.cli.messages import Progress
    from skyloom.registration import Group


def run_group(arguments: argparse.Namespace) -> int:
    """Register all images of the command line."""
    from skyloom.cli import EXIT_OK, EXIT_PARTIAL
    from skyloom.cli.inputs import reading_options
    from skyloom.cli.messages import progress_bar
    from skyloom.cli.summary import registration_row
    from skyloom.io import read
    from skyloom.io.atomic import no_empty_folder
    from skyloom.io.json import to_json
    from skyloom.pipeline.align import wcs_to_write
    from skyloom.registration import RegistrationOptions, register_group

    paths = [path for path in (arguments.source, arguments.template, *arguments.more) if path is not None]
    reference = arguments.reference
    if reference is not None and arguments.output is not None and not arguments.resample:
        wcs_to_write(read(reference, **reading_options(arguments, "template")))  # so that it fails before the work
    outputs = _outputs(arguments, paths)
    reading = reading_options(arguments, "source")
    if reference is not None:
        known = [os.path.realpath(path) for path in paths]
        place = os.path.realpath(reference)
        reference = (
            known.index(place) if place in known else partial(read, reference, **reading_options(arguments, "template"))
        )
    with progress_bar(arguments.quiet) as progress:
        group = register_group(
            [partial(read, path, **reading) for path in paths],
            RegistrationOptions(threshold=arguments.threshold, positions=arguments.positions),
            reference=reference,
            joint=arguments.joint,
            progress=progress,
        )
        if outputs is not None:
            with no_empty_folder(outputs[-1].parent):
                _write(arguments, group, paths, outputs, progress)
    if arguments.json:
        files = [None] * len(paths) if outputs is None else outputs[:-1]
        frame = arguments.reference if group.reference is None else paths[group.reference]
        rows = zip(paths, group, range(len(paths)), files, strict=True)
        print(
            to_json(
                [registration_row(path, frame, one, group.errors.get(index), file) for path, one, index, file in rows]
            )
        )
    elif not arguments.quiet:
        _print(group, paths)
    return EXIT_PARTIAL if group.errors else EXIT_OK


def _outputs(arguments: argparse.Namespace, paths: list[str]) -> list[Path] | None:
    """Return the file for each image, and the one for the stars, all of which can be written; None without --output."""
    from skyloom.errors import InputError
    from skyloom.io import check_not_input, check_writable
    from skyloom.pipeline.products import different_stems, exists_or_can_be_made

    if arguments.catalogue is not None or arguments.plot is not None:
        raise InputError("--catalogue and --plot are for a single image; register the images one by one.")
    if arguments.output is None:
        return None
    folder = Path(arguments.output)
    files = [folder / f"{stem}.registered.fits" for stem in different_stems(paths)] + [folder / "stars.ecsv"]
    check_not_input(files, [*paths, arguments.reference])
    if exists_or_can_be_made(folder):
        for file in files if arguments.joint else files[:-1]:
            check_writable(file, overwrite=arguments.overwrite)
    return files


def _print(group: Group, paths: list[str]) -> None:
    for index, (path, one) in enumerate(zip(paths, group, strict=True)):
        print(f"{path}: {'the reference' if index == group.reference else one or group.errors[index]}")
    print(group)


def _write(
    arguments: argparse.Namespace, group: Group, paths: list[str], outputs: list[Path], progress: Progress
) -> None:
    """Write each image that was registered, and the reference; the images are read again, one at a time."""
    from skyloom.cli.inputs import reading_options
    from skyloom.io import Provenance, atomic_write, read, write_exposure
    from skyloom.pipeline.align import write_registered

    reading = reading_options(arguments, "source")
    outputs[-1].parent.mkdir(parents=True, exist_ok=True)
    if group.reference is None:
        frame, template = arguments.reference, read(arguments.reference, **reading_options(arguments, "template"))
    else:
        frame = paths[group.reference]
        template = read(frame, **reading)
    for index, (path, one) in enumerate(zip(paths, group, strict=True)):
        progress("writing", index, len(paths))
        if index == group.reference:  # as it is, so that the folder holds all that is on one grid
            provenance = Provenance("register", {"reference": True}, [path])
            write_exposure(template, outputs[index], overwrite=arguments.overwrite, provenance=provenance)
        if one is None or index == group.reference:
            continue
        write_registered(
            read(path, **reading),
            template,
            one,
            outputs[index],
            resampled=arguments.interpolation if arguments.resample else None,
            convention=arguments.distortion.upper(),
            inputs=[path, frame],
            overwrite=arguments.overwrite,
        )
    if group.stars is not None:
        with atomic_write(outputs[-1], overwrite=arguments.overwrite) as temporary:
            group.stars.write(temporary, format="ascii.ecsv", overwrite=True)
