"""Subtract a template from one or many science images and list what changed.

The images need not be aligned and need no WCS: their stars are matched. Several templates are each registered and
co-added on the science grid; one that does not match is left out, and the exit status is 2. Written to the output
folder:

  NAME.difference.fits   difference (SCI), error (ERR), mask (DQ), score, matched template, kernel, PSF
  NAME.candidates.ecsv   what changed, as a text table; also .fits (with cutouts) and .reg (DS9 regions)
  NAME.report.html       a page to look at, which opens from disk

With --template all images are science images, each with its own products; --jobs works on several at a time. One that
fails does not stop the others: the exit status is 2 if some have failed, and 1 if all have. With --resume a run goes on
where it was interrupted. --summary writes one row for each image: depth, limits, flux scale, seeing, noise, candidates.
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from skyloom.pipeline.many import Recipe

HELP = "subtract a template from science images and list what changed"
USAGE = """skyloom difference SCIENCE TEMPLATE [TEMPLATE ...] [options]
       skyloom difference SCIENCE [SCIENCE ...] --template TEMPLATE [--template TEMPLATE ...] [options]"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`."""
    from skyloom.cli.inputs import add_json, add_reading_options, add_threshold

    parser.add_argument(
        "images",
        metavar="IMAGE",
        nargs="*",
        help="FITS image in which to look for changes, then those to subtract; with --template: all to look in",
    )
    add_threshold(parser, "significance of the faintest candidate")
    output = parser.add_argument_group("output")
    output.add_argument("-o", "--output", metavar="FOLDER", default=".", help="folder for the results (default: here)")
    output.add_argument("--overwrite", action="store_true", help="replace results that exist")
    output.add_argument("--no-report", action="store_true", help="do not write the HTML page")
    add_json(output)
    many = parser.add_argument_group("many images", "The last four need --template.")
    many.add_argument(
        "--template", metavar="FILE", nargs="+", action="append", default=[], help="FITS image to subtract"
    )
    many.add_argument(
        "--list",
        metavar="FILE",
        help="more science images, one name in a line (-: standard input); # begins a comment, ~ is the home folder, "
        "and other names are relative to the current folder",
    )
    many.add_argument("-j", "--jobs", metavar="N", type=int, default=1, help="images at a time (default: %(default)s)")
    many.add_argument(
        "--resume",
        action="store_true",
        help="keep results that are complete and were made from the same files with the same options; make the others",
    )
    many.add_argument("--summary", metavar="FILE", help="write a table, one row for each image: .json, .csv or .ecsv")
    _add_method(parser.add_argument_group("method"))
    add_reading_options(parser, ("science", "template"))


def _add_method(method: argparse._ArgumentGroup) -> None:
    from skyloom.cli.inputs import above_zero

    method.add_argument(
        "--method",
        choices=("auto", "alard-lupton", "zogy", "sfft"),
        default="auto",
        help="match the template with a kernel of Gaussians (alard-lupton) or of free pixels (sfft), or filter each "
        "image with the PSF of the other (zogy; default: auto, what the images ask for)",
    )
    method.add_argument(
        "--align",
        choices=("stars", "wcs", "none"),
        default="stars",
        help="bring the template onto the science image by a match of the stars, by the WCS of both, "
        "or not at all (default: %(default)s)",
    )
    method.add_argument(
        "--star-threshold",
        type=above_zero,
        metavar="SIGMA",
        help="detection threshold of the stars for --align stars (default: 5.0)",
    )
    method.add_argument(
        "--convolve",
        choices=("auto", "template", "science"),
        default="auto",
        help="which image is convolved (default: auto, the sharper one); not with zogy",
    )
    method.add_argument(
        "--spatial-order",
        metavar="N",
        default="auto",
        help="order of the kernel's variation over the field, 0-4 (default: auto)",
    )
    method.add_argument(
        "--background-order",
        metavar="N",
        default="auto",
        help="order of the differential background, 0-4 (default: auto)",
    )


