import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("room", ["haversack.core", "haversack.formats"])
def test_every_public_name_is_there_and_hides_no_file(room):
    package = importlib.import_module(room)
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
        assert importlib.util.find_spec(f"{room}.{name}") is None, "a file of that name would take its place"
    assert dir(package) == sorted(package.__all__)
    with pytest.raises(AttributeError):
        _ = package.nothing_of_that_name


def test_importing_a_room_loads_nothing_but_what_finds_its_names():
    code = (
        "import sys, haversack.core, haversack.formats\n"
        "print([name for name in sys.modules if name.startswith('haversack.core.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['haversack.core._names']"


def test_no_file_of_core_loads_numpy():
    code = (
        "import importlib, pkgutil, sys, haversack.core as c\n"
        "for m in pkgutil.iter_modules(c.__path__): importlib.import_module(f'haversack.core.{m.name}')\n"
        "print('numpy' in sys.modules, 'typer' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
