"""What the runtime reads and writes: predictions, tables, images, folders, golden vectors."""

from __future__ import annotations

import csv
import json
import stat
import struct
import zlib

import numpy as np
import pytest

import tiny
from edge import golden, open_inspector, preprocess
from edge.artifact import Artifact
from edge.backend import find_backend
from edge.errors import ArtifactError, BackendUnavailableError, FormatVersionError, InputError
from edge.folders import json_bytes, jsonable, new_file, new_folder, write_atomically, write_json
from edge.images import read_image, write_png
from edge.inspector import Inspector
from edge.predictions import Predictions, predict
from edge.samples import dataset_digest, read_samples

# --- predictions


def some_predictions(sizes=((3, 5), (1, 1), (8, 8), (7, 2))) -> Predictions:
    rng = np.random.default_rng(0)
    return Predictions(
        tuple(f"images/é {i}.png" for i in range(len(sizes))),
        tuple("ab" * 32 for _ in sizes),
        rng.normal(size=len(sizes)).astype(np.float32),
        tuple(rng.random(size) < 0.5 for size in sizes),
        np.ones(len(sizes), np.float32),
        {"name": "n", "threshold": 0.25, "mask_threshold": 0.0, "ran_on": {"device": "CPU"}, "split": "test"},
    )


@pytest.mark.parametrize("sizes", [(), ((3, 5),), ((3, 5), (1, 1), (8, 8), (7, 2))])
def test_predictions_round_trip(tmp_path, sizes):
    written = some_predictions(sizes)
    written.save(tmp_path / "p.npz")
    read = Predictions.load(tmp_path / "p.npz")
    assert read.sample_ids == written.sample_ids and read.image_sha256 == written.image_sha256
    np.testing.assert_array_equal(read.defect_logits, written.defect_logits)
    np.testing.assert_array_equal(read.latency_ms, written.latency_ms)
    for got, wanted in zip(read.masks, written.masks):
        np.testing.assert_array_equal(got, wanted)
    assert {key: value for key, value in read.meta.items() if key != "format"} == written.meta
    assert read.threshold == 0.25


def test_predictions_of_another_format_version(tmp_path):
    some_predictions().save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as members:
        changed = {key: members[key] for key in members.files}
    changed["meta"] = np.array(str(changed["meta"]).replace("edgeqc-predictions/1", "edgeqc-predictions/2"))
    np.savez(tmp_path / "q.npz", **changed)
    with pytest.raises(FormatVersionError, match="unknown format"):
        Predictions.load(tmp_path / "q.npz")


@pytest.mark.parametrize("spoil", ["short", "missing", "sizes", "negative", "meta", "object"])
def test_predictions_whose_members_do_not_fit(tmp_path, spoil):
    some_predictions().save(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as members:
        changed = {key: members[key] for key in members.files}
    if spoil == "short":
        changed["defect_logit"] = changed["defect_logit"][:-1]
    elif spoil == "missing":
        del changed["mask_bits"]
    elif spoil == "sizes":
        changed["mask_size"] = changed["mask_size"] * 1000
    elif spoil == "negative":
        changed["mask_size"] = -changed["mask_size"]
    elif spoil == "meta":
        changed["meta"] = np.array("[]")
    else:
        changed["sample_id"] = np.array([{}], dtype=object)
    np.savez(tmp_path / "q.npz", **changed)
    with pytest.raises((InputError, FormatVersionError)) as caught:
        Predictions.load(tmp_path / "q.npz")
    assert "q.npz" in str(caught.value)


# --- the table


def table(folder, rows, header="image,mask,defective,split,group"):
    """A data set whose images are one byte long: the table never looks inside."""
    (folder / "i").mkdir(parents=True)
    for name in "abcdm":
        (folder / "i" / name).write_bytes(name.encode())
    (folder / "samples.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return folder


def test_samples_are_read(tmp_path):
    folder = table(tmp_path / "d", ["i/a,i/m,1,train,g1", "i/b,,0,test,", " i/c , ,0, test ,g2"])
    samples = read_samples(folder)
    assert [(s.id, s.defective, s.split, s.group, s.row) for s in samples] == [
        ("i/a", True, "train", "g1", 2),
        ("i/b", False, "test", "i/b", 3),
        ("i/c", False, "test", "g2", 4),
    ]
    assert samples[0].mask == folder / "i/m" and samples[1].mask is None
    assert [s.id for s in read_samples(folder, "test")] == ["i/b", "i/c"]


def test_dataset_digest_sees_bytes_labels_and_splits(tmp_path):
    folder = table(tmp_path / "d", ["i/a,i/m,1,train,g1", "i/b,,0,test,"])
    before = dataset_digest(read_samples(folder))
    assert dataset_digest(read_samples(folder)) == before
    (folder / "i/m").write_bytes(b"other")
    changed = dataset_digest(read_samples(folder))
    assert changed != before
    other = table(tmp_path / "e", ["i/a,i/m,0,train,g1", "i/b,,0,test,"])
    assert dataset_digest(read_samples(other)) not in (before, changed)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["i/a,,2,test,"], "row 2"),
        (["i/a,,0,test,", "i/nothing,,0,test,"], "row 3"),
        (["i/a,i/nothing,1,test,"], "row 2"),
        (["i/a,,0,,"], "no split"),
        ([",,0,test,"], "no image"),
        (["../d/i/a,,0,test,"], "leaves the data set"),
        (["/etc/passwd,,0,test,"], "leaves the data set"),
        (["i/a,,0,test,", "i/a,,0,test,"], "listed already in row 2"),
        (["i/a,,0,test,g", "i/b,,0,train,g"], "in two splits"),
    ],
)
def test_bad_rows_are_named(tmp_path, rows, said):
    with pytest.raises(InputError, match=said):
        read_samples(table(tmp_path / "d", rows))


