"""``edgeqc train --weak`` from end to end on small synthetic surfaces: stages, resuming, and no mask file opened."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the toolkit trains")
pytest.importorskip("cv2", reason="the toolkit's opencv-python-headless")

from edge import cli
from edge.images import read_image, write_png
from edge.predictions import Predictions
from edge.samples import read_samples
from quantize.weak import job as weak_job

MASKS = "masks"
OPENED: list[str] = []
WATCHED: list[Path] = []


def _watch(event, arguments):
    """Notes every file below a watched folder that is opened, by whichever library (audit events, PEP 578)."""
    if event == "open" and WATCHED and isinstance(arguments[0], (str, bytes, Path)):
        path = Path(arguments[0].decode() if isinstance(arguments[0], bytes) else arguments[0])
        if any(folder in path.parents for folder in WATCHED):
            OPENED.append(path.name)


sys.addaudithook(_watch)


@pytest.fixture
def surfaces(tmp_path):
    """RGB, wider than high, more good than bad; every mask file is there and is garbage."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    (folder / MASKS).mkdir(parents=True)
    rows = []
    for index in range(72):
        defective = index % 4 == 0
        image = random.integers(110, 140, (40, 72, 3), dtype=np.uint8)
        if defective:
            top, left = random.integers(2, 26), random.integers(2, 54)
            image[top : top + 12, left : left + 14] = (20, 20, 60)
        write_png(folder / f"{index:03}.png", image)
        mask = f"{MASKS}/mask-{index:03}.png" if defective else ""
        if mask:
            (folder / mask).write_bytes(b"nobody may read this")
        split = ("train", "train", "val")[index // 4 % 3]
        rows.append((f"{index:03}.png", mask, int(defective), split, f"part-{index}"))
    with (folder / "samples.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "mask", "defective", "split", "group"), *rows])
    return folder


def train(data, out, *more):
    return cli.main(
        [
            *("train", "--weak", "--data", str(data), "--out", str(out), "--size", "nano"),
            *("--input-size", "64x32", "--epochs", "3", "--from-scratch", "--accelerator", "cpu"),
            *("--precision", "32-true", *more),
        ]
    )


@pytest.mark.slow
def test_masks_stay_shut_and_a_killed_training_goes_on(surfaces, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    WATCHED[:] = [surfaces]
    OPENED.clear()
    real, calls = weak_job.train, []

    def killed(job):
        calls.append(job.out.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(weak_job, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        weak_job.train_weak(
            weak_job.Job(
                data=surfaces,
                out=out,
                model={"name": "sample-centric", "size": "nano"},
                input_size=(64, 32),
                pretrained="",
                config=weak_job.TrainingConfig(epochs=3, accelerator="cpu", precision="32-true"),
            )
        )
    assert not out.exists()
    stages = tmp_path / "run.weak"
    first = {path: path.stat().st_mtime_ns for path in stages.glob("*/*") if path.is_file()}
    assert {path.parent.name[0] for path in first} == set("12345")

    monkeypatch.setattr(weak_job, "train", real)
    assert train(surfaces, out) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    WATCHED.clear()
    assert set(OPENED) == {"samples.csv", *(f"{i:03}.png" for i in range(72))}  # every photograph, no mask

    facts = json.loads((out / "run.json").read_text())
    assert facts["name"] == "run" and facts["input"] == {"width": 64, "height": 32, "channels": 3}
    assert list(facts["weak"]["stages"]) == sorted(path.parent.name for path in stages.glob("*/stage.json"))
    assert json.loads((out / "metrics.json").read_text())["masks"] == "pseudo"
    sheets = sorted((out / "weak").iterdir())
    assert [sheet.name[0] for sheet in sheets] == list("2357")
    assert all(read_image(sheet).std() > 5 for sheet in sheets)
    assert (
        cli.main(
            ["predict", str(out), "--data", str(surfaces), "--split", "val", "--out", str(tmp_path / "p.npz")]
        )
        == 0
    )
    assert (
        cli.main(["evaluate", str(out), "--data", str(surfaces), "--split", "val"]) == 2
    )  # now masks are read
    assert "samples.csv row" in capsys.readouterr().err


@pytest.mark.slow
def test_other_options_do_not_go_on(surfaces, tmp_path, monkeypatch, capsys):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(weak_job, "train_from_labels", dies)
    with pytest.raises(KeyboardInterrupt):
        train(surfaces, tmp_path / "run")
    assert train(surfaces, tmp_path / "run", "--seed", "1") == 2
    assert "training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"), [(("--devices", "2"), "one process"), (("--model", "none"), "none")]
)
def test_what_cannot_be_trained_is_refused(surfaces, tmp_path, capsys, more, said):
    assert train(surfaces, tmp_path / "run", *more) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run.weak").exists()


def test_plain_cam_leaves_what_the_quality_table_takes_up(surfaces, tmp_path):
    from quantize.weak.plain import train_plain_cam

    WATCHED[:] = [surfaces]
    OPENED.clear()
    training = weak_job.TrainingConfig(epochs=2, epoch_tiles=0, accelerator="cpu", precision="32-true")
    train_plain_cam(surfaces, tmp_path / "plain", training, "", ("val",))
    WATCHED.clear()
    assert not [name for name in OPENED if name.startswith("mask")]
    facts = json.loads((tmp_path / "plain" / "run" / "run.json").read_text())
    assert {"model", "input", "framing", "decision", "training", "created"} <= facts.keys()
    assert "history" in json.loads((tmp_path / "plain" / "run" / "metrics.json").read_text())
    predictions = Predictions.load(tmp_path / "plain" / "val.npz")
    samples = read_samples(surfaces, "val")
    assert predictions.sample_ids == tuple(sample.id for sample in samples)
    assert {mask.shape for mask in predictions.masks} == {(40, 72)}
    assert all(0 < mask.mean() < 1 for mask in predictions.masks)  # a share of each map's own range
    assert predictions.threshold == facts["decision"]["threshold"]
