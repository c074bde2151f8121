"""``edgeqc train`` and ``edgeqc evaluate`` on bad input: one message, the documented code, nothing written."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("torch", reason="the training side needs torch")

from edge import cli
from quantize.data.synthetic import write_surfaces

SMALL = ("--size", "nano", "--input-size", "32", "--epochs", "1", "--batch-size", "8", "--from-scratch")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_surfaces(tmp_path_factory.mktemp("data") / "surfaces", count=48, size=32, seed=2)


@pytest.fixture(scope="module")
def run(sound, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert cli.main(["train", "--data", str(sound), "--out", str(out), *SMALL]) == 0
    return out


@pytest.fixture
def data(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "data")


def edit_row(folder, row, change):
    """Change the cells of a line of the table, counted from 1 with the header."""
    lines = (folder / "samples.csv").read_text().splitlines()
    lines[row - 1] = ",".join(change(lines[row - 1].split(",")))
    (folder / "samples.csv").write_text("\n".join(lines) + "\n")


def halve(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def no_folder(folder):
    shutil.rmtree(folder)


def broken_image(folder):
    halve(folder / "images" / "surface-00002.png")


def missing_image(folder):
    (folder / "images" / "surface-00002.png").unlink()


def group_in_two_splits(folder):
    edit_row(folder, 3, lambda cells: [*cells[:3], "other", *cells[4:]])


def bad_label(folder):
    edit_row(folder, 4, lambda cells: [*cells[:2], "maybe", *cells[3:]])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (no_folder, "not a data set"),
        (broken_image, "row 4"),
        (missing_image, "row 4"),
        (group_in_two_splits, "row 3"),
        (bad_label, "row 4"),
    ],
)
def test_bad_data(data, run, tmp_path, capsys, spoil, named):
    spoil(data)
    out = tmp_path / "out"
    assert cli.main(["train", "--data", str(data), "--out", str(out), *SMALL]) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("edgeqc train:") == 1 and "Traceback" not in message
    assert not list(tmp_path.glob("*out*"))
    if spoil not in (broken_image, missing_image):  # evaluate reads its own split only
        assert cli.main(["evaluate", str(run), "--data", str(data), "--split", "val"]) == 2


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--model", "imaginary"), 2, "imaginary"),
        (("--precision", "int3"), 2, "int3"),
        (("--pretrained", "nowhere.tflite"), 2, "nowhere.tflite"),
        (("--framing", "exact", "--input-size", "64"), 2, "wrong size"),
    ],
)
def test_bad_options(sound, tmp_path, capsys, options, code, named):
    small = [word for word in SMALL if word != "--from-scratch" or "--pretrained" not in options]
    out = tmp_path / "out"
    assert cli.main(["train", "--data", str(sound), "--out", str(out), *small, *options]) == code
    assert named in capsys.readouterr().err and not list(tmp_path.glob("*out*"))


def test_missing_hardware_is_code_4(sound, tmp_path, capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    out = tmp_path / "out"
    assert cli.main(["train", "--data", str(sound), "--out", str(out), *SMALL, "--accelerator", "cuda"]) == 4
    assert not list(tmp_path.glob("*out*"))


def test_an_existing_out_is_left_alone(sound, run, capsys):
    before = (run / "run.json").read_bytes()
    assert cli.main(["train", "--data", str(sound), "--out", str(run), *SMALL]) == 2
    assert "exists already" in capsys.readouterr().err and (run / "run.json").read_bytes() == before


def test_what_is_in_the_way_of_the_checkpoint_is_left_alone(sound, tmp_path, capsys):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    assert cli.main(["train", "--data", str(sound), "--out", str(tmp_path / "out"), *SMALL]) == 2
    assert "in the way" in capsys.readouterr().err
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["run.json", "model.safetensors"])
def test_a_truncated_run(sound, run, tmp_path, capsys, name):
    copy = shutil.copytree(run, tmp_path / "copy")
    halve(copy / name)
    assert cli.main(["evaluate", str(copy), "--data", str(sound), "--split", "val"]) == 2
    message = capsys.readouterr().err
    assert name in message and "Traceback" not in message


def test_a_missing_run_and_a_missing_split(sound, run, tmp_path, capsys):
    assert cli.main(["evaluate", str(tmp_path / "nowhere"), "--data", str(sound)]) == 2
    assert cli.main(["evaluate", str(run), "--data", str(sound), "--split", "holiday"]) == 2
    assert "holiday" in capsys.readouterr().err


def test_json_alone_on_standard_output(sound, run, capsys):
    import json

    assert cli.main(["evaluate", str(run), "--data", str(sound), "--split", "val", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["n"] > 0 and metrics.keys() == {"n", "positives", "sample", "seg"}
