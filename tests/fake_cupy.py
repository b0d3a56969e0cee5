"""An array namespace with CuPy's names and CuPy's refusals, on NumPy: finds code that mixes up host and device arrays.

Its arrays take part in its own functions only. NumPy functions refuse them, operations of theirs with NumPy arrays are
refused, and only `asarray`, `array` and `.get()` copy from the host and to it, as with CuPy.
"""

from __future__ import annotations

import types

import numpy as np


class ndarray:
    """An array on the device that there is not."""

    __array_ufunc__ = None
    __module__ = "cupy"

    def __init__(self, host):
        self._host = host

    def __array__(self, *args, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_function__(self, *args):
        raise TypeError("A function of NumPy was called with an array of the device.")

    def get(self):
        return self._host.copy()

    def __getattr__(self, name):
        found = getattr(self._host, name)
        return _wrapped_call(found) if callable(found) else _to_device(found)

    def __getitem__(self, index):
        return _to_device(self._host[_to_host(index)])

    def __setitem__(self, index, value):
        self._host[_to_host(index)] = _to_host(value)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (_to_device(row) for row in self._host)

    def __bool__(self):
        return bool(self._host)

    def __float__(self):
        return float(self._host)

    def __int__(self):
        return int(self._host)


def _operator(name):
    def method(self, *others):
        return _to_device(getattr(self._host, name)(*(_to_host(other) for other in others)))

    return method


for _name in ("add", "sub", "mul", "truediv", "pow", "matmul", "mod", "and", "or"):
    for _prefix in ("", "r", "i"):
        setattr(ndarray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
for _name in ("neg", "invert", "lt", "le", "gt", "ge", "eq", "ne", "abs"):
    setattr(ndarray, f"__{_name}__", _operator(f"__{_name}__"))


def _to_device(value):
    if isinstance(value, (list, tuple)):
        return type(value)(_to_device(item) for item in value)
    return ndarray(np.asarray(value)) if isinstance(value, (np.ndarray, np.generic)) else value


def _to_host(value):
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    return type(value)(_to_host(item) for item in value) if isinstance(value, (list, tuple)) else value


def _wrapped_call(function):
    def call(*args, **options):
        options = {key: _to_host(value) for key, value in options.items()}
        return _to_device(function(*(_to_host(value) for value in args), **options))

    return call


def module(devices=1):
    """Return what `import cupy` would give."""
    fake = types.ModuleType("cupy")
    fake.ndarray = ndarray
    fake.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(getDeviceCount=lambda: devices))
    fake.fft = types.SimpleNamespace(rfft2=_wrapped_call(np.fft.rfft2), irfft2=_wrapped_call(np.fft.irfft2))
    fake.linalg = types.SimpleNamespace(inv=_wrapped_call(np.linalg.inv))
    for name in ("asarray", "array"):
        original = getattr(np, name)
        setattr(
            fake,
            name,
            lambda value, original=original, **options: ndarray(
                original(value._host if isinstance(value, ndarray) else value, **options)
            ),
        )

    def find(name):
        found = getattr(np, name)
        return found if isinstance(found, type) or not callable(found) else _wrapped_call(found)

    fake.__getattr__ = find
    return fake
