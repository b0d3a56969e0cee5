"""Settings of the whole test suite."""

import os

from hypothesis import settings

# A shared machine may be slow: no deadline. Continuous integration draws the same examples each time, so that a red run
# is the change's; everybody else draws new ones.
settings.register_profile("everyday", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "everyday")
