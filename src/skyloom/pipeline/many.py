"""Many science images against one template: each makes its own products, or its own error."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skyloom._threads import serial_blas
from skyloom._workers import WorkerError, work_through
from skyloom.errors import InputError, NoUsableDataError, SkyloomWarning, WriteError
from skyloom.pipeline.conditions import compare, observed
from skyloom.pipeline.difference import Difference, DifferenceOptions, difference, flat_parameters
from skyloom.pipeline.outcome import Outcome, outcome_of
from skyloom.pipeline.products import Products, different_stems, remove_stale, write_products
from skyloom.pipeline.store import read_diagnostics
from skyloom.pipeline.template import Template, prepare_template, without_science

if TYPE_CHECKING:
    from astropy.table import Table

    from skyloom.io.provenance import Input

logger = logging.getLogger("skyloom.pipeline")

PathLike = str | Path


@dataclass(frozen=True)
class BatchOptions:
    """How many differences are made.

    Parameters
    ----------
    threshold : float
        Significance of the faintest candidate, in standard deviations.
    report : bool
        Write an HTML page for each.
    jobs : int
        Processes; the processors are shared out to them as threads. The results are the same for any number.
    resume : bool
        Keep the products that are complete and were made by this version from the same files with the same options;
        make all others, in the place of what is there.
    overwrite : bool
        Replace products that exist.
    reading, template_reading : mapping
        Arguments of `skyloom.read` for the science images, and for the frames of the template.
    """

    threshold: float = 5.0
    report: bool = True
    jobs: int = 1
    resume: bool = False
    overwrite: bool = False
    reading: Mapping[str, Any] = field(default_factory=dict)
    template_reading: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.jobs, int) or self.jobs < 1:
            raise InputError(f"jobs is {self.jobs!r}; it must be a whole number of at least 1.")
        if not 0 < self.threshold < float("inf"):
            raise InputError(f"threshold is {self.threshold!r}; it must be a finite number above 0.")


class Prepared(NamedTuple):
    """The template of many images, and the files that it was made of, as they were then."""

    template: Template
    inputs: tuple[Input, ...]


@dataclass(frozen=True)
class Recipe:
    """How one difference after the other is made from files: what is the same for all of them."""

    templates: tuple[PathLike, ...]
    options: DifferenceOptions = field(default_factory=DifferenceOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)

    def prepared(self) -> Prepared:
        """Read and prepare the template."""
        from skyloom.io import read
        from skyloom.io.provenance import read_unchanged

        read_one = partial(read, **self.batch.template_reading)
        with serial_blas():  # whose sums depend on the number of its threads
            known, template = read_unchanged(
                self.template_files, lambda: prepare_template(list(self.templates), self.options, read_one)
            )
        return Prepared(template, tuple(known))

    @property
    def template_files(self) -> list[PathLike]:
        """Files that go into the template."""
        return [*self.templates, *_mask_file(self.batch.template_reading)]

    def science_files(self, science: PathLike) -> list[PathLike]:
        """Return the other files that go into a difference."""
        return [science, *_mask_file(self.batch.reading)]

    def check_not_same(self, science: PathLike) -> None:
        """Raise if the only template is the file of the science image."""
        from skyloom.io.fits_file import path_and_extension

        def place(name: PathLike) -> tuple[Path, str | None]:
            path, extension = path_and_extension(name)
            return path.resolve(), extension

        if all(place(one) == place(science) for one in self.templates):
            raise NoUsableDataError(
                f"The science image and the template are the same image, {science}: their difference would be 0. Give "
                "another template.",
                name=str(science),
            )

    def parameters(self) -> dict[str, Any]:
        """Return all that was asked for."""
        readings = {"science": self.batch.reading, "template": self.batch.template_reading}
        given = {
            f"{role}.{name}": _digest(value) if name == "mask" else value
            for role, reading in readings.items()
            for name, value in reading.items()
            if value is not None and name != "verify" and not (name == "mask" and _mask_file(reading))  # an input
        }
        return flat_parameters(self.options) | {"threshold": self.batch.threshold} | given

    def differs(
        self, science: PathLike, of_template: Sequence[Input], products: Products, header: Mapping[str, Any]
    ) -> str:
        """Return why the products are not those of this image and template, as the header of the difference tells."""
        from skyloom.io import Provenance

        inputs = [*self.science_files(science), *of_template]
        return Provenance("difference", self.parameters(), inputs, outputs=products.beside()).differs(header)

    def make(
        self, science: PathLike, prepared: Prepared, products: Products, *, progress: Any = None
    ) -> tuple[Difference, Table, Outcome]:
        """Make the difference of one image; write its products, and return it, its candidates and the outcome.

        The image itself, given as a template, is a mistake here; `difference` takes it for a test.
        """
        from skyloom.io import read
        from skyloom.io.provenance import read_unchanged

        known, image = read_unchanged(self.science_files(science), lambda: read(science, **self.batch.reading))
        inputs = [*known, *prepared.inputs]
        overwrite = self.batch.overwrite or self.batch.resume
        with serial_blas():
            template = without_science(prepared.template, image)
            result = difference(image, template, options=self.options, progress=progress)
            result = replace(result, parameters=self.parameters())
            found = write_products(result, products, inputs, threshold=self.batch.threshold, overwrite=overwrite)
        numbers = {**result.diagnostics, **observed(image.header), "exptime": image.exptime}
        return result, found, outcome_of(science, products, numbers, found)


def _mask_file(reading: Mapping[str, Any]) -> list[Any]:
    mask = reading.get("mask")
    return [mask] if isinstance(mask, str | os.PathLike) else []


def _digest(mask: Any) -> Any:
    """Return what tells a mask from others: False, or type, shape and SHA-256 of an array."""
    import numpy as np

    if mask is False:
        return mask
    array = np.ascontiguousarray(mask)
    return f"{array.dtype.str} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def difference_many(
    sciences: Sequence[PathLike],
    template: PathLike | Sequence[PathLike],
    folder: PathLike,
    options: DifferenceOptions | None = None,
    batch: BatchOptions | None = None,
    *,
    on_frame: Callable[[Outcome], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Outcome]:
    """Subtract one template from many science images, and write the products of each to a folder.

    The products are those of ``skyloom difference``, named after the files. An image that fails does not stop the
    others.

    Parameters
    ----------
    sciences : sequence of path-like
        The images in which to look for changes.
    template : path-like, or a sequence of such
        The image to subtract, or its frames; see `difference`. They are read, and their noise and sources measured,
        once in each process.
    folder : path-like
        For the products; made if it does not exist.
    options : DifferenceOptions, optional
        How to difference.
    batch : BatchOptions, optional
        How many at a time, what to do with products that exist, and how to read the files.
    on_frame : callable, optional
        Called with each outcome, in the order of the images.
    progress : callable, optional
        Called as ``progress(what, done, total)``.

    Returns
    -------
    list of Outcome
        One for each image, in their order; see `write_outcomes`.

    Raises
    ------
    InputError, ReadError, NoUsableDataError
        Two images have the same name, an option makes no sense, or no frame of the template can be used.
    WriteError
        The folder cannot be made, or holds products that may not be replaced.
    Interrupted
        A KeyboardInterrupt that has the `outcomes` of the images that were finished.
    """
    from skyloom.io.atomic import no_empty_folder

    frames = [template] if isinstance(template, str | Path) else list(template)
    recipe = Recipe(tuple(frames), options or DifferenceOptions(), batch or BatchOptions())
    if not frames or not sciences:
        raise InputError(f"There are {len(sciences)} science images and {len(frames)} templates; both are needed.")
    products = [Products.in_folder(folder, stem, report=recipe.batch.report) for stem in different_stems(sciences)]
    _check_products(recipe, sciences, products)
    remove_stale(Path(folder))
    outcomes: dict[int, Outcome] = {}
    told = 0
    warned: set[str] = set()
    report = progress or (lambda *_: None)
    report("preparing the template", 0, len(products))
    tasks = list(zip(sciences, products, strict=True))
    try:
        with no_empty_folder(products[0].table.parent), closing(_outcomes(recipe, tasks)) as results:
            for done, (index, result) in enumerate(results, 1):
                outcomes[index] = _failed(sciences[index], result) if isinstance(result, WorkerError) else result
                report("differences", done, len(products))
                while (known := outcomes.get(told)) is not None:
                    told += 1
                    logger.debug("%s", known)
                    _warn({*filter(None, known.template_warnings.split("\n"))} - warned)
                    warned.update(known.template_warnings.split("\n"))
                    if on_frame is not None:
                        on_frame(known)
    except KeyboardInterrupt:
        raise Interrupted(_compared(outcomes)) from None
    return _compared(outcomes)


class Interrupted(KeyboardInterrupt):
    """A run was interrupted; `outcomes` are those of the images that were finished, in their order."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__(f"{len(outcomes)} images were finished")
        self.outcomes = outcomes


