"""Published layouts, as small trees in exactly their folders: the reader, the command line's way, and damage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge.errors import InputError
from edge.images import read_image
from edge.samples import read_samples
from quantize.data import layouts
from quantize.data.dataset import open_dataset, read_mask
from quantize.data.layouts.magnetic_tile import tell_tiles
from quantize.data.layouts.published import divide
from quantize.data.sizing import choose_input

pillow = pytest.importorskip("PIL.Image", reason="published data sets are PNG, JPEG and BMP: needs Pillow")

SIZE = (48, 40)  # width, height


def write(path: Path, seed: int, defect: bool | None = None, size=SIZE) -> None:
    """A photograph, or a mask where `defect` says whether it marks something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    if defect is None:
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)
    else:
        pixels = np.zeros((height, width), np.uint8)
        if defect:
            pixels[5:15, 6 : 12 + seed % 20] = 255
    pillow.fromarray(pixels).save(path)


def kolektor_sdd(root: Path) -> Path:
    for item in range(10):
        for part in range(4):
            name = root / f"kos{item + 1:02d}" / f"Part{part}"
            write(name.with_suffix(".jpg"), 10 * item + part)
            write(name.with_name(f"Part{part}_label.bmp"), part, defect=part == 2)
    return root


def kolektor_sdd2(root: Path) -> Path:
    for part, first, count in (("train", 10000, 30), ("test", 20000, 10)):
        for i in range(count):
            write(root / part / f"{first + i}.png", first + i)
            write(root / part / f"{first + i}_GT.png", i, defect=i % 3 == 0)
    write(root / "train" / "10003 (copy).png", 10003)
    write(root / "train" / "10003_GT (copy).png", 3, defect=True)
    return root


def mvtec_ad(root: Path) -> Path:
    for category in ("bottle", "grid"):
        for i in range(10):
            write(root / category / "train" / "good" / f"{i:03d}.png", i)
        for i in range(3):
            write(root / category / "test" / "good" / f"{i:03d}.png", 100 + i)
        for kind in ("broken_large", "contamination"):
            for i in range(10):
                write(root / category / "test" / kind / f"{i:03d}.png", 200 + i)
                write(root / category / "ground_truth" / kind / f"{i:03d}_mask.png", i, defect=True)
    (root / "readme.txt").write_text("MVTec AD")
    return root


def dagm_2007(root: Path) -> Path:
    for number in (1, 2):
        for part, first in (("Train", 11), ("Test", 1)):
            folder = root / f"Class{number}" / part
            lines = ["1"]
            for i in range(first, first + 10):
                defective = i % 3 == 0
                write(folder / f"{i:04d}.PNG", 100 * number + i)
                name = f"{i:04d}_label.PNG" if defective else "0"
                if defective:
                    write(folder / "Label" / name, i, defect=True)
                lines.append(f"{i}\t{int(defective)}\t{i:04d}.PNG\t{int(defective)}\t{name}")
            (folder / "Label" / "Labels.txt").write_text("\r\n".join(lines) + "\r\n")
    return root


def magnetic_tile(root: Path) -> Path:
    kinds = ("Blowhole", "Break", "Crack", "Fray", "Uneven", "Free")
    for tile in range(24):
        kind = kinds[tile % 6]
        for experiment in range(1, 7):
            name = root / f"MT_{kind}" / "Imgs" / f"exp{experiment}_num_{1000 * tile + 15 * experiment}.jpg"
            write(name, 100 * tile + experiment)
            write(name.with_suffix(".png"), tile, defect=kind != "Free")
    return root


BUILDERS = {f.__name__: f for f in (kolektor_sdd, kolektor_sdd2, mvtec_ad, dagm_2007, magnetic_tile)}


@pytest.fixture(params=BUILDERS)
def published(request, tmp_path) -> Path:
    return BUILDERS[request.param](tmp_path / request.param)


