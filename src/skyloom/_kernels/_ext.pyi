from typing import Any

def simd_level() -> str: ...

# drizzle

# convolve

# interpolate
