"""Settings of the whole test suite."""

import os
import signal

from hypothesis import settings

# A shared machine may be slow: no deadline. Continuous integration draws the same examples each time, so that a red run
# is the change's; everybody else draws new ones.
settings.register_profile("everyday", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "everyday")

# A suite that a shell starts in the background ignores interrupts, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
