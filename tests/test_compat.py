"""`skyloom.compat`: which modules an import finds, before, during and after; and the runner."""

import importlib
import inspect
import subprocess
import sys
import warnings
from multiprocessing import spawn

import pytest

import skyloom.compat
from skyloom.compat import PROVIDED, activate, deactivate
from skyloom.errors import InputError

ORIGINAL = "originaldrizzle"  # a stand-in: the tests of this process must not depend on what else is installed


@pytest.fixture
def original(tmp_path, monkeypatch):
    """Make an installed original, and the modules of skyloom that replace parts of it; leave no trace."""
    installed, ours = tmp_path / "installed" / ORIGINAL, tmp_path / "ours" / ORIGINAL
    for folder in (installed / "tests", ours):
        folder.mkdir(parents=True)
    (installed / "__init__.py").write_text("from . import part\nwho = 'original'\n")
    (installed / "part.py").write_text("who = 'original'\n")
    (installed / "other.py").write_text("from . import part\nwho = 'original'\n")
    (installed / "tests" / "__init__.py").write_text("who = 'original'\n")
    (ours / "__init__.py").write_text("from skyloom.compat.originaldrizzle import part\nwho = 'skyloom'\n")
    (ours / "part.py").write_text("who = 'skyloom'\n")
    monkeypatch.setattr(skyloom.compat, "__path__", [*skyloom.compat.__path__, str(ours.parent)])
    monkeypatch.syspath_prepend(installed.parent)
    monkeypatch.setitem(PROVIDED, ORIGINAL, (ORIGINAL, f"{ORIGINAL}.part"))
    before = set(sys.modules)
    yield installed
    deactivate()
    for name in set(sys.modules) - before:
        del sys.modules[name]
    vars(skyloom.compat).pop(ORIGINAL, None)


def who(module):
    return importlib.import_module(module).who


@pytest.mark.usefixtures("original")
def test_only_provided_modules_are_replaced():
    activate(ORIGINAL)
    package = importlib.import_module(ORIGINAL)
    assert package.who == "skyloom"
    assert package.__name__ == ORIGINAL
    assert who(f"{ORIGINAL}.part") == "skyloom"
    assert sys.modules[f"{ORIGINAL}.part"] is importlib.import_module(f"skyloom.compat.{ORIGINAL}.part")
    assert who(f"{ORIGINAL}.tests") == "original"
    assert who(f"{ORIGINAL}.other") == "original"
    assert sys.modules[f"{ORIGINAL}.other"].part.who == "skyloom"
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{ORIGINAL}.nothing")


@pytest.mark.usefixtures("original")
def test_part_of_a_package_that_stays(monkeypatch):
    monkeypatch.setitem(PROVIDED, ORIGINAL, (f"{ORIGINAL}.part",))
    activate(ORIGINAL)
    assert who(ORIGINAL) == "original"
    assert who(f"{ORIGINAL}.part") == "skyloom"
    assert sys.modules[ORIGINAL].part.who == "skyloom"
    deactivate(ORIGINAL)
    assert who(ORIGINAL) == "original"
    assert who(f"{ORIGINAL}.part") == "original"
    assert sys.modules[ORIGINAL].part.who == "original"


@pytest.mark.parametrize("package_too", [True, False])
def test_original_need_not_be_installed(original, monkeypatch, package_too):
    original.rename(original.with_name("away"))
    if not package_too:
        monkeypatch.setitem(PROVIDED, ORIGINAL, (f"{ORIGINAL}.part",))
    importlib.invalidate_caches()
    with activate(ORIGINAL):
        assert who(f"{ORIGINAL}.part") == "skyloom"
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"{ORIGINAL}.tests")
    assert not [name for name in sys.modules if name.startswith(ORIGINAL)]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{ORIGINAL}.part")


@pytest.mark.usefixtures("original")
def test_deactivate_brings_the_original_back():
    finders = list(sys.meta_path)
    activate(ORIGINAL)
    activate(ORIGINAL)  # twice is once
    assert len(sys.meta_path) == len(finders) + 1
    assert who(ORIGINAL) == "skyloom"
    deactivate()
    assert sys.meta_path == finders
    assert who(ORIGINAL) == "original"
    assert who(f"{ORIGINAL}.part") == "original"
    assert who(f"skyloom.compat.{ORIGINAL}.part") == "skyloom"
    deactivate(ORIGINAL)  # not active: nothing happens


