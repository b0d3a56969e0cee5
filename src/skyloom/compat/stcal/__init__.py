"""Of `stcal` 1.20, its subpackage `resample`; the rest of an original that is installed stays what it is."""
