"""Images, data sets, outputs and prediction files that are not what they should be, on every verb."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tiny
from edge import cli
from edge.artifact import Artifact, write_manifest
from edge.backend import find_backend
from edge.errors import EdgeError
from edge.images import read_image
from edge.predictions import Predictions


@pytest.fixture
def artifact(make_artifact):
    for name in ("onnx", "openvino", "litert"):
        if find_backend(name).probe().usable:
            return make_artifact(name)
    return pytest.skip("no backend is usable here")


def bad_images() -> dict[str, bytes]:
    """File name to bytes; none of them is an 8-bit grey or RGB image."""
    import io

    def npy(array) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    whole = npy(tiny.frame())
    huge = whole.replace(b"(32, 32)", b"(99999999999999, 9)"[:8])
    return {
        "empty.npy": b"",
        "text.npy": b"this is no image",
        "cut.npy": whole[:-100],
        "head.npy": whole[:20],
        "huge.npy": huge,
        "pickle.npy": npy(np.array([{}], dtype=object)),
        "float.npy": npy(np.zeros((4, 4), np.float32)),
        "wide.npy": npy(np.zeros((4, 4), np.uint16)),
        "flat.npy": npy(np.zeros(4, np.uint8)),
        "four.npy": npy(np.zeros((4, 4, 4), np.uint8)),
        "none.npy": npy(np.zeros((0, 4), np.uint8)),
        "empty.pgm": b"",
        "short.pgm": b"P5 10 10 255\n123",
        "deep.pgm": b"P5 1 1 65535\n00",
        "ascii.pgm": b"P2 1 1 255\n7",
        "giant.pgm": b"P5 " + b"9" * 5000 + b" 1 255\n0",
    }


def bad_pictures() -> dict[str, bytes]:
    """The same for formats that Pillow reads."""
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    import io

    found = {"text.png": b"this is no image", "empty.jpg": b""}
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".bmp", "BMP"), (".tif", "TIFF")):
        stream = io.BytesIO()
        image_module.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(
            stream, kind
        )
        found[f"cut{suffix}"] = stream.getvalue()[: len(stream.getvalue()) // 2]
    stream = io.BytesIO()
    image_module.fromarray(np.zeros((4, 4), np.uint16)).save(stream, "PNG")
    found["deep.png"] = stream.getvalue()
    return found


@pytest.mark.parametrize("name", bad_images())
def test_images_that_cannot_be_read(tmp_path, name, artifact, capsys):
    file = tmp_path / name
    file.write_bytes(bad_images()[name])
    check_refused_everywhere(file, artifact, capsys)


@pytest.mark.parametrize(
    "name", ["text.png", "empty.jpg", "cut.png", "cut.jpg", "cut.bmp", "cut.tif", "deep.png"]
)
def test_pictures_that_cannot_be_read(tmp_path, name, artifact, capsys):
    file = tmp_path / name
    file.write_bytes(bad_pictures()[name])
    check_refused_everywhere(file, artifact, capsys)


def check_refused_everywhere(file, artifact, capsys):
    """On `run`, `predict` and `bench`: exit 2, the file named, nothing written."""
    folder, out = file.parent, file.parent / "out"
    (folder / "samples.csv").write_text(f"image,mask,defective,split\n{file.name},,0,test\n")
    for arguments in (
        ["run", artifact, file, "--sink", f"jsonl:{out / 'x.jsonl'}", "--overlays", out / "o"],
        ["predict", artifact, "--data", folder, "--split", "test", "--out", out / "p.npz"],
        ["bench", artifact, "--frames", "1", "--data", folder, "--json", out / "b.json"],
    ):
        assert cli.main([str(argument) for argument in arguments]) == 2
        stdout, stderr = capsys.readouterr()
        assert "Traceback" not in stderr and stdout == ""
        assert file.name in stderr or arguments[0] == "bench"
        assert not out.exists() or not list(out.rglob("*"))


def test_one_unreadable_image_does_not_cost_the_others(tmp_path, artifact, capsys):
    source, out = tmp_path / "pictures", tmp_path / "out"
    source.mkdir()
    np.save(source / "a.npy", tiny.frame("defective"))
    (source / "b.npy").write_bytes(b"broken")
    np.save(source / "c.npy", tiny.frame("good"))
    lines = out / "x.jsonl"
    code = cli.main(
        ["run", str(artifact), str(source), "--sink", f"jsonl:{lines}", "--overlays", str(out / "o")]
    )
    stderr = capsys.readouterr().err
    assert code == 2
    assert "1 of 3 images" in stderr and "b.npy" in stderr
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line.get("verdict") for line in found] == ["defective", None, "good"]
    assert "b.npy" in found[1]["error"]
    assert sorted(file.name for file in (out / "o").iterdir()) == ["a.npy.png", "c.npy.png"]


@pytest.mark.parametrize("framing", [{"mode": "exact"}, {"mode": "tile", "overlap": 0}])
def test_frames_of_the_wrong_size(tmp_path, artifact, capsys, framing):
    write_manifest(artifact, {**Artifact.open(artifact).manifest, "framing": framing})
    np.save(tmp_path / "small.npy", tiny.frame("good", 16, 16))
    check_refused_everywhere(tmp_path / "small.npy", artifact, capsys)


@pytest.mark.parametrize("target", ["file/x", "existing"])
def test_outputs_that_cannot_be_written(tmp_path, artifact, capsys, target):
    (tmp_path / "file").write_text("")
    (tmp_path / "existing").mkdir()
    np.save(tmp_path / "a.npy", tiny.frame())
    (tmp_path / "samples.csv").write_text("image,mask,defective,split\na.npy,,0,test\n")
    out = str(tmp_path / target)
    for arguments in (
        ["run", str(artifact), str(tmp_path / "a.npy"), "--overlays", out],
        ["run", str(artifact), str(tmp_path / "a.npy"), "--sink", f"jsonl:{out}"],
        ["predict", str(artifact), "--data", str(tmp_path), "--split", "test", "--out", out],
        ["bench", str(artifact), "--frames", "1", "--json", out],
    ):
        assert cli.main(arguments) == 2
        stderr = capsys.readouterr().err
        assert out in stderr and "Traceback" not in stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != artifact.parent.name) == [
        "a.npy", "existing", "file", "samples.csv"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "A", "nowhere"],
        ["run", "A", "D", "--sink", "carrier-pigeon:loft"],
        ["run", "A", "D", "--json", "--sink", "jsonl:-"],
        ["predict", "A", "--data", "nowhere", "--split", "test", "--out", "p.npz"],
        ["predict", "A", "--data", "D", "--split", "nosuch", "--out", "p.npz"],
        ["bench", "A", "--data", "nowhere"],
        ["bench", "A", "--warmup", "-1"],
    ],
)
def test_bad_arguments(tmp_path, artifact, capsys, monkeypatch, arguments):
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "a.npy", tiny.frame())
    (data / "samples.csv").write_text("image,mask,defective,split\na.npy,,0,test\n")
    monkeypatch.chdir(tmp_path)
    names = {"A": str(artifact), "D": str(data)}
    before = sorted(tmp_path.rglob("*"))
    assert cli.main([names.get(argument, argument) for argument in arguments]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def saved(tmp_path) -> bytes:
    rng = np.random.default_rng(0)
    predictions = Predictions(
        ("a", "b"),
        ("0" * 64, "1" * 64),
        np.array([0.5, -1], np.float32),
        (rng.random((8, 9)) < 0.5, rng.random((3, 3)) < 0.5),
        np.ones(2, np.float32),
        {"name": "n", "threshold": 0.0, "mask_threshold": 0.0},
    )
    predictions.save(tmp_path / "p.npz")
    return (tmp_path / "p.npz").read_bytes()


def test_damaged_prediction_files_never_end_in_a_traceback(tmp_path):
    """One byte at a time: refused with one message, or (in padding) read as it was written."""
    whole = saved(tmp_path)
    original = Predictions.load(tmp_path / "p.npz")
    refused = 0
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 0xFF
        (tmp_path / "q.npz").write_bytes(bytes(changed))
        try:
            read = Predictions.load(tmp_path / "q.npz")
        except EdgeError as error:
            assert error.exit_code == 2 and "q.npz" in str(error)
            refused += 1
        else:
            assert read.sample_ids == original.sample_ids
            np.testing.assert_array_equal(read.defect_logits, original.defect_logits)
    assert refused > len(whole) // 6


def test_truncated_prediction_files_are_refused(tmp_path):
    whole = saved(tmp_path)
    for length in range(0, len(whole), 13):
        (tmp_path / "q.npz").write_bytes(whole[:length])
        with pytest.raises(EdgeError, match=r"q\.npz"):
            Predictions.load(tmp_path / "q.npz")
    with pytest.raises(EdgeError, match="no prediction file"):
        Predictions.load(tmp_path / "nothing.npz")


def test_random_bytes_are_no_image(tmp_path):
    rng = np.random.default_rng(0)
    for suffix in (".npy", ".pgm", ".ppm"):
        for _ in range(50):
            (tmp_path / f"x{suffix}").write_bytes(rng.bytes(int(rng.integers(0, 300))))
            with pytest.raises(EdgeError):
                read_image(tmp_path / f"x{suffix}")