@pytest.mark.usefixtures("original")
def test_context_manager_ends_even_after_an_error():
    with pytest.raises(ModuleNotFoundError), activate(ORIGINAL):
        importlib.import_module(f"{ORIGINAL}.nothing")
    assert who(f"{ORIGINAL}.part") == "original"


@pytest.mark.usefixtures("original")
def test_inner_context_leaves_the_outer_one_active():
    with activate(ORIGINAL):
        with activate(ORIGINAL):
            pass
        assert who(f"{ORIGINAL}.part") == "skyloom"


@pytest.mark.usefixtures("original")
def test_original_that_is_imported_already_is_an_error():
    importlib.import_module(f"{ORIGINAL}.part")
    with pytest.raises(InputError, match="imported already") as error:
        activate(ORIGINAL)
    assert error.value.details["imported"] == [ORIGINAL, f"{ORIGINAL}.part"]
    assert who(f"{ORIGINAL}.part") == "original"
    assert skyloom.compat._finder not in sys.meta_path


@pytest.mark.parametrize("function", [activate, deactivate])
def test_unknown_name_is_an_error_that_lists_the_known_ones(function):
    with pytest.raises(InputError, match=r"'swarp'; it replaces: .*drizzle"):
        function("drizzle", "swarp")
    assert skyloom.compat._finder not in sys.meta_path


@pytest.mark.parametrize("name", sorted(PROVIDED))
def test_every_provided_module_exists_and_is_documented(name):
    for module in PROVIDED[name]:
        assert module == name or module.startswith(name + ".")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # drizzle.util is deprecated
            ours = importlib.import_module(f"skyloom.compat.{module}")
        assert inspect.getdoc(ours)


# --- another process ------------------------------------------------------------------------------------------------


def run(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "skyloom.compat", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        check=False,
    )


def test_runner_runs_scripts_and_modules(tmp_path):
    program = (
        "import sys, drizzle, neighbour\n"
        "from drizzle import cdrizzle\n"
        "from drizzle.resample import Drizzle\n"
        "if __name__ == '__main__':\n"
        "    print(Drizzle.__module__, cdrizzle.__name__, drizzle.__version__, sys.argv[1:], neighbour.x)\n"
    )
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "neighbour.py").write_text("x = 7\n")
    expected = "skyloom.resampling.drizzle skyloom.compat.drizzle.cdrizzle 3.0.0 ['-a', 'b'] 7\n"
    script = run("drizzle", str(tmp_path / "program.py"), "-a", "b")
    assert (script.stdout, script.stderr) == (expected, "")
    module = run("drizzle", "--", "-m", "program", "-a", "b", cwd=tmp_path)
    assert (module.stdout, module.stderr) == (expected, "")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_processes_that_start_afresh_have_the_same_modules(tmp_path, method):
    program = (
        "import multiprocessing, sys\n"
        "from pathlib import Path\n"
        "from drizzle.resample import Drizzle\n"
        "def who(queue):\n"
        "    queue.put(Drizzle.__module__)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context(sys.argv[1])\n"
        "    queue = context.Queue()\n"
        "    child = context.Process(target=who, args=(queue,))\n"
        "    child.start()\n"
        "    print(queue.get(timeout=100), Path(__file__).is_absolute())\n"
        "    child.join()\n"
    )
    (tmp_path / "program.py").write_text(program)
    result = run("drizzle", "program.py", method, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("skyloom.resampling.drizzle True\n", "")


@pytest.mark.usefixtures("original")
def test_multiprocessing_is_left_as_it_was():
    before = spawn.get_preparation_data
    with activate(ORIGINAL):
        with activate(ORIGINAL):
            assert spawn.get_preparation_data is not before
        assert spawn.get_preparation_data is not before
    assert spawn.get_preparation_data is before


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 1, "usage:"),
        (["--help"], 0, "usage:"),
        (["drizzle"], 1, "usage:"),
        (["drizzle", "--", "-m"], 1, "usage:"),
        (["swarp", "a.py"], 1, "'swarp'; it replaces:"),
    ],
)
def test_runner_explains_itself(arguments, code, words):
    result = run(*arguments)
    assert result.returncode == code
    assert words in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
