"""A few hundred changed files per reader; `python tests/fuzz/run.py` tries as many as one likes."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CASES = 200


def test_every_reader_refuses_or_reads_changed_files():
    script = Path(__file__).with_name("run.py")
    done = subprocess.run([sys.executable, str(script), "--cases", str(CASES), "--seed", "7"], capture_output=True, text=True,
                          check=False, timeout=600)
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) == 15
    for reader, cases, refused, accepted, faults, _ in rows:
        assert (int(cases), int(faults)) == (CASES, 0), reader
        assert min(int(refused), int(accepted)) > 3, f"{reader}: the mutations must reach both sides"
