"""What processes are given in the tests of them, in a module that they import quickly."""

from __future__ import annotations

import os


class Answer:
    """Work that is answered with its name, and the number of threads; one piece kills the process."""

    def __call__(self):
        return self.answer

    def answer(self, item):
        if item == "die":
            os._exit(7)
        return item, os.environ["SKYLOOM_NUM_THREADS"]


class Die:
    """No process can begin."""

    def __call__(self):
        os._exit(9)


class Starts(Answer):
    """Processes of which only the first few can begin their work; `folder` counts them."""

    def __init__(self, folder, allowed, how="die"):
        self.folder, self.allowed, self.how = folder, allowed, how

    def __call__(self):
        (self.folder / str(os.getpid())).touch()
        if len(list(self.folder.iterdir())) > self.allowed:
            if self.how == "die":
                os._exit(9)
            raise {"memory": MemoryError, "value": ValueError}[self.how]
        return self.answer
