"""List what changed, from a difference that `skyloom difference` wrote, with another threshold.

Writes NAME.candidates.ecsv, .fits (with cutouts), .reg (DS9 regions) and NAME.report.html, the page that shows these
candidates.
"""

from __future__ import annotations

import argparse

HELP = "list what changed in a difference that was written before"
USAGE = "skyloom detect DIFFERENCE [-o FOLDER] [--threshold SIGMA] [--overwrite]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    from skyloom.cli.inputs import add_threshold

    parser.add_argument("difference", metavar="DIFFERENCE", help="NAME.difference.fits of 'skyloom difference'")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="folder for the results (default: beside the input)")
    parser.add_argument("--overwrite", action="store_true", help="replace results that exist")
    parser.add_argument("--no-report", action="store_true", help="make no HTML page, unless one would show others")
    add_threshold(parser, "significance of the faintest candidate")


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from dataclasses import replace
    from pathlib import Path

    from skyloom.cli import EXIT_OK
    from skyloom.detection.flags import found
    from skyloom.errors import WriteError
    from skyloom.io.atomic import no_empty_folder
    from skyloom.pipeline.find import detect
    from skyloom.pipeline.products import Products, image_stem, write_found
    from skyloom.pipeline.store import read_difference

    source = Path(arguments.difference)
    stem = image_stem(source).removesuffix(".difference")
    folder = source.parent if arguments.output is None else Path(arguments.output)
    page = Products.in_folder(folder, stem, difference=False)
    stale = page.report is not None and page.report.exists()  # a page of other candidates must not stay
    products = replace(page, report=None) if arguments.no_report and not stale else page
    taken = [path for _, path in products.written() if path.exists()]
    if taken and not arguments.overwrite:
        raise WriteError(f"{taken[0]} exists already; choose another folder (-o FOLDER), or --overwrite to replace it.")
    products.check(overwrite=arguments.overwrite)
    result = read_difference(source)
    candidates = detect(result, threshold=arguments.threshold)
    with no_empty_folder(folder):
        write_found(result, candidates, products, overwrite=arguments.overwrite)
    if not arguments.quiet:
        real = int(candidates["real"].sum())
        print(f"{found(real, len(candidates) - real)}: {products.table}")
        if products.report is not None:
            print(f"The page that shows them: {products.report}")
    return EXIT_OK