def add_more(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Take images that stand after options."""
    arguments.images = [*arguments.images, *rest]


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from skyloom.cli.inputs import reading_options
    from skyloom.errors import InputError
    from skyloom.pipeline import BatchOptions, DifferenceOptions
    from skyloom.pipeline.many import Recipe
    from skyloom.registration import RegistrationOptions

    if arguments.star_threshold is not None and arguments.align != "stars":
        raise InputError(f"--star-threshold is for --align stars, not for {arguments.align}.")
    arguments.images, arguments.template = _images_and_templates(arguments)
    many = bool(arguments.template)
    if not many and (arguments.list or arguments.resume or arguments.summary or arguments.jobs != 1):
        raise InputError("--list, --jobs, --resume and --summary are for many science images: give --template, too.")
    stars = None if arguments.star_threshold is None else RegistrationOptions(threshold=arguments.star_threshold)
    options = DifferenceOptions(
        method=arguments.method, align=arguments.align, registration=stars, subtraction=_matching(arguments)
    )
    batch = BatchOptions(
        threshold=arguments.threshold,
        report=not arguments.no_report,
        jobs=arguments.jobs,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        reading=reading_options(arguments, "science"),
        template_reading=reading_options(arguments, "template"),
    )
    if many:
        from skyloom.cli.difference_many import run_many

        return run_many(arguments, options, batch)
    if len(arguments.images) < 2:
        raise InputError("Give a SCIENCE image and a TEMPLATE, or SCIENCE images and --template.")
    return _run_one(arguments, arguments.images[0], Recipe(tuple(arguments.images[1:]), options, batch))


def _images_and_templates(arguments: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Return the images and the templates; more than one name behind --template may be either."""
    from skyloom.errors import InputError

    images, groups = arguments.images, arguments.template
    longer = [group for group in groups if len(group) > 1]
    if not longer:
        return images, [name for (name,) in groups]
    (first, second, *_) = longer[0]
    if images or arguments.list or longer[0] is not groups[-1]:
        raise InputError(
            f"{second} stands behind --template {first}: is it a template or a science image? Give each template "
            "its own --template, and name the science images before it."
        )
    return longer[0][1:], [group[0] for group in groups]


def _run_one(arguments: argparse.Namespace, science: str, recipe: Recipe) -> int:
    from dataclasses import replace

    from skyloom.cli import EXIT_OK, EXIT_PARTIAL
    from skyloom.cli.messages import progress_bar, warnings_shown
    from skyloom.cli.summary import print_summary
    from skyloom.io import check_not_input
    from skyloom.io.atomic import no_empty_folder
    from skyloom.io.json import to_json
    from skyloom.pipeline.products import Products, image_stem, remove_stale
    from skyloom.stacking.light import frame_rows

    recipe.check_not_same(science)
    products = Products.in_folder(arguments.output, image_stem(science), report=recipe.batch.report)
    products.check(overwrite=arguments.overwrite)
    check_not_input([path for _, path in products.written()], [*recipe.science_files(science), *recipe.template_files])
    remove_stale(products.table.parent)
    times = [time.perf_counter()]
    with progress_bar(arguments.quiet) as progress, no_empty_folder(products.table.parent):
        prepared = recipe.prepared()
        times.append(time.perf_counter())
        cpu, of_template = time.process_time(), warnings_shown()
        result, candidates, outcome = recipe.make(science, prepared, products, progress=progress)
    times.append(time.perf_counter())
    before, seconds = (later - earlier for earlier, later in itertools.pairwise(times))
    if arguments.json:
        outcome = replace(
            outcome,
            seconds=round(seconds, 3),
            cpu_seconds=round(time.process_time() - cpu, 3),
            warnings="\n".join(warnings_shown()[len(of_template) :]),
            template_warnings="\n".join(of_template),
        )
        frames = {
            name: frame_rows(getattr(result, name), result.science.unit)
            for name in ("template_frames", "science_frames")
        }
        print(to_json(outcome.to_dict() | frames))
    elif not arguments.quiet:
        print_summary(result, candidates, products, f"{seconds:.1f} s, after {before:.1f} s for the template")
    return EXIT_OK if len(result.alignments) == len(recipe.templates) else EXIT_PARTIAL


def _matching(arguments: argparse.Namespace) -> Any:
    """Return the options of the matching; None if there are none, so that 'auto' is free to choose."""
    from skyloom.errors import InputError
    from skyloom.subtraction import AlardLuptonOptions, SfftOptions

    orders: dict[str, Any] = {
        "spatial_order": _order(arguments.spatial_order, "--spatial-order"),
        "background_order": _order(arguments.background_order, "--background-order"),
    }
    given = {name: order for name, order in (orders | {"convolve": arguments.convolve}).items() if order != "auto"}
    if not given:
        return None
    if arguments.method == "zogy":
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"{options} cannot be given with --method zogy, which has no kernel. Leave it out.")
    return (SfftOptions if arguments.method == "sfft" else AlardLuptonOptions)(**given)


def _order(text: str, option: str) -> Literal["auto"] | int:
    """Return the order that the user asked for: a number or 'auto'."""
    from skyloom.errors import InputError

    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise InputError(f"{option} is {text!r}; it must be 'auto' or a whole number.")
    return int(text)
