"""`spalipy` as it was published, served by `skyloom.registration` and `skyloom.resampling`.

Every argument, attribute, method and default of `spalipy.Spalipy` (version 3.5) is here. What differs is what was wrong
there; ``docs/registration.md`` lists it.
"""

from skyloom.compat.spalipy.spalipy import Spalipy

__all__ = ["Spalipy", "__version__"]

__version__ = "3.5.5"
