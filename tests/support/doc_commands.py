"""Fenced blocks of the pages, the commands of shell blocks as bash reads them, and their check against the real programs."""
from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.core.config import load_config
from libs.core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
INLINE = re.compile(r"`((?:python|torchrun|make|pip|tensorboard) [^`]+)`")
WRITTEN = ("configs/my.yaml", "configs/mine.yaml", "configs/distill/mine", "data/")  # what readers or commands write
# every program is a function or unknown (PATH is nowhere), so bash parses and expands, and only the words arrive
RECORDER = r"""
exec 9>"$RECORD"; PATH=/nowhere
command_not_found_handle() { printf '%s\0' "$@" >&9; printf '\n\0' >&9; }
"""


@dataclass(frozen=True)
class Block:
    """One fenced block: page, line of its first fence, language and text."""

    page: str
    line: int
    language: str
    text: str


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order; AssertionError for a fence that is not closed."""
    found, start, language, body = [], 0, "", []
    for number, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        fence = line.strip()
        if fence.startswith("```"):
            if start:
                found.append(Block(page, start, language, "\n".join(body) + "\n"))
                start = 0
            else:
                start, language, body = number, fence[3:].strip(), []
        elif start:
            body.append(line)
    assert not start, f"{page}:{start}: block without an end"
    return found


def inline_commands(page: str) -> list[Block]:
    """Commands in `backquotes` in the running text, but for shortened ones (with ...)."""
    return [Block(page, number, "sh", match.group(1) + "\n") for number, line in enumerate(without_blocks(page), 1)
            for match in INLINE.finditer(line) if "..." not in match.group(1)]


def commands(block: Block, folder: Path) -> list[list[str]]:
    """The commands of a shell block, words expanded by bash in `folder`; AssertionError for a block that bash refuses."""
    record = folder / ".recorded"
    done = subprocess.run(["/bin/bash", "-c", RECORDER + block.text], cwd=folder, env={"RECORD": str(record)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.page}:{block.line}: {done.stderr}"
    assert not done.stderr, f"{block.page}:{block.line}: {done.stderr}"
    content = record.read_bytes().decode()
    record.unlink()
    return [part.split("\0")[:-1] for part in content.split("\n\0") if part]


class Parsed(BaseException):
    """Ends a program as soon as its command line was understood."""

    def __init__(self, values: argparse.Namespace):
        self.values = values


def check(words: list[str]) -> None:
    """One command against its program: options, configurations and overrides; AssertionError that says what is wrong."""
    program, *rest = words
    if program == "python" and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), f"no module {rest[1]}"
    elif program == "python":
        assert (ROOT / rest[0]).is_file(), f"no program {rest[0]}"
        check_values(parse(rest[0], rest[1:]))
    elif program == "srun":
        check(rest)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser
        values = get_args_parser().parse_args(rest)
        check(["python", values.training_script, *values.training_script_args])
    elif program == "make":
        targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split()
        assert {w for w in rest if "=" not in w} <= set(targets), f"no such target: {rest}"
    elif program == "pip":
        project = (ROOT / "pyproject.toml").read_text()
        extra, release = re.fullmatch(r"\.\[([\w-]+)\]", rest[-1]), re.fullmatch(r"([\w-]+)==[\d.*]+", rest[-1])
        assert extra or release, f"pip {rest}"
        assert not extra or f"\n{extra[1]} = [" in project, f"pyproject.toml has no extra {extra[1]}"
        assert not release or f'"{release[1]}>=' in project, f"pyproject.toml does not name {release[1]}"
    elif program == "tensorboard":
        assert rest in (["--logdir=ckpt"], ["--logdir", "ckpt"]), rest
    else:
        raise AssertionError(f"{program}: a program that this test does not know")


def parse(script: str, words: list[str]) -> argparse.Namespace | None:
    """What the script's own parser makes of the words (None: it has none and takes plain arguments)."""
    original = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_args", "parse_intermixed_args")}

    def stops(parser: Any) -> Any:
        def parse_and_stop(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> None:
            raise Parsed(parser(self, args, namespace))
        return parse_and_stop
    if "argparse" not in (ROOT / script).read_text() and not script.startswith("benchmarks/"):
        return None
    errors = io.StringIO()
    for name, parser in original.items():
        setattr(argparse.ArgumentParser, name, stops(parser))
    try:
        with program_line(script, words), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except Parsed as done:
        return done.values
    except SystemExit as end:
        raise AssertionError(f"{script} {' '.join(words)}: exit {end.code}: {errors.getvalue()}") from None
    finally:
        for name, parser in original.items():
            setattr(argparse.ArgumentParser, name, parser)
    raise AssertionError(f"{script}: reads no command line")


def check_values(values: argparse.Namespace | None) -> None:
    """Configurations that a command names exist in the repository and take its overrides."""
    if values is None:
        return
    given = vars(values)
    texts = [t for v in given.values() for t in (v if isinstance(v, list) else [v]) if isinstance(t, (str, Path))]
    for text in map(str, texts):
        if text.startswith(("configs/", "tests/")) and text not in WRITTEN and not re.search(r"\b[A-Z]\b", text):
            assert (ROOT / text).exists(), f"no {text}"
    config = given.get("config")
    if config and str(config).startswith("configs/") and str(config) not in WRITTEN and not re.search(r"\b[A-Z]\b", str(config)):
        try:
            folds = [f"fold={fold}" for fold in given.get("folds") or []]
            load_config(ROOT / config, [*(given.get("set") or []), *folds])
        except UserError as error:
            raise AssertionError(str(error)) from None


@contextlib.contextmanager
def program_line(script: str, words: list[str]) -> Iterator[None]:
    """sys.argv and sys.path as the program would find them."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [str(ROOT / script), *words]
    sys.path.insert(0, str((ROOT / script).parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


def run(words: list[str]) -> tuple[int, str]:
    """Run one python command in this process, in the present folder; exit code and everything it printed."""
    printed = io.StringIO()
    code = 0
    with program_line(words[1], words[2:]), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
    return code, printed.getvalue()


def without_blocks(page: str) -> list[str]:
    """The lines of a page, those of fenced blocks empty."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.sub(r"```.*?```", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL).splitlines()


def links(page: str) -> list[tuple[int, str]]:
    """(line, target) of every link and picture of a page that is no address on the network; code is left out."""
    return [(number, match.group(1)) for number, line in enumerate(without_blocks(page), 1)
            for match in re.finditer(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line))
            if not match.group(1).startswith(("http://", "https://"))]


def anchors(page: str) -> set[str]:
    """Names of the headings of a page, as GitHub makes them."""
    heads = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line.lstrip("# ")) for line in without_blocks(page) if re.match("#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def pages() -> list[str]:
    """Every page that is tested, in the order in which they run (features.md writes the network that README.md uses)."""
    docs = sorted(os.path.relpath(p, ROOT) for p in (ROOT / "docs").glob("*.md"))
    first = ["docs/features.md", "README.md"]
    others = ["INSTALL.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md", "pretrained/README.md", "data/README.md",
              "ckpt/README.md", "tests/golden/README.md"]
    return first + [p for p in docs if p not in first] + others
