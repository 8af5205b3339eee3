"""A recipe: another process has the same tasks, or one is told why it cannot."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TASKS = """
from secondpass import App, Event, Task

class Seen(Event):
    time: float

class Keep(Task[Seen]):
    '''Pass what is late enough.'''
    after: float = 0.0
    def handle(self, event: Seen) -> Seen | None:
        return event if event.time > self.after else None

def plain(event: Seen) -> Seen:
    return event
"""
APP = TASKS + "\napp = App('test', source=[], tasks=[Keep(after=3.0), plain])\n"
FACTORY = "def make():" + APP.replace("\n", "\n    ").replace("app = ", "return ") + "\n"

LOADER = """
import sys, msgspec
sys.loaded_for_a_worker = True
from secondpass.engine.recipe import Recipe, load_tasks
recipe = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Recipe)
tasks = load_tasks(recipe)
main = sys.modules["__main__"]
print("loaded", tasks[0], type(tasks[0]).__module__, [task.name for task in tasks[1:]])
print("__main__ has Keep:", hasattr(main, "Keep"), "argv:", sys.argv[1:])
"""

# `import carry` makes a hub of which `app.run()` does nothing but let another process load the tasks.
CARRY = f"""
import subprocess, sys, msgspec
from secondpass import App
from secondpass.engine.recipe import recipe_for

LOADER = {LOADER!r}
between = lambda: None

def carry(app, **options):
    message = msgspec.msgpack.encode(recipe_for(app))
    between()
    done = subprocess.run([sys.executable, "-P", "-c", LOADER], input=message, capture_output=True)
    print((done.stdout + done.stderr).decode())

if not hasattr(sys, "loaded_for_a_worker"):
    App.run = carry
