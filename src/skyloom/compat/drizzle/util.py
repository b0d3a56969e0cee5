"""The names of `drizzle.util`, which is deprecated there and here."""

import warnings

_ADVICE = "deprecated since drizzle 2.0; use str.strip() instead."

warnings.warn(f"The module 'drizzle.util' is {_ADVICE}", DeprecationWarning, stacklevel=2)


def is_blank(value: str) -> bool:
    """Return whether a text holds nothing but white space."""
    warnings.warn(f"'is_blank' is {_ADVICE}", DeprecationWarning, stacklevel=2)
    return value.strip() == ""
