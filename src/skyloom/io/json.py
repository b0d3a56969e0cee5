"""Results for programs."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(data: Any) -> str:
    """Return lists, dictionaries and numbers as JSON, which knows no NaN: those are null."""
    return json.dumps(_finite(data), indent=1, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    value = data.item() if hasattr(data, "item") else data
    return None if isinstance(value, float) and not math.isfinite(value) else value
