"""The floors of the house: imports go downwards only, scripts stay thin, and importing needs neither compiler nor network."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"core": 1, "utils": 2, "modeling": 3, "datasets": 3, "engine": 4}
# inside a floor, from the ground up; rooms of one line do not know each other
ROOMS = {
    "utils": [("files",), ("nms",), ("evaluation",), ("significance",), ("diagnosis",)],
    "engine": [("runtime",), ("runs",), ("distill", "inference", "check"), ("training", "deploy"), ("experiments",)],
    "datasets": [("annotations", "grid", "transforms", "presets"), ("labels",), ("features",),
                 ("prepare", "convert", "survey", "video"), ("synthetic",), ("sample",), ("timing",), ("dataset",),
                 ("feature_videos", "corruptions", "ground_truth"), ("loading",)],
    "modeling": [("kernels",), ("blocks",), ("points",), ("backbones", "necks", "heads", "hallucination"), ("model",),
                 ("losses", "decode")],
}
OVERRIDES = ("forward", "backward", "make_block", "embed", "lengths", "sample", "read",  # of documented classes
             "fit", "prepare", "features", "libraries", "told", "defaults", "takes", "load")
MODULES = sorted((ROOT / "libs").rglob("*.py"))
SCRIPTS = [ROOT / "train.py", ROOT / "eval.py", *sorted((ROOT / "tools").glob("*.py"))]


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards(path: Path):
    room = path.relative_to(ROOT / "libs").parts[0]
    if room == "__init__.py":
        assert imports(path) == set()
        return
    assert room in FLOORS, f"{room}: a room without a floor"
    for name in imports(path):
        parts = name.split(".")
        assert parts[0] not in ("train", "eval", "tools", "tests", "golden", "helpers"), f"{path} imports {name}"
        if parts[0] == "libs":
            assert len(parts) > 1, f"{path} imports all of libs"
            assert parts[1] == room or FLOORS[parts[1]] < FLOORS[room], f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(ROOT / "libs").parts[0] in ROOMS],
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_inside_a_floor_go_downwards(path: Path):
    floor, name = path.relative_to(ROOT / "libs").with_suffix("").parts[:2]
    level = {room: i for i, rooms in enumerate(ROOMS[floor]) for room in rooms}
    if name not in level:
        return
    for imported in imports(path):
        parts = imported.split(".")
        if parts[:2] == ["libs", floor] and len(parts) > 2 and parts[2] != name and parts[2] in level:
            assert level[parts[2]] < level[name], f"{path} imports {imported}, which is not below it"


def test_folders_hold_about_a_dozen_files_and_functions_fit_on_a_screen():
    folders = {p.parent: len(list(p.parent.glob("*.py"))) - 1 for p in MODULES}
    assert {str(folder.relative_to(ROOT)): n for folder, n in folders.items() if n > 14} == {}
    long = {f"{p.relative_to(ROOT)}: {node.name}": node.end_lineno - node.lineno + 1 for p in MODULES
            for node in ast.walk(ast.parse(p.read_text())) if isinstance(node, ast.FunctionDef)}
    assert {name: n for name, n in long.items() if n > 60} == {}


def test_every_module_is_in_a_room_and_short():
    assert len(MODULES) > 40
    lengths = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in MODULES + SCRIPTS}
    assert {p: n for p, n in lengths.items() if n > 400} == {}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_end_in_run_main_and_import_no_other_script(path: Path):
    names = imports(path)
    assert "libs.core.errors.run_main" in names
    assert not names & {p.stem for p in SCRIPTS}
    assert "run_main(main)" in path.read_text()


def test_importing_and_help_need_no_compiler_and_none_of_the_packages_that_functions_import(tmp_path):
    """In a process that can start no program and has no compiled library."""
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in MODULES]
    code = f"""
import contextlib, importlib, io, os, runpy, subprocess, sys
def refuse(*args, **kwargs):
    raise AssertionError(f"started {{args}}")
subprocess.Popen.__init__ = refuse
os.system = refuse
import ctypes, numpy, torch
ctypes.CDLL = refuse  # torch has loaded its own
for name in {names!r}:
    importlib.import_module(name)
for script in {list(map(str, SCRIPTS))!r}:
    sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(script, run_name="__main__")
found = sorted(set(sys.modules) & {{"joblib", "matplotlib", "pandas", "tensorboard"}})
assert found == [], found
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PATH": "", "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_functions_say_what_they_do():
    """Every public function and class of the library has a docstring; overrides and one-line properties may go without."""
    bare = []
    for path in MODULES:
        if path.parent.name == "schema":  # every field is documented instead
            continue
        tree = ast.parse(path.read_text())
        classes = [c for c in tree.body if isinstance(c, ast.ClassDef) and c.name[0] != "_"]
        bases = {c.name: {m.name for m in c.body if isinstance(m, ast.FunctionDef)} for c in classes}  # of the same file
        nodes: list[ast.stmt] = list(tree.body)
        for c in classes:
            inherited = {name for b in c.bases for name in bases.get(ast.unparse(b), ())}
            nodes += [m for m in c.body if getattr(m, "name", None) not in inherited]
        for node in nodes:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_") or ast.get_docstring(node):
                continue
            if node.name not in OVERRIDES and not (len(node.body) == 1 and getattr(node, "decorator_list", [])):
                bare.append(f"{path.relative_to(ROOT)}: {node.name}")
    assert bare == []


def test_test_files_have_names_of_their_own():
    """pytest imports them by name alone; the browser tests are a run of their own."""
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py") if "browser" not in p.parts]
    assert sorted(names) == sorted(set(names))


def test_only_one_module_asks_what_lies_at_a_path():
    """pathlib and os.path raise, or say "nothing there", where permission is missing or a name is too long."""
    found = []
    for path in {*MODULES, *SCRIPTS} - {ROOT / "libs/core/files.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            name, owner = node.func.attr, ast.unparse(node.func.value)  # "info": of an entry of an archive
            asked = name in ("exists", "is_file", "is_dir", "iterdir") and not node.args and owner != "info"
            if asked or (owner == "os.path" and name in ("exists", "isfile", "isdir")) or f"{owner}.{name}" == "os.listdir":
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert sorted(found) == []