"""

Write = Callable[[str, str], Path]
Python = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


@pytest.fixture
def python(tmp_path: Path, write: Write) -> Python:
    """Runs Python in the folder of the files and gives all that it said."""
    helpers = write("helpers/carry.py", CARRY).parent

    def run(*arguments: str, text: str | None = None) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(helpers)},
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.stdout + done.stderr

    return run


def carried(spec: str, before: str = "") -> str:
    """A hub that loads its app by a spec."""
    return (
        f"import carry\nfrom secondpass import loading\napp = loading.load({spec!r})\n{before}\napp.run()\n"
    )


def test_an_app_in_a_file_is_loaded_from_the_file_under_the_same_name(write: Write, python: Python) -> None:
    write("cameras.py", APP)
    assert "loaded Keep(after=3.0) cameras ['plain']" in python("-c", carried("cameras.py"))


def test_a_file_in_another_folder_is_found_again(write: Write, python: Python) -> None:
    write("deep/er/cameras.py", APP)
    assert "loaded Keep(after=3.0) cameras ['plain']" in python("-c", carried("deep/er/cameras.py"))


def test_a_file_with_a_name_that_is_none_is_loaded_too(write: Write, python: Python) -> None:
    write("my-cameras.py", APP)
    assert "loaded Keep(after=3.0) secondpass_app ['plain']" in python("-c", carried("my-cameras.py"))


def test_an_app_in_a_package_is_imported(write: Write, python: Python) -> None:
    write("road/__init__.py", "")
    write("road/tasks.py", TASKS)
    write(
        "road/app.py", "from .tasks import *\napp = App('test', source=[], tasks=[Keep(after=3.0), plain])\n"
    )
    assert "loaded Keep(after=3.0) road.tasks ['plain']" in python("-c", carried("road.app:app"))


def test_what_an_app_does_when_it_is_loaded_is_done_for_its_tasks_too(write: Write, python: Python) -> None:
    write("cameras.py", TASKS)
    write(
        "app.py",
        "import cameras\ncameras.Keep.__name__ = 'Renamed'\n" + "from cameras import *\n" + APP[len(TASKS) :],
    )
    assert "loaded Renamed(after=3.0) cameras" in python("-c", carried("app.py"))


def test_settings_cross_with_the_tasks(write: Write, python: Python) -> None:
    text = APP.replace("after=3.0", "after=3.5").replace(
        "Keep(after=3.5)", "Keep(after=3.5).options(name='late')"
    )
    write("cameras.py", text)
    loader = LOADER.replace("tasks[1:]", "tasks[:]")
    found = python("-c", carried("cameras.py", f"carry.LOADER = {loader!r}"))
    assert "loaded Keep(after=3.5) cameras ['late', 'plain']" in found


@pytest.mark.parametrize("spec", ["cameras.py:make()", "cameras:make()"])
def test_classes_that_a_factory_makes_are_loaded_by_the_spec(write: Write, python: Python, spec: str) -> None:
    write("cameras.py", FACTORY)
    assert "loaded Keep(after=3.0) cameras ['plain']" in python("-c", carried(spec))


def test_lambdas_are_loaded_by_the_spec(write: Write, python: Python) -> None:
    write("cameras.py", APP.replace("plain])", "lambda e: e])"))
    assert "loaded Keep(after=3.0) cameras ['<lambda>']" in python("-c", carried("cameras.py"))


def test_a_factory_that_gives_another_chain_is_refused(write: Write, python: Python) -> None:
    write("cameras.py", "import os\n" + FACTORY.replace("after=3.0", "after=float(os.getpid())"))
    found = python("-c", carried("cameras.py:make()"))
    assert "loaded Keep" not in found
    assert "UsageError: cameras.py:make() gives another chain each time it is loaded" in found


def test_settings_in_a_set_make_no_other_chain(write: Write, python: Python) -> None:
    names = ", ".join(repr(f"name{n}") for n in range(20))
    text = FACTORY.replace("after: float = 0.0", "after: frozenset[str] = frozenset()")
    write("cameras.py", text.replace("after=3.0", f"after=frozenset({{{names}}})"))
    assert "loaded Keep(after=frozenset(" in python("-c", carried("cameras.py:make()"))


def test_a_guarded_script_is_loaded_under_its_own_name(write: Write, python: Python) -> None:
    write(
        "cameras.py",
        "import carry\n" + APP + "if __name__ == '__main__':\n    app.run()\n    print('after')\n",
    )
    found = python("cameras.py", "--flag")
    assert "loaded Keep(after=3.0) cameras ['plain']" in found
    assert "__main__ has Keep: True argv: ['--flag']" in found
    assert found.count("after\n") == 1


def test_a_script_without_a_guard_is_loaded_up_to_its_run(write: Write, python: Python) -> None:
    write("cameras.py", "import carry\nprint('before')\n" + APP + "app.run()\nprint('behind')\n")
    found = python("cameras.py")
    assert "loaded Keep(after=3.0) cameras ['plain']" in found
    assert (found.count("before"), found.count("behind")) == (2, 1)


def test_no_handler_of_a_script_catches_the_end_of_its_loading(write: Write, python: Python) -> None:
    text = "try:\n    app.run()\nexcept Exception:\n    print('caught')\nprint('behind')\n"
    write("cameras.py", "import carry\n" + APP + text)
    found = python("cameras.py")
    assert "loaded Keep(after=3.0)" in found
    assert "caught" not in found
    assert found.count("behind") == 1


def test_a_module_that_is_run_by_its_name_is_loaded_by_it(write: Write, python: Python) -> None:
    write("road/__init__.py", "")
    write("road/more.py", "import carry\n")
    write("road/cameras.py", "from . import more\n" + APP + "if __name__ == '__main__':\n    app.run()\n")
    assert "loaded Keep(after=3.0) road.cameras ['plain']" in python("-m", "road.cameras")


def test_a_package_that_is_run_is_loaded_by_its_main_module(write: Write, python: Python) -> None:
    write("road/__init__.py", "")
    write("road/__main__.py", "import carry\n" + APP + "app.run()\n")
    assert "loaded Keep(after=3.0) road.__main__ ['plain']" in python("-m", "road")


def test_a_folder_that_is_run_is_loaded_too(write: Write, python: Python) -> None:
    write("road/__main__.py", "import carry\n" + APP + "app.run()\n")
    assert "loaded Keep(after=3.0) secondpass_main ['plain']" in python("road")


def test_a_script_may_be_called_like_a_module_of_python(write: Write, python: Python) -> None:
    write("queue.py", "import carry\n" + APP + "app.run()\n")
    assert "loaded Keep(after=3.0) secondpass_main ['plain']" in python("-P", "queue.py")


def test_a_script_whose_events_alone_are_its_own_is_loaded(write: Write, python: Python) -> None:
    write(
        "elsewhere.py",
        "from secondpass import Task\nclass Keep(Task):\n    def handle(self, e):\n        return e\n",
    )
    text = (
        "import carry\nfrom secondpass import App, Event\nimport elsewhere\nfrom elsewhere import Keep\n"
        "class Seen(Event):\n    time: float\nApp('test', source=[], tasks=[elsewhere.Keep()]).run()\n"
    )
    write("cameras.py", text)
    assert "__main__ has Keep: True" in python("cameras.py")


def test_a_module_that_no_import_finds_is_loaded_from_its_file(write: Write, python: Python) -> None:
    write("plugins/cameras.py", APP)
    text = (
        "import carry, importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('plugged', 'plugins/cameras.py')\n"
        "module = sys.modules['plugged'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\nmodule.app.run()\n"
    )
    assert "loaded Keep(after=3.0) plugged ['plain']" in python("-c", text)


def test_a_file_that_has_changed_since_is_loaded_as_the_hub_loaded_it(write: Write, python: Python) -> None:
    path = write("cameras.py", APP)
    change = f"carry.between = lambda: open({str(path)!r}, 'w').write('1 / 0')"
    assert "loaded Keep(after=3.0) cameras ['plain']" in python("-c", carried("cameras.py", change))


def test_an_imported_file_that_has_changed_since_is_refused(write: Write, python: Python) -> None:
    write("road/__init__.py", "")
    path = write("road/tasks.py", TASKS)
    write(
        "road/app.py", "from .tasks import *\napp = App('test', source=[], tasks=[Keep(after=3.0), plain])\n"
    )
    change = f"carry.between = lambda: open({str(path)!r}, 'a').write('# changed')"
    found = python("-c", carried("road.app:app", change))
    assert f"UsageError: {path} has changed since the app was started; start the app again" in found


def test_an_error_while_loading_is_the_one_that_the_code_raises(write: Write, python: Python) -> None:
    write("cameras.py", "import sys\nif hasattr(sys, 'loaded_for_a_worker'):\n    1 / 0\n" + APP)
    assert "ZeroDivisionError: division by zero" in python("-c", carried("cameras.py"))


NOT_PORTABLE = "secondpass.engine.recipe.NotPortable: the tasks cannot be loaded by another process: "
AT_A_PROMPT = (
    NOT_PORTABLE
    + "they are defined at a prompt, in a notebook or with `python -c`, where no other process can read them; "
    + "put them into a file, at its top level, or run with workers=0"
)


def test_tasks_of_the_command_line_are_not_portable(python: Python) -> None:
    assert AT_A_PROMPT in python("-c", "import carry\n" + APP + "app.run()\n")


def test_tasks_of_the_standard_input_are_not_portable(python: Python) -> None:
    assert AT_A_PROMPT in python("-", text="import carry\n" + APP + "app.run()\n")


def test_a_lambda_in_a_script_is_not_portable(write: Write, python: Python) -> None:
    write("cameras.py", "import carry\n" + APP.replace("plain])", "lambda e: e])") + "app.run()\n")
    assert NOT_PORTABLE + "the task <lambda> is a lambda; put" in python("cameras.py")


def test_a_class_inside_a_function_of_a_script_is_not_portable(write: Write, python: Python) -> None:
    write("cameras.py", "import carry\n" + FACTORY + "make().run()\n")
    assert NOT_PORTABLE + "the task Keep is defined inside a function, make; put" in python("cameras.py")


def test_what_cannot_be_pickled_is_named(write: Write, python: Python) -> None:
    text = """
import threading
class Counter:
    def __init__(self):
        self.lock = threading.Lock()
    def __call__(self, event):
        return event
app = App('test', source=[], tasks=[Keep(after=3.0), Counter()])
app.run()
"""
    write("cameras.py", "import carry\n" + APP + text)
    found = python("cameras.py")
    assert (
        NOT_PORTABLE + "the task function cannot be pickled (TypeError: cannot pickle '_thread.lock'" in found
    )