def test_bad_tables(tmp_path):
    with pytest.raises(InputError, match="not a data set"):
        read_samples(tmp_path / "nothing")
    with pytest.raises(InputError, match="lacks columns"):
        read_samples(table(tmp_path / "a", ["i/a,0"], header="image,defective"))
    with pytest.raises(InputError, match="no sample in split"):
        read_samples(table(tmp_path / "b", ["i/a,,0,test,"]), "val")
    folder = table(tmp_path / "c", [])
    (folder / "samples.csv").write_bytes(b"image,mask,defective,split\n\xff\xfe,,0,test\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_samples(folder)


def test_table_with_a_byte_order_mark_and_quotes(tmp_path):
    folder = table(tmp_path / "d", [])
    with (folder / "samples.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(
            [["image", "mask", "defective", "split"], ["i/a", "", "1", "t"]]
        )
    assert read_samples(folder)[0].defective


# --- images


@pytest.mark.parametrize("shape", [(4, 7), (4, 7, 3), (1, 1)])
def test_png_that_we_write_is_read_by_pillow(tmp_path, shape):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    write_png(tmp_path / "x.png", image)
    np.testing.assert_array_equal(np.array(image_module.open(tmp_path / "x.png")), image)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), image)


def test_png_that_we_write_follows_the_specification(tmp_path):
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    write_png(tmp_path / "x.png", image)
    data = (tmp_path / "x.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert (
            zlib.crc32(kind + body) == struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0]
        )
        chunks[kind], place = body, place + 12 + length
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (3, 2, 8, 0, 0, 0, 0)
    assert zlib.decompress(chunks[b"IDAT"]) == bytes([0, 0, 1, 2, 0, 3, 4, 5])


def test_netpbm_and_npy_need_no_pillow(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    np.save(tmp_path / "x.npy", image)
    (tmp_path / "x.ppm").write_bytes(b"P6\n# a comment\n4 2\n255\n" + image.tobytes())
    (tmp_path / "x.pgm").write_bytes(b"P5 4 2 255\n" + image[..., 0].tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "x.npy"), image)
    np.testing.assert_array_equal(read_image(tmp_path / "x.ppm"), image)
    np.testing.assert_array_equal(read_image(tmp_path / "x.pgm"), image[..., 0])
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8")
    with pytest.raises(BackendUnavailableError, match="Pillow") as caught:
        read_image(tmp_path / "x.jpg")
    assert 'pip install "edgeqc[images]"' in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA", "CMYK"])
def test_every_8_bit_mode_becomes_grey_or_rgb(tmp_path, mode):
    image_module = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    picture = image_module.new("RGB", (5, 4), (200, 100, 50)).convert(mode)
    name = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    picture.save(name)
    image = read_image(name)
    assert image.dtype == np.uint8
    assert image.shape in ((4, 5), (4, 5, 3))


# --- folders


