"""Tools that need no network do their work, and start quickly, without PyTorch."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] != "torch", "imported torch"
sys.meta_path.insert(0, Refuse())
for line in sys.stdin.read().splitlines():
    sys.argv = line.split()
    sys.path[0] = "tools"
    try:
        runpy.run_path(f"tools/{sys.argv[0]}", run_name="__main__")
    except SystemExit as end:
        assert not end.code
"""


def test_evaluate_compare_diagnose_and_convert_run_without_torch(tmp_path):
    database, results = {}, [{}, {}]
    for i in range(12):
        database[f"v{i}"] = {"subset": "test", "duration": 60, "annotations": [{"segment": [5, 10], "label": "a"}]}
        for n in range(2):
            results[n][f"v{i}"] = [{"segment": [5 + n, 10], "label": "a", "score": 0.5 + i / 100}]
    (tmp_path / "truth.json").write_text(json.dumps({"database": database}))
    for n in range(2):
        (tmp_path / f"{n}.json").write_text(json.dumps({"results": results[n]}))
    (tmp_path / "labels.csv").write_text("video,start,end,label,duration,subset\na,1,2,run,60,train\nb,1,2,run,60,val\n")
    lines = [f"evaluate.py {tmp_path}/0.json {tmp_path}/truth.json",
             f"compare.py {tmp_path}/0.json {tmp_path}/1.json {tmp_path}/truth.json --resamples 100",
             f"diagnose.py {tmp_path}/0.json {tmp_path}/truth.json -o {tmp_path}/page.html",
             f"convert_annotations.py {tmp_path}/labels.csv -o {tmp_path}/converted.json", "fuse_actions.py --help"]
    done = subprocess.run([sys.executable, "-c", CODE], input="\n".join(lines), cwd=ROOT, env={"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").is_file()
    assert json.loads((tmp_path / "converted.json").read_text())["database"]["a"]
