"""tools/diagnose.py: the same mAP as tools/evaluate.py, files that hold what was printed, one error for what cannot be read."""
from __future__ import annotations

import json
import re

import compare
import diagnose
import evaluate
import numpy as np
import pytest
from helpers import one_error, run_script

NAMES = ["plain", "</script><script>alert(1)</script>", "<!-- & \u2028", "silent"]


def write_inputs(folder, seed=0):
    """Annotations of four videos, one without segments, and a predictions file with true and false positives."""
    rng = np.random.default_rng(seed)
    database, results = {}, {}
    for video in NAMES:
        starts = np.arange(0, 50, 10.0) + rng.uniform(0, 4, 5) if video != "silent" else []
        items = [{"segment": [s, s + 4 + i % 3], "label": ("jump", "<b>turn</b>")[i % 2]} for i, s in enumerate(starts)]
        database[video] = {"subset": "test", "duration": 60.0, "annotations": items}
        found = [{"segment": [a["segment"][0] + rng.normal(0, .6), a["segment"][1] + rng.normal(0, .6)], "label": a["label"],
                  "score": float(rng.uniform(.3, 1))} for a in items for _ in range(2)]
        found += [{"segment": [s, s + 3], "label": "jump", "score": float(rng.uniform(0, .8))} for s in rng.uniform(0, 55, 12)]
        results[video] = found
    (folder / "truth.json").write_text(json.dumps({"database": database}))
    (folder / "found.json").write_text(json.dumps({"results": results}))
    return folder / "found.json", folder / "truth.json"


def run(capsys, *argv):
    return run_script(capsys, diagnose.main, "diagnose.py", *map(str, argv))


