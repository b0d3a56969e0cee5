"""Many science images against one template: each makes its own products, or its own error."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from skyloom._threads import serial_blas
from skyloom.errors import InputError, SkyloomWarning, WriteError
from skyloom.pipeline.difference import Difference, DifferenceOptions, difference, flat_parameters
from skyloom.pipeline.products import Products, stems_in_folder, write_products
from skyloom.pipeline.store import read_diagnostics
from skyloom.pipeline.template import Template, prepare_template, without_science
from skyloom.pipeline.workers import WorkerError, work_through

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


@dataclass(frozen=True)
class Outcome:
    """What became of one science image; numbers are None where there are none.

    Attributes
    ----------
    science : str
        Its path.
    status : {'done', 'kept', 'failed'}
        Kept are products that an earlier run has made.
    method : str
        Of the subtraction.
    seconds : float or None
        From the reading of the image to the writing of its products; the template is prepared before.
    noise_std, score_std : float or None
        Standard deviations of difference / error and of the score over the sky.
    n_candidates, n_artefacts : int or None
        Candidates without and with flags.
    n_templates : int or None
        Frames of the template that were used.
    difference, candidates, report : str
        Paths of the products.
    error, message : str
        The type of the error, and what it says.
    warnings : str
        What was warned of, separated by line ends.
    template_warnings : str
        The same of the preparation of the template.
    """

    science: str
    status: str
    method: str = ""
    seconds: float | None = None
    noise_std: float | None = None
    score_std: float | None = None
    n_candidates: int | None = None
    n_artefacts: int | None = None
    n_templates: int | None = None
    difference: str = ""
    candidates: str = ""
    report: str = ""
    error: str = ""
    message: str = ""
    warnings: str = ""
    template_warnings: str = ""


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

    def made(self, science: PathLike, prepared: Prepared, products: Products, header: Mapping[str, Any]) -> bool:
        """Whether the products were made of this image and template, as the header of the difference tells."""
        from skyloom.io import Provenance

        inputs = [*self.science_files(science), *prepared.inputs]
        return Provenance("difference", self.parameters(), inputs, outputs=products.beside()).made(header)

    def make(
        self, science: PathLike, prepared: Prepared, products: Products, *, progress: Any = None
    ) -> tuple[Difference, Table]:
        """Make the difference of one image; write its products, and return it and its candidates.

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
            return result, write_products(result, products, inputs, threshold=self.batch.threshold, overwrite=overwrite)


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
    """
    frames = [template] if isinstance(template, str | Path) else list(template)
    recipe = Recipe(tuple(frames), options or DifferenceOptions(), batch or BatchOptions())
    if not frames or not sciences:
        raise InputError(f"There are {len(sciences)} science images and {len(frames)} templates; both are needed.")
    stems = stems_in_folder(sciences, folder)
    products = [Products.in_folder(folder, stem, report=recipe.batch.report) for stem in stems]
    _check_products(recipe, sciences, products)
    report = progress or (lambda *_: None)
    outcomes: list[Outcome | None] = [None] * len(products)
    told = 0
    warned: set[str] = set()
    report("preparing the template", 0, len(products))
    tasks = list(zip(sciences, products, strict=True))
    with closing(work_through(partial(_starter, recipe), tasks, recipe.batch.jobs)) as results:
        for done, (index, result) in enumerate(results, 1):
            outcomes[index] = _failed(sciences[index], result) if isinstance(result, WorkerError) else result
            report("differences", done, len(products))
            while told < len(outcomes) and (known := outcomes[told]) is not None:
                told += 1
                logger.debug("%s", known)
                for text in {*filter(None, known.template_warnings.split("\n"))} - warned:
                    warned.add(text)
                    warnings.warn(text, SkyloomWarning, stacklevel=2)
                if on_frame is not None:
                    on_frame(known)
    return [one for one in outcomes if one is not None]


def _check_products(recipe: Recipe, sciences: Sequence[PathLike], products: Sequence[Products]) -> None:
    """Raise if products exist that may not be replaced, or that are inputs; the folder is looked at once."""
    from skyloom.io import check_not_input

    products[0].check(overwrite=True)
    present = set(products[0].table.parent.iterdir())
    taken = [path for one in products for _, path in one.written() if path in present]
    if taken and not (recipe.batch.overwrite or recipe.batch.resume):
        raise WriteError(
            f"{taken[0]} exists already, and so do {len(taken) - 1} other products. Choose another folder, resume=True "
            "(--resume) to keep them, or overwrite=True (--overwrite) to replace them.",
            path=str(taken[0]),
        )
    if taken:
        check_not_input(taken, [*sciences, *recipe.science_files(sciences[0]), *recipe.template_files])


def _starter(recipe: Recipe) -> Callable[[tuple[PathLike, Products]], Outcome]:
    """Return the function that makes one outcome after the other."""
    with _warnings_caught() as caught:
        prepared = recipe.prepared()
    return partial(_outcome, recipe, prepared, _texts(caught))


def _outcome(recipe: Recipe, prepared: Prepared, told: str, task: tuple[PathLike, Products]) -> Outcome:
    """Make the products of one image, or keep them; what goes wrong is an outcome, too."""
    science, products = task
    start = time.perf_counter()
    with _warnings_caught() as caught:
        try:
            outcome = _kept(recipe, science, prepared, products) if recipe.batch.resume else None
            if outcome is None:
                result, candidates = recipe.make(science, prepared, products)
                outcome = outcome_of(science, products, result.diagnostics, candidates)
        except Exception as error:
            logger.debug("%s", science, exc_info=True)
            outcome = _failed(science, error)
    seconds = None if outcome.status == "kept" else round(time.perf_counter() - start, 3)
    return replace(outcome, seconds=seconds, warnings=_texts(caught), template_warnings=told)


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


def outcome_of(science: PathLike, products: Products, numbers: Mapping[str, Any], candidates: Table) -> Outcome:
    """Return the outcome of an image whose products are written, given the diagnostics of its difference."""
    real = int(candidates["real"].sum())
    return Outcome(
        os.fspath(science),
        "done",
        method=str(numbers["method"]),
        noise_std=numbers.get("noise_std"),
        score_std=numbers.get("score_std"),
        n_templates=numbers.get("n_templates"),
        n_candidates=real,
        n_artefacts=len(candidates) - real,
        difference=str(products.difference or ""),
        candidates=str(products.table),
        report=str(products.report or ""),
    )


def _kept(recipe: Recipe, science: PathLike, prepared: Prepared, products: Products) -> Outcome | None:
    """Return the outcome of an earlier run if its products are complete, and what would be made now; else None."""
    from astropy.io import fits
    from astropy.table import Table

    if products.difference is None or not all(path.is_file() for _, path in products.written()):
        return None
    try:
        header = fits.getheader(products.difference)
        if not recipe.made(science, prepared, products, header):
            return None
        candidates = Table.read(products.table, format="ascii.ecsv")
        numbers = read_diagnostics(header)
    except (OSError, ValueError, KeyError):  # damaged: it is made again
        return None
    return replace(outcome_of(science, products, numbers, candidates), status="kept")


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


def write_outcomes(outcomes: Sequence[Outcome], path: PathLike, *, overwrite: bool = False) -> Path:
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
            temporary.write_text(to_json([asdict(one) for one in outcomes]) + "\n")
        else:
            outcome_table(outcomes).write(temporary, format=f"ascii.{kind}", overwrite=True)
    return Path(path)


def summary_format(path: PathLike) -> str:
    """Return 'json', 'csv' or 'ecsv'."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("json", "csv", "ecsv"):
        raise InputError(f"The name of the summary is {path}; it must end with .json, .csv or .ecsv.", path=str(path))
    return kind
