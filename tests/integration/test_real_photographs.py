"""The way of the data on real photographs: the Magnetic-Tile-Defect set and a real pretrained encoder."""

from __future__ import annotations

import csv
import json

import pytest

from tiny_run import NO_BUDGET

pytest.importorskip("torch", reason="training needs the toolkit")

from edge import cli
from quantize.data.dataset import open_dataset


@pytest.fixture(scope="module")
def some_tiles(mtd, tmp_path_factory):
    """Every sixth group of the set, as a data set of its own that points at the same files."""
    folder = tmp_path_factory.mktemp("tiles")
    for name in ("images", "masks"):
        (folder / name).symlink_to((mtd / name).resolve())
    with (mtd / "samples.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if int(row["group"]) % 6 == 1]
    with (folder / "samples.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_the_check_finds_what_is_known_of_the_set(mtd):
    dataset = open_dataset(mtd)
    assert len(dataset.samples) == 1157
    assert dataset.counts()["test"] == {"good": 188, "defective": 72}
    (empty,) = [finding for finding in dataset.findings if finding.kind == "empty-mask"]
    names = {sample.image.stem for sample in dataset.samples if sample.row in empty.rows}
    assert names == {
        "exp3_num_45042",
        "exp4_num_45057",
        "exp4_num_124690",
        "exp4_num_352527",
    }


@pytest.mark.slow
def test_train_export_parity_and_run(some_tiles, pretrained, tmp_path):
    run, artifact = tmp_path / "run", tmp_path / "artifact"
    data = ("--data", str(some_tiles))
    train = ["train", *data, "--out", str(run), "--size", "nano", "--pretrained", str(pretrained)]
    assert cli.main([*train, "--input-size", "128", "--epochs", "2"]) == 0
    assert "pretrained encoder from" in json.loads((run / "run.json").read_text())["training"]["pretrained"]

    # Two epochs make faint verdicts: the budget is not what is tested here.
    export = ["export", str(run), "--target", "edgetpu", *data, "--out", str(artifact), *NO_BUDGET]
    assert cli.main(export) == 0
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["precision"] == "int8" and manifest["calibration"]["count"] >= 64

    out = tmp_path / "parity"
    parity = ["parity", str(artifact), "--reference", str(run), *data, "--out", str(out), *NO_BUDGET]
    assert cli.main(parity) == 0
    (row,) = json.loads((out / "parity.json").read_text())["artifacts"]
    assert row["stand_in"] and row["n"] > 20 and 0 <= row["mask_agreement_iou"] <= 1

    lines = tmp_path / "verdicts.jsonl"
    overlays = tmp_path / "overlays"
    sinks = ("--sink", f"jsonl:{lines}", "--sink", f"overlay:{overlays}")
    assert cli.main(["run", str(artifact), str(some_tiles), "--stand-in", "--limit", "5", *sinks]) == 0
    assert len(lines.read_text().splitlines()) == 5
    assert len(list(overlays.rglob("*.png"))) == 5
    assert cli.main(["selftest", str(artifact), "--stand-in"]) == 0
