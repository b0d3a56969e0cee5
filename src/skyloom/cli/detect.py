"""List what changed, from a difference that `skyloom difference` wrote, with another threshold.

Writes NAME.candidates.ecsv, .fits (with cutouts) and .reg (DS9 regions).
"""

from __future__ import annotations

import argparse

HELP = "list what changed in a difference that was written before"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    from skyloom.cli.inputs import add_threshold

    parser.add_argument("difference", metavar="DIFFERENCE", help="NAME.difference.fits of 'skyloom difference'")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder for the results (default: beside the input)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    add_threshold(parser, "significance of the faintest candidate")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from pathlib import Path

    from skyloom.cli import EXIT_OK
    from skyloom.pipeline.find import detect
    from skyloom.pipeline.products import Products, image_stem, write_found
    from skyloom.pipeline.store import read_difference

    source = Path(arguments.difference)
    stem = image_stem(source).removesuffix(".difference")
    folder = source.parent if arguments.output is None else Path(arguments.output)
    products = Products.in_folder(folder, stem, report=False, difference=False)
    products.check(overwrite=arguments.overwrite)
    result = read_difference(source)
    candidates = detect(result, threshold=arguments.threshold)
    write_found(result, candidates, products, overwrite=arguments.overwrite)
    if not arguments.quiet:
        real = int(candidates["real"].sum())
        print(f"{real} candidates (and {len(candidates) - real} flagged as artefacts): {products.table}")
    return EXIT_OK
