"""Data sets that are wrong: one message that names the row; what is only suspicious is counted."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import InputError
from edge.images import write_png
from edge.preprocess import Framing, InputSpec
from quantize.data.dataset import open_dataset
from quantize.data.framed import frame_samples

HEADER = "image,mask,defective,split,group"
ROWS = ("a.png,a_mask.png,1,train,1", "b.png,,0,train,2", "c.png,c_mask.png,1,val,3", "d.png,,0,val,4")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcd":
        write_png(tmp_path / f"{name}.png", rng.integers(0, 255, (24, 32), dtype=np.uint8))
    mask = np.zeros((24, 32), np.uint8)
    mask[4:8, 5:20] = 255
    for name in "ac":
        write_png(tmp_path / f"{name}_mask.png", mask)
    write_rows(tmp_path, ROWS)
    return tmp_path


def write_rows(folder, rows, header=HEADER):
    (folder / "samples.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def test_a_sound_one(folder):
    dataset = open_dataset(folder)
    assert dataset.counts() == {"train": {"good": 1, "defective": 1}, "val": {"good": 1, "defective": 1}}
    assert not dataset.findings and len(dataset.digest) == 64


def test_a_mask_of_another_size(folder):
    write_png(folder / "c_mask.png", np.zeros((24, 31), np.uint8))
    with pytest.raises(InputError, match=r"row 4.*another size") as error:
        open_dataset(folder)
    assert "32 x 24" in error.value.wanted and "31 x 24" in error.value.got


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("a.png,a_mask.png,1,train,1", "b.png,,0,val,1"), r"row 3.*group 1 is in two splits"),
        (("a.png,a_mask.png,1,train,1", "gone.png,,0,val,2"), r"row 3.*missing"),
        (("a.png,gone.png,1,train,1",), r"row 2.*missing"),
        (("a.png,a_mask.png,yes,train,1",), r"row 2.*0 or 1"),
        (("a.png,a_mask.png,1,,1",), r"row 2.*split"),
        (("a.png,,0,train,1", "a.png,,0,train,1"), r"row 3.*already"),
        (("../a.png,,0,train,1",), r"row 2.*leaves"),
    ],
)
def test_a_row_that_cannot_be_used(folder, change, message):
    write_rows(folder, change)
    with pytest.raises(InputError, match=message):
        open_dataset(folder)


def test_a_missing_column(folder):
    write_rows(folder, ("a.png,1,train",), "image,defective,split")
    with pytest.raises(InputError, match="lacks columns"):
        open_dataset(folder)


@pytest.mark.parametrize("which", ["b.png", "a_mask.png"])
def test_an_unreadable_image_names_its_row(folder, which):
    data = (folder / which).read_bytes()
    (folder / which).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"row [23].*cannot be read"):
        open_dataset(folder)


def test_no_folder_and_no_split(folder, tmp_path):
    with pytest.raises(InputError, match="not a data set"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no sample in split"):
        open_dataset(folder, "test")


def test_what_is_suspicious_is_counted_with_its_rows(folder):
    write_png(folder / "a_mask.png", np.zeros((24, 32), np.uint8))
    (folder / "d.png").write_bytes((folder / "b.png").read_bytes())
    write_rows(folder, (*ROWS[:2], "c.png,,1,val,3", "d.png,c_mask.png,0,val,4"))
    findings = {finding.kind: finding for finding in open_dataset(folder).findings}
    assert {kind: finding.rows for kind, finding in findings.items()} == {
        "empty-mask": (2,),
        "no-mask": (4,),
        "good-with-mask": (5,),
        "duplicate-image": (5,),
    }
    assert "1 x defective, but the mask is empty" in str(findings["empty-mask"])


def test_the_digest_sees_pixels_labels_and_splits(folder):
    before = open_dataset(folder).digest
    write_png(folder / "b.png", np.zeros((24, 32), np.uint8))
    pixels = open_dataset(folder).digest
    write_rows(folder, (*ROWS[:3], "d.png,,0,train,4"))
    assert len({before, pixels, open_dataset(folder).digest}) == 3


def test_a_frame_that_does_not_fit_the_framing_names_its_row(folder):
    samples = open_dataset(folder).split("train")
    with pytest.raises(InputError, match=r"row 2.*wrong size"):
        frame_samples(samples, InputSpec(32, 32), Framing("exact"))


def test_tiles_know_which_of_them_is_defective(folder):
    samples = open_dataset(folder).split("train")
    framed = frame_samples(samples, InputSpec(16, 16), Framing("tile"))
    # 24 x 32 in tiles of 16: two rows of two; the defect lies in rows 4..7, columns 5..19.
    assert len(framed) == 8 and framed.sample.tolist() == [0] * 4 + [1] * 4
    assert framed.defective.tolist()[:4] == [True, True, False, False]
    assert not framed.defective[4:].any() and framed.mask_known.all()
    assert framed.coverage[0].max() == 255 and framed.coverage[4:].max() == 0


def test_a_defective_frame_without_a_mask_gives_no_tile(folder):
    write_rows(folder, ("a.png,,1,train,1", "b.png,,0,train,2"))
    samples = open_dataset(folder).split("train")
    assert set(frame_samples(samples, InputSpec(16, 16), Framing("tile")).sample.tolist()) == {1}
    whole = frame_samples(samples, InputSpec(16, 16), Framing("resize"))
    assert whole.defective.tolist() == [True, False] and whole.mask_known.tolist() == [False, True]


def test_without_masks_no_mask_file_is_opened(folder, monkeypatch):
    from edge import samples
    from quantize.data import dataset as module

    opened = []
    for place in (module, samples):
        monkeypatch.setattr(place, "sha256", lambda path: opened.append(path.name) or str(path))
    monkeypatch.setattr(
        module, "read_image", lambda path: opened.append(path.name) or np.zeros((4, 5), np.uint8)
    )
    dataset = open_dataset(folder, masks=False)
    assert sorted(set(opened)) == ["a.png", "b.png", "c.png", "d.png"]
    assert all(sample.mask is None for sample in dataset.samples)
    assert dataset.sizes == ((5, 4),) * 4 and not [f for f in dataset.findings if "mask" in f.kind]
