"""`edgeqc demo`, made small: every verb of the story runs, and what it promises at the end is there."""

from __future__ import annotations

import json
import shutil

import pytest

pytest.importorskip("torch", reason="the demo trains")

from edge import cli

VERBS = (
    *("train", "evaluate", "export-openvino", "export-edgetpu", "export-tensorrt", "parity", "run"),
    *("keys", "bundle", "flash", "slots", "selftest"),
)


@pytest.mark.slow
def test_the_whole_way(tmp_path, monkeypatch, capsys):
    from targets import demo

    monkeypatch.setattr(demo, "SURFACES", 240)
    monkeypatch.setattr(demo, "EPOCHS", 4)
    code = cli.main(["demo", "--out", str(tmp_path / "demo"), "--json", str(tmp_path / "said.json")])
    said = json.loads((tmp_path / "said.json").read_text())
    codes = said["exit_codes"]
    assert set(codes.values()) <= {0, 3, 4}, codes  # so little training may miss a gate, nothing may break
    assert code == (3 if 3 in codes.values() else 0)
    assert [row["target"] for row in said["rows"]] == ["openvino", "edgetpu", "tensorrt"]
    assert [row["stand_in"] for row in said["rows"]] == [False, True, True]
    assert (tmp_path / "demo" / "picture.png").stat().st_size > 10_000
    assert "</html>" in (tmp_path / "demo" / "parity" / "report.html").read_text()
    if shutil.which("rauc") and shutil.which("mksquashfs") and code == 0:
        assert [codes[verb] for verb in VERBS] == [0] * len(VERBS)
    out = capsys.readouterr().out
    assert "report:" in out and "$ edgeqc train" in out
    assert "openvino 20" in out and out.count("stand-in, not verified on device") >= 2


def test_a_folder_that_is_not_the_demos_own_is_never_touched(tmp_path, capsys):
    (tmp_path / "precious.txt").write_text("mine")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert "not written by the demo" in capsys.readouterr().err