def test_a_published_folder_opens_as_a_data_set(published):
    dataset = open_dataset(published)
    for split in ("train", "val", "test"):
        assert {sample.defective for sample in dataset.split(split)} == {False, True}, split
    assert len(dataset.counts()) == 3 and set(dataset.sizes) == {SIZE}
    for sample in dataset.samples:
        assert sample.image == published / sample.id and not Path(sample.id).is_absolute()
        marked = sample.mask is not None and read_mask(sample).any()
        assert marked == sample.defective, sample.id
    assert len({sample.id for sample in dataset.samples}) == len(dataset.samples)
    layout = layouts.find_layout(published)
    assert layout.__name__.endswith(published.name)
    assert [f.text for f in dataset.findings if f.kind == "layout"] == [layout.NOTE]
    assert choose_input(dataset).framing.mode == "resize"


def test_groups_stay_together_and_splits_are_the_same_every_time(published, tmp_path):
    samples = open_dataset(published).samples
    splits: dict[str, set[str]] = {}
    for sample in samples:
        splits.setdefault(sample.group, set()).add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    again = BUILDERS[published.name](tmp_path / "elsewhere")
    assert [(s.id, s.split, s.group) for s in read_samples(again)] == [
        (s.id, s.split, s.group) for s in samples
    ]


def test_the_runtime_reads_it_without_being_told(published):
    assert [s.id for s in read_samples(published, "test")] == [
        s.id for s in open_dataset(published, "test").samples
    ]


def test_a_native_table_wins(published):
    image = read_samples(published)[0].id
    (published / "samples.csv").write_text(f"image,mask,defective,split\n{image},,0,train\n")
    dataset = open_dataset(published)
    assert [(s.id, s.row) for s in dataset.samples] == [(image, 2)] and not dataset.findings


def test_kolektor_sdd_is_split_by_item(tmp_path):
    samples = read_samples(kolektor_sdd(tmp_path / "d"))
    assert {s.group for s in samples} == {f"kos{i:02d}" for i in range(1, 11)}
    assert Counter(s.split for s in samples) == {"train": 24, "val": 8, "test": 8}
    assert {s.image.stem for s in samples if s.defective} == {"Part2"}


def test_kolektor_sdd2_keeps_its_test_part_and_leaves_the_copies_out(tmp_path):
    samples = read_samples(kolektor_sdd2(tmp_path / "d"))
    assert Counter(s.split for s in samples) == {"train": 24, "val": 6, "test": 10}
    assert {s.id.split("/")[0] for s in samples if s.split == "test"} == {"test"}
    assert sum(s.defective for s in samples if s.split == "val") == 2
    assert not [s.id for s in samples if "copy" in s.id or "GT" in s.id]


def test_mvtec_ad_says_that_its_protocol_is_not_kept(tmp_path):
    root = mvtec_ad(tmp_path / "d")
    samples = read_samples(root)
    by_kind = Counter((s.defect_type, s.split) for s in samples)
    assert by_kind["bottle/broken_large", "train"] == 5 and by_kind["bottle/broken_large", "test"] == 3
    assert by_kind["grid/contamination", "val"] == 2 and by_kind["grid/good", "test"] == 3
    assert all(s.split != "test" for s in samples if "/train/good/" in s.id)
    assert "not the published protocol" in open_dataset(root).findings[0].text
    one = read_samples(root / "bottle")
    assert len(one) * 2 == len(samples) and "broken_large" in {s.defect_type for s in one}


def test_dagm_believes_its_table(tmp_path):
    root = dagm_2007(tmp_path / "d")
    samples = read_samples(root)
    assert Counter(s.split for s in samples) == {"train": 16, "val": 4, "test": 20}
    assert {s.id for s in samples if s.defective and s.split == "test"} == {
        f"Class{c}/Test/{i:04d}.PNG" for c in (1, 2) for i in (3, 6, 9)
    }
    assert len(read_samples(root / "Class1")) == 20
    table = root / "Class1" / "Train" / "Label" / "Labels.txt"
    table.write_text(table.read_text().replace("13\t0\t0013.PNG\t0\t0\n", ""))
    with pytest.raises(InputError, match=r"0013\.PNG is not in .*Labels\.txt"):
        read_samples(root)
    table.write_text("1\n11\tyes\t0011.PNG\t0\t0\n")
    with pytest.raises(InputError, match="line 2 cannot be read"):
        read_samples(root)
    table.write_text("1\n11\t1\t0011.PNG\t1\t../../../secret.png\n")
    with pytest.raises(InputError, match="line 2 cannot be read"):
        read_samples(root)