def embedded(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_numbers_are_those_of_evaluate(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    code, out, err = run(capsys, found, truth, "-o", tmp_path / "r.html", "--tiou", .4, .5, .6)
    assert (code, err) == (0, "")
    run_script(capsys, evaluate.main, "evaluate.py", str(found), str(truth), "--tiou", ".4", ".5", ".6", "--json",
               str(tmp_path / "e.json"))
    expected, content = json.loads((tmp_path / "e.json").read_text()), json.loads((tmp_path / "r.json").read_text())
    one = content["predictions"][0]
    assert (one["mAP"], one["average_mAP"]) == (expected["mAP"], expected["average_mAP"])
    assert dict(zip(content["classes"], np.transpose(one["AP"]).tolist(), strict=True)) == expected["per_class_AP"]
    assert 0 < one["average_mAP"] < 1
    assert f"found: average mAP {100 * one['average_mAP']:.2f}" in out
    assert [sum(row) for row in one["kind_counts"]] == [expected["counts"]["predictions"]] * 3
    total = one["average_mAP"] + np.mean(one["gains"]["removed"]["all errors and missed"])
    assert total == pytest.approx(1)

    page = (tmp_path / "r.html").read_text()
    shown = embedded(page)
    assert {k: v for k, v in shown.items() if k != "timeline"} == content
    assert [v["id"] for v in shown["timeline"]["videos"]] == sorted(NAMES)
    assert f"({len(page.encode()) / 1e6:.1f} MB)" in out


def test_the_page_is_whole_and_trusts_no_name(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    run(capsys, found, truth, "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<script") == page.count("</script>") == 2
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<b>" not in page
    assert not any(mark in page for mark in ("/*STYLE*/", "/*DATA*/", "/*SCRIPTS*/"))
    assert not re.search(r"""(src|href)=["'](?!#|data:,)|@import|url\(|fetch\(|XMLHttpRequest""", page)
    assert set(re.findall(r"https?://[^\s\"']*", page)) == {"http://www.w3.org/2000/svg"}, "a name, never fetched"
    first = (tmp_path / "r.html").read_bytes()
    run(capsys, found, truth, "-o", tmp_path / "r.html")
    assert (tmp_path / "r.html").read_bytes() == first


def test_the_timeline_holds_the_best_and_says_how_many_there_are(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    run(capsys, found, truth, "-o", tmp_path / "r.html", "--most-drawn", 5, "--tiou", .5, .7)
    content = embedded((tmp_path / "r.html").read_text())
    entries = json.loads(found.read_text())["results"]
    for video in content["timeline"]["videos"]:
        (one,) = video["predictions"]
        best = sorted((e["score"] for e in entries[video["id"]]), reverse=True)[:5]
        assert one["score"] == pytest.approx(best, abs=1e-5)
        assert one["total"] == len(entries[video["id"]])
        assert all(re.fullmatch("[0-5]{2}", kinds) for kinds in one["kinds"])
        hits = [sum(kinds[t] == "0" for kinds in one["kinds"]) for t in (0, 1)]
        seen = [sum(f[t] == "1" for f in video["ground_truth"]["found"][0]) for t in (0, 1)]
        assert all(h <= s for h, s in zip(hits, seen, strict=True))
    content = embedded_of(tmp_path, capsys, found, truth)
    whole = content["predictions"][0]["kind_counts"][0]
    drawn = [k[0] for v in content["timeline"]["videos"] for k in v["predictions"][0]["kinds"]]
    assert [drawn.count(str(k)) for k in range(6)] == whole, "with no cap the page holds every prediction"


def embedded_of(folder, capsys, found, truth, *argv):
    code, _, err = run(capsys, found, truth, "-o", folder / "r.html", *argv)
    assert code == 0, err
    return embedded((folder / "r.html").read_text())


def test_two_files(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = write_inputs(tmp_path / "other", seed=1)
    both = embedded_of(tmp_path, capsys, found, truth, "--compare", other)
    alone = [embedded_of(tmp_path, capsys, path, truth) for path in (found, other)]
    assert [one["name"] for one in both["predictions"]] == [f"{tmp_path.name}/found", "other/found"]
    for one, single in zip(both["predictions"], alone, strict=True):
        assert {k: v for k, v in one.items() if k != "name"} == {k: v for k, v in single["predictions"][0].items() if k != "name"}
    assert both["predictions"][0]["mAP"] != both["predictions"][1]["mAP"]
    named = embedded_of(tmp_path, capsys, found, truth, "--compare", other, "--names", "ours", "theirs")
    assert [one["name"] for one in named["predictions"]] == ["ours", "theirs"]


def write_many(folder, seed):
    """The videos of `write_inputs` and ten more."""
    found, truth = write_inputs(folder, seed)
    for path, key in ((truth, "database"), (found, "results")):
        document = json.loads(path.read_text())
        document[key] |= {f"{name}{i}": document[key][name] for name in ("plain", NAMES[1]) for i in range(5)}
        path.write_text(json.dumps(document))
    return found, truth


def test_intervals_and_the_paired_comparison_are_those_of_compare(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (found, truth), (other, _) = write_many(tmp_path, 0), write_many(tmp_path / "other", 1)
    code, out, _ = run(capsys, found, truth, "--compare", other, "--names", "ours", "theirs", "-o", tmp_path / "r.html")
    assert code == 0
    content = json.loads((tmp_path / "r.json").read_text())
    run_script(capsys, compare.main, "compare.py", str(found), str(other), str(truth), "--resamples", "1000", "--names", "ours",
               "theirs", "--json", str(tmp_path / "c.json"))
    expected = json.loads((tmp_path / "c.json").read_text())
    assert content["paired"] == {key: expected[key] for key in content["paired"]}
    for one in content["predictions"]:
        low, high = one["confidence"]["average_mAP"]
        assert low < one["average_mAP"] < high
        assert f"95 % interval of the average mAP: {100 * low:.2f} to {100 * high:.2f} (resampling 14 videos)" in out
    low, high = content["paired"]["average"]["interval"]
    assert content["verdict"] in out
    assert f"{100 * low:+.2f} to {100 * high:+.2f}" in content["verdict"]


def test_too_few_videos_for_an_interval(tmp_path, capsys):
    content = embedded_of(tmp_path, capsys, *write_inputs(tmp_path), "--compare", tmp_path / "found.json", "--names", "a", "b")
    assert content["paired"] is content["verdict"] is None
    assert [one["confidence"] for one in content["predictions"]] == [None, None]


@pytest.mark.parametrize(("files", "names"), [
    (["a/b/scores.csv.gz"], ["scores"]), (["a/x.json", "b/x.json"], ["a/x", "b/x"]),
    (["x.json", "x.csv"], ["A: x.json", "B: x.csv"]), (["a/x.json", "x.json"], ["a/x", "x"]),
    (["ckpt/one/eval/epoch_030_ema/predictions.json"], ["one/epoch_030_ema"]), (["predictions.json"], ["predictions"]),
    (["/a/one/eval/e_ema/predictions.json", "/a/two/eval/e_ema/eval_results.pkl"], ["one/e_ema", "two/e_ema"]),
    (["/predictions.json"], ["predictions"]),
    (["k/a/s/eval/e/predictions.json", "k/b/s/eval/e/predictions.json"], ["a/s/e", "b/s/e"])])
def test_how_predictions_are_called(files, names):
    assert diagnose._names(files, None) == names


def test_media_of_a_folder(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    (tmp_path / "plain.webm").write_bytes(b"")
    content = embedded_of(tmp_path, capsys, found, truth, "--video-folder", tmp_path)
    media = {v["id"]: v.get("media") for v in content["timeline"]["videos"]}
    assert media == {**dict.fromkeys(NAMES), "plain": (tmp_path / "plain.webm").as_uri()}


def test_figures(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    code, _, err = run(capsys, found, truth, "--compare", found, "--names", "a $x$", "b", "-o", tmp_path / "r.html",
                       "--png-folder", tmp_path / "png")
    assert (code, err) == (0, "")
    pictures = {p.name: p.read_bytes() for p in (tmp_path / "png").iterdir()}
    assert set(pictures) == {f"{name}.png" for name in ("map", "classes", "precision_recall", "profile", "gains", "sensitivity",
                                                        "misses")}
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in pictures.values())
    assert len(set(pictures.values())) == 7


def spoil(change):
    def apply(found, truth):
        document = json.loads(found.read_text())
        change(document["results"])
        found.write_text(json.dumps(document))
    return apply


def scaled(factor):
    def change(results):
        for entries in results.values():
            for entry in entries:
                entry["segment"] = [factor * max(t, .1) for t in entry["segment"]]
    return spoil(change)


BAD = {
    "unknown video": (spoil(lambda r: r.update(plian=r.pop("plain"))), [],
                      ["'plian' (did you mean 'plain'?)", "--allow-unknown"]),
    "score": (spoil(lambda r: r["plain"][3].update(score=1.5)), [], ["entry 3 (video plain)", "score is 1.5", "[0, 1]"]),
    "milliseconds": (scaled(1000), [], ["times must be seconds", "milliseconds"]),
    "shares": (scaled(1 / 60), [], ["times must be seconds", "shares of the duration"]),
    "another format": (lambda f, t: f.write_text('[{"video": "plain"}]'), [], ["found.json", '"results"']),
    "truncated": (lambda f, t: f.write_text('{"results": {"plain": [{"segm'), [], ["found.json", "not valid JSON"]),
    "annotations instead": (lambda f, t: f.write_text(t.read_text()), [], ["found.json", '"results"']),
    "no file": (lambda f, t: f.unlink(), [], ["found.json", "no such predictions JSON"]),
    "empty annotations": (lambda f, t: t.write_text('{"database": {}}'), [], ["truth.json", "empty"]),
    "split": (None, ["--split", "tset"], ["no split 'tset'"]),
    "tiou": (None, ["--tiou", "30"], ["tIoU thresholds [30.0]", "not above 1"]),
    "names": (None, ["--names", "a", "b"], ["--names a b: expected 1"]),
    "video folder": (None, ["--video-folder", "nowhere"], ["--video-folder nowhere: no such folder"]),
    "most drawn": (None, ["--most-drawn", "0"], ["--most-drawn 0"]),
    "output over predictions": (None, ["-o", "found.html"], ["found.json", "would be replaced"]),
    "output over annotations": (None, ["-o", "./truth.HTML"], ["truth.json", "would be replaced"]),
    "figures in a file": (None, ["--png-folder", "found.json"], ["found.json", "cannot be written"]),
    "output": (None, ["-o", "r.json"], ["-o r.json", ".html"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_error_and_writes_nothing(kind, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, truth = write_inputs(tmp_path)
    change, extra, words = BAD[kind]
    if change:
        change(found, truth)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    message = one_error(*run(capsys, found, truth, *(() if "-o" in extra else ("-o", "r.html")), *extra)[::2])
    assert all(word in message for word in words), message
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_evaluate_refuses_another_time_unit_too(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    scaled(1000)(found, truth)
    code, out, err = run_script(capsys, evaluate.main, "evaluate.py", str(found), str(truth))
    assert "these look like milliseconds" in one_error(code, err)
    assert out == ""


def test_allowed_unknown_videos_count_as_false_positives(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    spoil(lambda r: r.update(extra=[{"segment": [0, 5], "label": "jump", "score": .95}]))(found, truth)
    code, _, err = run(capsys, found, truth, "-o", tmp_path / "r.html", "--allow-unknown")
    assert code == 0
    assert ": 1 predictions of 1 videos that split test does not have count as false positives (extra)" in err
    content = embedded((tmp_path / "r.html").read_text())
    assert content["timeline"]["videos"][-1]["predictions"][0]["kinds"] == ["55555"]


def test_ranks_instead_of_scores(tmp_path, capsys):
    found, truth = write_inputs(tmp_path)
    plain = embedded_of(tmp_path, capsys, found, truth)["predictions"][0]

    def raise_scores(results):
        for entries in results.values():
            for entry in entries:
                entry["score"] = 40 * entry["score"] - 7
    spoil(raise_scores)(found, truth)
    ranked = embedded_of(tmp_path, capsys, found, truth, "--unique-rank-scores")["predictions"][0]
    assert ranked["AP"] == plain["AP"]
