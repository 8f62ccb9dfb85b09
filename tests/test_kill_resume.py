"""The kill test in short: real processes, a few SIGKILLs, a SIGTERM and a damaged checkpoint (benchmarks/kill_resume.py)."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import write_config, write_data

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def test_killed_and_resumed_runs_lose_nothing(tmp_path):
    config = write_config(tmp_path / "tiny.yaml", write_data(tmp_path), output_folder="./ckpt")
    options = {"--config": config, "--kills": 4, "--stops": 1, "--damage": 1, "--epochs": 3, "--seed": 3,
               "--set": "train_cfg.dropout=0.2", "--json": tmp_path / "out.json"}
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_resume.py"), *(str(x) for pair in options.items() for x in pair)]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    counts = {row["what"]: row["times"] for row in result["rows"]}
    assert result["losses"] == []
    assert sum(n for what, n in counts.items() if what.startswith(("kills", "stops"))) == 5
    assert counts["finished runs, compared"] >= 1
    assert counts["starts"] >= 6
    assert not (tmp_path / "ckpt").exists()  # it works in a folder of its own
