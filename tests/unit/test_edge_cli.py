"""The runtime's verbs through the command line: what they print, what they write, and their exit codes."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import tiny
from edge import bench, cli, doctor, sinks
from edge.backend import find_backend
from edge.errors import InputError
from edge.predictions import Predictions
from edge.samples import read_samples
from edge.sources import find_pictures


@pytest.fixture
def artifact(make_artifact):
    for name in ("onnx", "openvino", "litert"):
        if find_backend(name).probe().usable:
            return make_artifact(name, with_golden=True)
    return pytest.skip("no backend is usable here")


@pytest.fixture
def pictures(tmp_path):
    """Four frames in a folder tree, one hidden, and a text file."""
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    np.save(folder / "b" / "good.npy", tiny.frame("good", 64, 48))
    np.save(folder / "bad.npy", tiny.frame("defective", 64, 48))
    np.save(folder / "b" / "bad.npy", tiny.frame("defective"))
    np.save(folder / ".hidden.npy", tiny.frame("good"))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "i").mkdir(parents=True)
    rows = ["image,mask,defective,split"]
    for index, kind in enumerate(["good", "defective", "good"]):
        np.save(folder / "i" / f"{index}.npy", tiny.frame(kind))
        rows.append(f"i/{index}.npy,,{int(kind == 'defective')},{'test' if index else 'train'}")
    (folder / "samples.csv").write_text("\n".join(rows))
    return folder


def call(capsys, *arguments) -> tuple[int, str, str]:
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


# --- run


def test_run_prints_one_json_line_for_each_image(capsys, artifact, pictures):
    code, out, err = call(capsys, "run", artifact, pictures)
    assert code == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["image"], line["verdict"]) for line in lines] == [
        ("b/bad.npy", "defective"),
        ("b/good.npy", "good"),
        ("bad.npy", "defective"),
    ]
    first = lines[0]
    assert set(first) == {
        "image", "verdict", "defective", "score", "threshold", "mask_area_px", "regions", "timings", "ran_on"
    }  # fmt: skip
    assert first["defective"] is True and first["score"] >= first["threshold"]
    assert first["mask_area_px"] == sum(region["area_px"] for region in first["regions"])
    assert set(first["timings"]) == {"preprocess_ms", "inference_ms", "postprocess_ms"}
    assert first["ran_on"]["stand_in"] is False
    assert "3 images: 2 defective, 1 good, 0 not inspected" in err


def test_run_takes_a_file_a_data_set_and_a_limit(capsys, artifact, pictures, data):
    code, out, _ = call(capsys, "run", artifact, pictures / "bad.npy")
    assert code == 0 and [json.loads(line)["image"] for line in out.splitlines()] == ["bad.npy"]
    code, out, _ = call(capsys, "run", artifact, data, "--limit", 2)
    assert code == 0 and [json.loads(line)["image"] for line in out.splitlines()] == ["i/0.npy", "i/1.npy"]


def test_run_writes_sinks(capsys, artifact, pictures, tmp_path):
    lines, overlays = tmp_path / "out" / "lines.jsonl", tmp_path / "overlays"
    code, out, _ = call(capsys, "run", artifact, pictures, "--sink", f"jsonl:{lines}", "--overlays", overlays)
    assert code == 0 and out == ""
    assert [json.loads(line)["image"] for line in lines.read_text().splitlines()] == [
        "b/bad.npy", "b/good.npy", "bad.npy"
    ]  # fmt: skip
    names = sorted(file.relative_to(overlays).as_posix() for file in overlays.rglob("*.png"))
    assert names == ["b/bad.npy.png", "b/good.npy.png", "bad.npy.png"]
    # and the images are still on standard output when only pictures were asked for
    code, out, _ = call(capsys, "run", artifact, pictures, "--sink", f"overlay:{tmp_path / 'more'}")
    assert code == 0 and len(out.splitlines()) == 3


def test_run_with_json_prints_nothing_else_there(capsys, artifact, pictures):
    code, out, _ = call(capsys, "run", artifact, pictures, "--json")
    assert code == 0
    report = json.loads(out)
    assert report["images"] == 3 and report["defective"] == 2 and len(report["results"]) == 3


def test_run_with_json_into_a_file(capsys, artifact, pictures, tmp_path):
    code, out, _ = call(capsys, "run", artifact, pictures, "--json", tmp_path / "r.json")
    assert code == 0 and len(out.splitlines()) == 3
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 3


# --- predict


def test_predict_writes_a_prediction_file(capsys, artifact, data, tmp_path):
    out_file = tmp_path / "deep" / "p.npz"
    code, out, _ = call(capsys, "predict", artifact, "--data", data, "--split", "test", "--out", out_file)
    assert code == 0 and "2 samples of test, 1 called defective" in out
    predictions = Predictions.load(out_file)
    assert predictions.sample_ids == ("i/1.npy", "i/2.npy")
    assert predictions.verdicts.tolist() == [True, False]
    assert predictions.meta["split"] == "test" and re.fullmatch("[0-9a-f]{64}", predictions.meta["dataset"])
    code, out, _ = call(
        capsys, "predict", artifact, "--data", data, "--split", "test", "--out", out_file, "--json"
    )
    assert code == 0 and json.loads(out)["n"] == 2


# --- bench


def test_bench_measures(capsys, artifact):
    code, out, _ = call(capsys, "bench", artifact, "--frames", 5, "--warmup", 1, "--json")
    assert code == 0
    facts = json.loads(out)
    for part in ("latency_ms", "preprocess_ms", "inference_ms", "postprocess_ms"):
        assert set(facts[part]) == {"p50", "p90", "p99", "mean"}
        assert 0 < facts[part]["p50"] <= facts[part]["p99"]
    assert facts["latency_ms"]["mean"] == pytest.approx(
        sum(facts[f"{part}_ms"]["mean"] for part in ("preprocess", "inference", "postprocess"))
    )
    assert facts["throughput_fps"] > 0 and facts["first_result_ms"] >= facts["load_ms"] > 0
    assert facts["rss_mib"] > 1 and facts["peak_rss_mib"] > 1
    assert 100 < facts["size_bytes"] < 20_000
    assert facts["frame"] == {"width": 32, "height": 32, "content": "golden frames"}
    assert facts["ran_on"]["sdk"]


def test_bench_of_a_size_and_of_photographs(capsys, artifact, data):
    code, out, _ = call(capsys, "bench", artifact, "--frames", 2, "--frame", "40x30", "--json")
    assert code == 0
    assert json.loads(out)["frame"] == {"width": 40, "height": 30, "content": "random pixels"}
    code, out, _ = call(capsys, "bench", artifact, "--frames", 2, "--data", data)
    assert code == 0 and "3 photographs" in out and "p99" in out


@pytest.mark.parametrize(
    "arguments", [["--frames", "0"], ["--frame", "40"], ["--frame", "0x4"], ["--frames", "x"]]
)
def test_bench_usage_errors(capsys, artifact, arguments):
    code, _, err = call(capsys, "bench", artifact, *arguments)
    assert code == 2 and "usage" in err


def test_bench_says_whether_the_latency_budget_is_kept(make_artifact):
    facts = {
        "name": "n", "frames": 1, "frame": {"width": 1, "height": 1, "content": "x"}, "throughput_fps": 1.0,
        "first_result_ms": 1.0, "rss_mib": 1.0, "peak_rss_mib": 1.0, "size_bytes": 1, "temperature_c": 71.5,
        "ran_on": {"device": "d", "sdk": "s", "version": "v", "stand_in": True}, "latency_budget_ms": 5.0,
        **{f"{p}_ms": {"p50": 1.0, "p90": 2.0, "p99": 9.0, "mean": 1.0}
           for p in ("latency", "preprocess", "inference", "postprocess")},
    }  # fmt: skip
    text = bench.table(facts)
    assert "exceeded at p99" in text and "72 C" in text and "stand-in, not verified on device" in text
    assert "kept at p99" in bench.table({**facts, "latency_budget_ms": 10.0})


def test_temperature_is_the_hottest_zone(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "THERMAL", tmp_path)
    assert bench.temperature_c() is None
    for zone, value in (
        ("thermal_zone0", "41000\n"),
        ("thermal_zone1", "68500\n"),
        ("thermal_zone2", "off\n"),
    ):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "temp").write_text(value)
    assert bench.temperature_c() == 68.5


# --- doctor


def test_doctor_lists_every_backend(capsys):
    from edge.backend import backends

    code, out, _ = call(capsys, "doctor", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["healthy"]
    assert [row["name"] for row in facts["backends"]] == sorted(backends())
    for row in facts["backends"]:
        assert row["usable"] or (row["reason"] and row["fix"])
    code, out, _ = call(capsys, "doctor")
    assert code == 0 and all(name in out for name in backends())


def test_doctor_requires(capsys, monkeypatch):
    for module in find_backend("onnx").sdk_modules:
        monkeypatch.setitem(sys.modules, module, None)
    code, out, _ = call(capsys, "doctor", "--require", "onnx")
    assert code == 4
    assert "MISSING" in out and 'pip install "edgeqc[onnx]"' in out
    code, _, err = call(capsys, "doctor", "--require", "abacus")
    assert code == 4 and "abacus" in err


def pycoral(monkeypatch, folder) -> None:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, "pycoral", None)
    monkeypatch.delitem(sys.modules, "pycoral")


def test_doctor_knows_the_wrong_pycoral_by_its_contents(tmp_path, monkeypatch, capsys):
    (tmp_path / "pycoral").mkdir()
    (tmp_path / "pycoral" / "__init__.py").write_text("raise RuntimeError('never imported')")
    pycoral(monkeypatch, tmp_path)
    (note,) = [note for note in doctor.examine()["notes"] if "pycoral" in note["what"]]
    assert "coral-reef" in note["what"] and note["fix"].startswith("pip uninstall pycoral")
    code, out, _ = call(capsys, "doctor")
    assert code == 0 and "coral-reef" in out


def test_doctor_says_nothing_of_google_s_pycoral(tmp_path, monkeypatch):
    (tmp_path / "pycoral" / "utils").mkdir(parents=True)
    (tmp_path / "pycoral" / "__init__.py").write_text("")
    (tmp_path / "pycoral" / "utils" / "edgetpu.py").write_text("raise ImportError('no TPU here')")
    pycoral(monkeypatch, tmp_path)
    assert not [note for note in doctor.examine()["notes"] if "pycoral" in note["what"]]


# --- the command line itself


def test_unknown_verbs_and_missing_arguments_are_usage_errors(capsys):
    assert call(capsys, "juggle")[0] == 2
    assert call(capsys)[0] == 2
    assert call(capsys, "run")[0] == 2


def test_errors_as_json(capsys, tmp_path):
    code, out, err = call(capsys, "bench", tmp_path / "nothing", "--json")
    assert code == 2
    error = json.loads(out)["error"]
    assert error["kind"] == "ArtifactError" and str(tmp_path / "nothing") in error["what"]
    assert "edgeqc bench:" in err and "Traceback" not in err


def test_defects_of_ours_are_not_hidden(monkeypatch, capsys):
    def broken(required):
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "examine", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])


def test_closed_pipe_ends_quietly(artifact, pictures):
    program = f"{sys.executable} -m edge.cli run {artifact} {pictures} | head -c 1"
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in result.stderr and "BrokenPipe" not in result.stderr


def test_verbs_load_nothing_they_do_not_need():
    program = "import sys, edge.commands; print(sorted({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    for heavy in ("torch", "openvino", "onnxruntime", "ai_edge_litert", "PIL", "quantize", "targets"):
        assert f"'{heavy}'" not in result.stdout


# --- sources and sinks


def test_sources(pictures, data, tmp_path):
    assert [p.name for p in find_pictures(pictures)] == ["b/bad.npy", "b/good.npy", "bad.npy"]
    assert [p.name for p in find_pictures(data)] == [s.id for s in read_samples(data)]
    with pytest.raises(InputError, match="no source"):
        find_pictures(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image"):
        find_pictures(tmp_path / "empty")


@pytest.mark.parametrize("uri", ["jsonl", "jsonl:", "overlay:", "ftp:x", "", "mqtt://broker"])
def test_unknown_sinks(uri):
    with pytest.raises(InputError, match="sink"):
        sinks.check_sink(uri)