def _compared(outcomes: Mapping[int, Outcome]) -> list[Outcome]:
    """Return the outcomes in the order of the images, and warn of those that show much less than the others."""
    found = [outcomes[index] for index in sorted(outcomes)]
    judged = compare(found)
    _warn(
        f"{after.science}: {after.warnings.removeprefix(before.warnings).strip()}"
        for before, after in zip(found, judged, strict=True)
        if after is not before
    )
    return judged


def _warn(texts: Iterable[str]) -> None:
    for text in texts:
        warnings.warn(text, SkyloomWarning, stacklevel=4)


def _check_products(recipe: Recipe, sciences: Sequence[PathLike], products: Sequence[Products]) -> None:
    """Raise if products exist that may not be replaced, or that are inputs; the folder is looked at once."""
    from skyloom.io import check_not_input

    products[0].check(overwrite=True)
    folder = products[0].table.parent
    present = set(folder.iterdir()) if folder.is_dir() else set()
    taken = [path for one in products for _, path in one.written() if path in present]
    if taken and not (recipe.batch.overwrite or recipe.batch.resume):
        raise WriteError(
            f"{taken[0]} exists already, and so do {len(taken) - 1} other products. Choose another folder, resume=True "
            "(--resume) to keep them, or overwrite=True (--overwrite) to replace them.",
            path=str(taken[0]),
        )
    if taken:
        check_not_input(taken, [*sciences, *recipe.science_files(sciences[0]), *recipe.template_files])


