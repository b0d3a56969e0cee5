"""Find the transform between two images from their stars, and write it as a WCS.

The output holds the original pixels of SOURCE with a WCS: that of TEMPLATE composed with the transform. With
--resample the pixels are brought onto the grid of TEMPLATE instead; then TEMPLATE needs no WCS. With --catalogue the
stars of a catalogue (FITS, ECSV or VOTable with ra, dec and, where known, proper motions) take the place of TEMPLATE.

Many images are registered to one frame: that of --reference, or of the image with the most stars. With --joint the
positions of all stars and all transforms are fitted together. The output is then a folder, with NAME.registered.fits
for each image (the reference as it is) and, with --joint, stars.ecsv. If the reference has no WCS, --resample is
needed.
Images that cannot be registered are named, and the exit status is 2.
"""

from __future__ import annotations

import argparse

HELP = "register an image to another by their stars"
USAGE = """skyloom register SOURCE TEMPLATE [-o FILE] [options]
       skyloom register SOURCE --catalogue FILE [-o FILE] [options]
       skyloom register IMAGE IMAGE [IMAGE ...] [--reference FILE] [--joint] [-o FOLDER] [options]"""


def add_more(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Take images that stand after options."""
    if arguments.template is None:
        arguments.template, *rest = rest
    arguments.more = [*arguments.more, *rest]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    from skyloom.cli.inputs import add_json, add_positions, add_reading_options, add_threshold

    parser.add_argument("source", metavar="SOURCE", help="FITS image to register")
    parser.add_argument("template", metavar="TEMPLATE", nargs="?", help="FITS image to register it to")
    parser.add_argument("more", metavar="IMAGE", nargs="*", help="more images: all are registered to one frame")
    parser.add_argument("--reference", metavar="FILE", help="register all images to this one")
    parser.add_argument("--joint", action="store_true", help="fit all transforms and star positions together")
    parser.add_argument("--catalogue", metavar="FILE", help="register to the sky by this catalogue of stars instead")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="FITS file, or folder for many images (default: only print)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--resample", action="store_true", help="write SOURCE resampled onto the grid of TEMPLATE")
    parser.add_argument(
        "--interpolation",
        default="auto",
        choices=("auto", "lanczos3", "lanczos4", "lanczos5", "spline3", "spline5", "cubic", "bilinear", "area"),
        help="kernel of --resample (default: lanczos3, or area overlap onto larger pixels)",
    )
    parser.add_argument(
        "--distortion", choices=("sip", "tpv"), default="sip", help="how the WCS writes distortions (default: sip)"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw the residuals to this PNG, PDF or SVG file")
    add_json(parser)
    add_threshold(parser, "detection threshold of the stars")
    add_positions(parser)
    add_reading_options(parser, ("source", "template"))


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from skyloom.cli import EXIT_OK
    from skyloom.cli.inputs import reading_options
    from skyloom.cli.summary import registration_row
    from skyloom.errors import InputError
    from skyloom.io import check_not_input, check_writable, read
    from skyloom.io.json import to_json
    from skyloom.pipeline.align import wcs_to_write, write_registered
    from skyloom.registration import RegistrationOptions, register, register_to_catalogue

    if arguments.interpolation != "auto" and not arguments.resample:
        raise InputError("--interpolation is for --resample; without it, the pixels stay as they are.")
    if arguments.resample and arguments.output is None:
        raise InputError("--resample needs --output, where the pixels are written.")
    if arguments.more or arguments.joint or arguments.reference is not None:
        from skyloom.cli.register_group import run_group

        return run_group(arguments)
    if (arguments.template is None) == (arguments.catalogue is None):
        raise InputError("Give either a TEMPLATE or --catalogue.")
    if arguments.resample and arguments.template is None:
        raise InputError("--resample needs a TEMPLATE, whose grid the pixels are brought onto.")
    inputs = [arguments.source, arguments.template or arguments.catalogue]
    for path in (arguments.output, arguments.plot):
        if path is not None:
            check_writable(path, overwrite=arguments.overwrite)
    check_not_input((arguments.output, arguments.plot), inputs)
    source = read(arguments.source, **reading_options(arguments, "source"))
    options = RegistrationOptions(threshold=arguments.threshold, positions=arguments.positions)
    template = None
    if arguments.catalogue is not None:
        registration = register_to_catalogue(source, arguments.catalogue, options)
    else:
        template = read(arguments.template, **reading_options(arguments, "template"))
        if arguments.output is not None and not arguments.resample:
            wcs_to_write(template)  # so that it fails before the work
        registration = register(source, template, options)
    if arguments.output is not None:
        write_registered(
            source,
            template,
            registration,
            arguments.output,
            resampled=arguments.interpolation if arguments.resample else None,
            convention=arguments.distortion.upper(),
            inputs=inputs,
            overwrite=arguments.overwrite,
        )
    if arguments.plot is not None:
        _save_plot(registration, arguments.plot, arguments.overwrite)
    if arguments.json:
        print(to_json(registration_row(inputs[0], inputs[1], registration, output=arguments.output)))
    elif not arguments.quiet:
        print(registration)
    return EXIT_OK


def _save_plot(registration: object, path: str, overwrite: bool) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from skyloom.errors import InputError
    from skyloom.io import atomic_write

    figure = registration.plot().figure  # type: ignore[attr-defined]
    with atomic_write(path, overwrite=overwrite) as temporary:
        kind = path.rsplit(".", 1)[-1].lower()
        if kind not in ("png", "pdf", "svg"):
            raise InputError(f"The plot file {path} ends with .{kind}; it must end with .png, .pdf or .svg.")
        figure.savefig(temporary, format=kind)
