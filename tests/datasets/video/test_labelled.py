"""Videos with labels burnt in: the label at its time and nowhere else; rate, times, size and rotation stay."""
from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from videos import make_video, turn

from libs.core.errors import UserError
from libs.datasets.video import encoding
from libs.datasets.video.decoding import probe, timed_pictures
from libs.datasets.video.labelled import draw_labels, write_labelled
from libs.utils.evaluation.subtitles import Cue

av = pytest.importorskip("av")
pytest.importorskip("cv2")
SIZE = (96, 128)
GREY = 150


def grey(path, **options):
    return make_video(path, size=SIZE, picture=lambda k: np.full((*SIZE, 3), GREY, np.uint8), **options)


def corner(picture: np.ndarray) -> float:
    """The darkest value of the corner where labels are."""
    return float(picture[:6, :6].mean())


def test_a_label_is_seen_while_it_lasts(tmp_path, capsys):
    source = grey(tmp_path / "a.mp4")  # 40 frames, 10 per second
    write_labelled(str(source), tmp_path / "b.mp4", [Cue(1000, 2000, "jump", 0.9)])
    labelled = [second for second, picture in timed_pictures(str(tmp_path / "b.mp4")) if corner(picture) < 80]
    assert labelled == pytest.approx(np.arange(10, 20) / 10)
    before, after = probe(str(source)), probe(str(tmp_path / "b.mp4"))
    assert (after.fps, after.width, after.height) == (before.fps, before.width, before.height)
    assert after.duration_s == pytest.approx(before.duration_s)
    assert "without its sound" in capsys.readouterr().err


def test_times_of_a_variable_rate_and_the_turn_of_a_phone_stay(tmp_path):
    times = [Fraction(k * k, 100) + Fraction(k, 20) for k in range(12)]
    source = grey(tmp_path / "a.mp4", times=times, frames=12)
    turn(source, 1)
    write_labelled(str(source), tmp_path / "b.mp4", [])
    written = list(timed_pictures(str(tmp_path / "b.mp4")))
    assert [second for second, _ in written] == pytest.approx([float(t) for t in times], abs=2e-3)
    assert written[0][1].shape == (SIZE[1], SIZE[0], 3)


def test_pixels_that_are_not_square_become_square(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), GREY, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    write_labelled(str(tmp_path / "a.mp4"), tmp_path / "b.mp4", [])
    assert (probe(str(tmp_path / "b.mp4")).height, probe(str(tmp_path / "b.mp4")).width) == (96, 192)
    turn(tmp_path / "a.mp4", 1)
    assert next(timed_pictures(str(tmp_path / "a.mp4")))[1].shape == (192, 96, 3)


def test_an_odd_size_gets_one_pixel_and_a_line_says_so(tmp_path, capsys):
    source = tmp_path / "a.mkv"
    make_video(source, size=(97, 128), codec="ffv1", pix_fmt="bgr0", picture=lambda k: np.full((97, 128, 3), GREY, np.uint8))
    write_labelled(str(source), tmp_path / "b.mp4", [])
    assert (probe(str(tmp_path / "b.mp4")).height, probe(str(tmp_path / "b.mp4")).width) == (98, 128)
    assert "odd size" in capsys.readouterr().err


def test_the_three_best_labels_below_each_other_and_letters_beyond_ascii():
    picture = np.full((*SIZE, 3), GREY, np.uint8)
    assert (draw_labels(picture, []) == picture).all()
    one, two = draw_labels(picture, ["jump"]), draw_labels(picture, ["jump", "turn"])
    assert (two == 0).sum() > 1.5 * (one == 0).sum()
    assert (draw_labels(picture, ["\u00fc\u0416\u03a9"]) != draw_labels(picture, ["???"])).any()
    tiny = draw_labels(np.full((10, 12, 3), GREY, np.uint8), ["a long label that does not fit"] * 3)
    assert tiny.shape == (10, 12, 3)


def test_a_broken_video_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="cannot be read as a video"):
        write_labelled(str(tmp_path / "a.mp4"), tmp_path / "b.mp4", [])
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_an_encoder_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(encoding, "CODEC", "no_such_codec")
    with pytest.raises(UserError, match=r"no_such_codec.*pip install"):
        encoding.encoder_library()
