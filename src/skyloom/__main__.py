"""``python -m skyloom`` is the command ``skyloom``."""

import sys

from skyloom.cli import main

sys.exit(main())