def test_new_folder_appears_whole_or_not_at_all(tmp_path):
    with new_folder(tmp_path / "a" / "out") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "out").exists()
    assert (tmp_path / "a" / "out" / "x").read_text() == "1"
    assert stat.S_IMODE((tmp_path / "a" / "out").stat().st_mode) == 0o755
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a" / "other") as folder:
        (folder / "x").write_text("1")
        raise KeyboardInterrupt
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "a" / "out"):
        pass
    with new_folder(tmp_path / "a" / "out", replace=True) as folder:
        (folder / "y").write_text("2")
    assert [p.name for p in (tmp_path / "a" / "out").iterdir()] == ["y"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["out"]


def test_new_file_appears_whole_or_not_at_all(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(RuntimeError), new_file(tmp_path / "x") as stream:
        stream.write("half")
        raise RuntimeError
    assert (tmp_path / "x").read_text() == "old"
    with new_file(tmp_path / "x") as stream:
        stream.write("new")
        assert (tmp_path / "x").read_text() == "old"
    assert (tmp_path / "x").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_unwritable_targets_are_input_errors(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (
        lambda: write_atomically(tmp_path / "file" / "x", b""),
        lambda: write_atomically(tmp_path, b""),
        lambda: new_file(tmp_path).__enter__(),
        lambda: new_folder(tmp_path / "file" / "x").__enter__(),
    ):
        with pytest.raises(InputError):
            write()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json_has_no_nan(tmp_path):
    facts = {
        "a": float("nan"),
        "b": [np.float32(1.5), np.int64(2)],
        3: tmp_path,
        "c": float("inf"),
        "d": np.array(4),
    }
    wanted = {"a": None, "b": [1.5, 2], "3": str(tmp_path), "c": None, "d": 4}
    assert jsonable(facts) == wanted
    write_json(tmp_path / "x.json", facts)
    assert json.loads((tmp_path / "x.json").read_text()) == wanted
    assert json_bytes({"é": 1}).decode() == '{\n  "é": 1\n}\n'


# --- through the runtime


@pytest.fixture(params=["openvino", "litert", "onnx"])
def inspector(request, make_artifact):
    probe = find_backend(request.param).probe()
    if not probe.usable:
        pytest.skip(probe.reason)
    with open_inspector(make_artifact(request.param, with_golden=True)) as opened:
        yield opened


@pytest.fixture
def any_artifact(make_artifact):
    for name in ("onnx", "openvino", "litert"):
        if find_backend(name).probe().usable:
            return make_artifact(name, with_golden=True)
    return pytest.skip("no backend is usable here")


def test_golden_vectors_hold_on_the_machine_that_made_them(any_artifact):
    artifact = Artifact.open(any_artifact)
    with open_inspector(any_artifact) as inspector:
        checks = golden.check(inspector, artifact.path, artifact.manifest["golden"])
        assert golden.bytes_required(inspector, artifact.manifest["golden"])
    assert [check.passed and check.bytes_equal for check in checks] == [True, True]


def test_golden_vectors_notice_another_network(any_artifact):
    artifact = Artifact.open(any_artifact)
    facts = artifact.manifest["golden"]
    with open_inspector(any_artifact) as inspector:
        run = inspector.session._run

        def drifted(feeds):
            return {name: array + array.dtype.type(12) for name, array in run(feeds).items()}

        inspector.session._run = drifted
        checks = golden.check(inspector, artifact.path, facts)
    assert not any(check.passed or check.bytes_equal for check in checks)


def test_golden_vectors_notice_another_framing(any_artifact, monkeypatch):
    artifact = Artifact.open(any_artifact)
    with open_inspector(any_artifact) as inspector:
        right = preprocess.frame_to_tiles

        def off_by_one(frame, spec, framing):
            tiles, placement = right(frame, spec, framing)
            return tiles ^ np.uint8(1), placement

        monkeypatch.setattr(preprocess, "frame_to_tiles", off_by_one)
        checks = golden.check(inspector, artifact.path, artifact.manifest["golden"])
    assert not any(check.input_equal for check in checks)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04half", b"\x93NUMPY nothing"])
def test_damaged_golden_vectors_are_an_artifact_error(any_artifact, damage):
    artifact = Artifact.open(any_artifact)
    (any_artifact / "golden.npz").write_bytes(damage)
    session = find_backend(artifact.backend).load(artifact)
    parts = (session, artifact.input, artifact.framing, artifact.decision)
    with (
        Inspector(*parts, digest=artifact.digest, name=artifact.name) as inspector,
        pytest.raises(ArtifactError, match="golden"),
    ):
        golden.check(inspector, artifact.path, artifact.manifest["golden"])


def test_predictions_are_what_the_inspector_says(inspector, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = ["image,mask,defective,split"]
    for index, (kind, size) in enumerate(
        [("good", (32, 32)), ("defective", (32, 32)), ("defective", (50, 70))]
    ):
        np.save(folder / f"{index}.npy", tiny.frame(kind, *size))
        rows.append(f"{index}.npy,,{int(kind == 'defective')},test")
    (folder / "samples.csv").write_text("\n".join(rows))
    predictions = predict(inspector, read_samples(folder, "test"))
    assert predictions.verdicts.tolist() == [False, True, True]
    assert [mask.shape for mask in predictions.masks] == [(32, 32), (32, 32), (50, 70)]
    assert predictions.meta["ran_on"]["sdk"]
    inspection = inspector.inspect(tiny.frame())
    assert predictions.defect_logits[1] == np.float32(inspection.score)
    np.testing.assert_array_equal(predictions.masks[1], inspection.mask)