def _outcomes(
    recipe: Recipe, tasks: Sequence[tuple[PathLike, Products]]
) -> Generator[tuple[int, Outcome | WorkerError]]:
    """Yield the number and the outcome of each task; no template is prepared for the first ones if all are kept."""
    first = 0
    if recipe.batch.resume:
        from skyloom.io.provenance import Input

        inputs = tuple(Input.of(path) for path in recipe.template_files)
        for task in tasks:
            outcome = None
            with _warnings_caught() as caught, suppress(Exception):  # what is wrong with the image is told below
                outcome, _ = _kept(recipe, task[0], inputs, task[1])
            if outcome is None:
                break
            yield first, replace(outcome, warnings=_texts(caught))
            first += 1
    with closing(work_through(partial(_starter, recipe), tasks[first:], recipe.batch.jobs)) as results:
        for index, result in results:
            yield first + index, result


def _starter(recipe: Recipe) -> Callable[[tuple[PathLike, Products]], Outcome]:
    """Return the function that makes one outcome after the other."""
    with _warnings_caught() as caught:
        prepared = recipe.prepared()
    return partial(_outcome, recipe, prepared, _texts(caught))


def _outcome(recipe: Recipe, prepared: Prepared, told: str, task: tuple[PathLike, Products]) -> Outcome:
    """Make the products of one image, or keep them; what goes wrong is an outcome, too."""
    science, products = task
    start, start_cpu = time.perf_counter(), time.process_time()
    with _warnings_caught() as caught:
        why = ""
        try:
            outcome = None
            if recipe.batch.resume:
                outcome, why = _kept(recipe, science, prepared.inputs, products)
            if outcome is None:
                recipe.check_not_same(science)
                *_, outcome = recipe.make(science, prepared, products)
        except Exception as error:
            logger.debug("%s", science, exc_info=True)
            outcome = _failed(science, error)
    if outcome.status != "kept":
        times = time.perf_counter() - start, time.process_time() - start_cpu
        outcome = replace(outcome, seconds=round(times[0], 3), cpu_seconds=round(times[1], 3))
    return replace(outcome, remade=why, warnings=_texts(caught), template_warnings=told)


@contextmanager
def _warnings_caught() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", SkyloomWarning)
        yield caught


def _texts(caught: Sequence[warnings.WarningMessage]) -> str:
    return "\n".join(dict.fromkeys(str(one.message) for one in caught))


def _failed(science: PathLike, error: Exception) -> Outcome:
    name, message = type(error).__name__, str(error) or repr(error)
    if isinstance(error, MemoryError):
        name = "MemoryError"
        message = f"The memory is not enough for this image; use fewer processes (--jobs). {error}".rstrip()
    return Outcome(os.fspath(science), "failed", error=name, message=message)


def _kept(
    recipe: Recipe, science: PathLike, of_template: Sequence[Input], products: Products
) -> tuple[Outcome | None, str]:
    """Return the outcome of an earlier run if its products are complete, and what would be made now; else why not."""
    from astropy.io import fits
    from astropy.table import Table

    paths = [path for _, path in products.written()]
    missing = [path for path in paths if not path.is_file()]
    if missing or products.difference is None:
        return None, "" if len(missing) == len(paths) else f"{missing[-1].name} is missing"
    try:
        header = fits.getheader(products.difference)
        if why := recipe.differs(science, of_template, products, header):
            return None, why
        candidates = Table.read(products.table, format="ascii.ecsv")
        numbers = {**read_diagnostics(header), **observed(header), "convolved": header.get("CONVOLVD")}
    except (OSError, ValueError, KeyError):
        return None, f"{products.difference.name} or {products.table.name} is damaged"
    _warn([numbers["warning"]] if "warning" in numbers else [])  # as when it was made
    return replace(outcome_of(science, products, numbers, candidates), status="kept"), ""