def test_tiles_are_told_apart_by_their_numbers():
    tiles = tell_tiles(
        [
            "exp1_num_100",
            "exp3_num_130",
            "exp6_num_200",
            "exp1_num_230",
            "exp2_num_400",
            "cover",
            "exp2_num_400",
        ]
    )
    groups: dict[str, set[str]] = {}
    for name, tile in tiles.items():
        groups.setdefault(tile, set()).add(name)
    assert sorted(groups.values(), key=min) == [
        {"exp1_num_100", "exp3_num_130", "exp6_num_200"},
        {"exp1_num_230"},
        {"exp2_num_400"},
    ]


def test_the_tiles_of_real_names(mtd):
    samples = read_samples(mtd)
    tiles = tell_tiles(sample.image.stem for sample in samples)
    truth = {sample.image.stem: sample.group for sample in samples}
    order = sorted(tiles, key=lambda name: int(name.split("_")[2]))
    wrong = [(a, b) for a, b in zip(order, order[1:]) if (tiles[a] == tiles[b]) != (truth[a] == truth[b])]
    assert len(order) == len(samples)
    assert len(wrong) <= 3 and all(
        tiles[a] == tiles[b] for a, b in wrong
    )  # too large is safe, too small leaks


@pytest.mark.parametrize(
    ("builder", "victim"),
    [
        (kolektor_sdd, "kos03/Part1_label.bmp"),
        (kolektor_sdd2, "train/10004_GT.png"),
        (mvtec_ad, "grid/ground_truth/contamination/004_mask.png"),
        (dagm_2007, "Class2/Test/Label/0006_label.PNG"),
        (dagm_2007, "Class2/Test/Label/Labels.txt"),
        (dagm_2007, "Class1/Train/0013.PNG"),
        (magnetic_tile, "MT_Fray/Imgs/exp2_num_3030.png"),
    ],
)
def test_a_missing_file_is_named(builder, victim, tmp_path):
    root = builder(tmp_path / "d")
    (root / victim).unlink()
    with pytest.raises(InputError, match="is missing") as error:
        open_dataset(root)
    assert Path(victim).name in error.value.what


def test_damage_is_named(published):
    sample = next(s for s in read_samples(published) if s.defective)
    whole = sample.image.read_bytes()
    sample.image.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{sample.id}.*cannot be read"):
        open_dataset(published)
    sample.image.write_bytes(whole)
    write(sample.mask, 1, defect=True, size=(47, 40))
    with pytest.raises(InputError, match=rf"{sample.id}: the mask has another size"):
        open_dataset(published)
    sample.mask.unlink()
    outside = published.parent / "outside.png"
    write(outside, 1, defect=True)
    sample.mask.symlink_to(outside)
    with pytest.raises(InputError, match="leaves the data set"):
        open_dataset(published)


def test_other_folders_are_no_data_set(tmp_path):
    (tmp_path / "kos01").mkdir()
    (tmp_path / "MT_Free").mkdir()
    (tmp_path / "train").mkdir()
    assert layouts.find_layout(tmp_path) is None
    with pytest.raises(InputError, match="not a data set"):
        read_samples(tmp_path)


def test_two_layouts_in_one_folder_are_refused(tmp_path):
    kolektor_sdd(tmp_path)
    magnetic_tile(tmp_path)
    with pytest.raises(InputError, match="several published data sets") as error:
        read_samples(tmp_path)
    assert "KolektorSDD" in error.value.got and "Magnetic-Tile" in error.value.got


def test_shares_hold_in_every_kind_of_group(tmp_path):
    from fractions import Fraction

    samples = read_samples(magnetic_tile(tmp_path / "d"))
    shares = {"test": Fraction(1, 4), "val": Fraction(1, 4)}
    tiles = {(s.group, s.defect_type, s.split) for s in divide(samples, shares, "train")}
    assert Counter((kind, split) for _, kind, split in tiles) == {
        (kind, split): 2 if split == "train" else 1
        for kind in ("blowhole", "break", "crack", "fray", "uneven", "free")
        for split in ("train", "val", "test")
    }


def test_photographs_are_read_as_they_are(tmp_path):
    root = kolektor_sdd2(tmp_path / "d")
    sample = read_samples(root, "test")[0]
    assert np.array_equal(read_image(sample.image), np.array(pillow.open(root / sample.id)))
