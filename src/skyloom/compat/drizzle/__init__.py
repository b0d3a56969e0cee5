"""What `drizzle` 3.0 offers, under its paths: `resample`, `utils`, `util` and the keyword forms of `cdrizzle`."""

from skyloom.compat.drizzle import cdrizzle, resample, utils

__all__ = ["cdrizzle", "resample", "utils"]

__version__ = "3.0.0"
"""The release of `drizzle` whose names, arguments and defaults these are."""
