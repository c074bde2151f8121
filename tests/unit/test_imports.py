"""Who may import whom, and how little the device needs: numpy alone, on the oldest and the newest Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OLDEST, NEWEST = (3, 9), (3, 13)
# Standard library and numpy: what `import edge` may load.
ALLOWED = {"numpy", "edge"}
# The runtime's own suite; it needs numpy and pytest, and runs the backends whose SDKs there are.
RUNTIME_SUITE = ("tests/contract", "tests/unit/test_edge_*.py", "tests/hostile/test_edge_*.py")

SDKS = "edgeqc[images,openvino,litert,onnx] @ "

LIST_MODULES = (
    "import sys; before = set(sys.modules); {statement}; "
    "names = {{name.split('.')[0] for name in set(sys.modules) - before}}; "
    "print(' '.join(sorted(names - set(sys.stdlib_module_names))))"
)


def test_import_contracts():
    lint = Path(sys.executable).with_name("lint-imports")
    if not lint.exists():
        pytest.skip("import-linter is not installed")
    result = subprocess.run([str(lint), "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names came with Python 3.10")
@pytest.mark.parametrize(
    "statement",
    [
        "import edge",
        "import edge.cli",
        "import edge.commands, edge.bench, edge.doctor, edge.sinks, edge.golden, edge.predictions",
        "from edge.backend import backends; backends()",
    ],
)
def test_the_runtime_imports_nothing_heavier_than_numpy(statement):
    program = LIST_MODULES.format(statement=statement)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = {name for name in result.stdout.split() if not name.startswith("_")}
    assert loaded <= ALLOWED, f"{statement} loads {sorted(loaded - ALLOWED)}"


def interpreters() -> dict[tuple[int, int], Path]:
    """Python versions that are there: $EDGEQC_PYTHONS (separated like PATH), PATH, and pyenv's."""
    candidates = [Path(entry) for entry in os.environ.get("EDGEQC_PYTHONS", "").split(os.pathsep) if entry]
    for major, minor in (OLDEST, NEWEST):
        found = shutil.which(f"python{major}.{minor}")
        candidates += [Path(found)] if found else []
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates += sorted(pyenv.glob("versions/*/bin/python"))
    versions: dict[tuple[int, int], Path] = {}
    for candidate in candidates:
        try:
            answer = subprocess.run(
                [str(candidate), "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"],
                capture_output=True,
                text=True,
                timeout=30,
            )
        except OSError:
            continue
        if re.fullmatch(
            r"\d+ \d+\n", answer.stdout
        ):  # pyenv's shim of a version that is not chosen says nothing
            major, minor = map(int, answer.stdout.split())
            versions.setdefault((major, minor), candidate)
    return versions


@pytest.fixture(scope="module", params=[OLDEST, NEWEST], ids=lambda version: "python{}.{}".format(*version))
def device(request, tmp_path_factory):
    """A throw-away environment with edgeqc, numpy and pytest alone, and a copy of the tests beside it."""
    found = interpreters().get(request.param)
    if found is None:
        pytest.skip("no Python {}.{} here; name one in EDGEQC_PYTHONS".format(*request.param))
    home = tmp_path_factory.mktemp("device")
    source = home / "source"
    wanted = ("edge", "quantize", "targets", "firmware_bridge", "pyproject.toml", "README.md", "LICENSE")
    for name in wanted:
        place = ROOT / name
        if place.is_dir():
            shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, source / name)
    shutil.copytree(ROOT / "tests", home / "suite" / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    (home / "suite" / "pytest.ini").write_text(
        "[pytest]\naddopts = -q -p no:cacheprovider\nmarkers =\n    slow: x\n    hardware: x\n"
    )
    subprocess.run([str(found), "-m", "venv", str(home / "venv")], check=True, capture_output=True)
    install(home, str(source), "pytest>=8")
    return home


def install(home: Path, *what: str) -> None:
    command = [str(home / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", *what]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"cannot install {' '.join(what)}: {result.stderr.strip().splitlines()[-1:]}")


def suite(home: Path) -> str:
    """Run the runtime's suite there and return what pytest said."""
    folder = home / "suite"
    files = [
        str(path.relative_to(folder)) for pattern in RUNTIME_SUITE for path in sorted(folder.glob(pattern))
    ]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))
    }
    result = subprocess.run(
        [str(home / "venv" / "bin" / "python"), "-m", "pytest", "-m", "not slow", "-rs", *files],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_the_runtime_s_suite_with_numpy_alone(device):
    python = str(device / "venv" / "bin" / "python")
    listing = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    names = {line.split("==")[0].lower() for line in listing.stdout.split()}
    assert "numpy" in names and not names & {"torch", "openvino", "onnxruntime", "ai-edge-litert", "pillow"}
    assert "passed" in suite(device)
    verb = subprocess.run([str(device / "venv" / "bin" / "edgeqc"), "doctor"], capture_output=True, text=True)
    assert verb.returncode == 0 and 'pip install "edgeqc[openvino]"' in verb.stdout


@pytest.mark.slow
def test_the_runtime_s_suite_with_the_sdks(device):
    """Every backend that has a wheel for this Python."""
    install(device, SDKS + (device / "source").as_uri(), "hypothesis")
    out = suite(device)
    for name in ("openvino", "litert", "onnx"):
        assert f"backend {name} is not usable here" not in out


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "edgetpu"])
def test_a_device_s_answers_come_back_to_the_workstation(device, target, tmp_path):
    """`predict` on a camera without torch, `parity` here."""
    pytest.importorskip("torch", reason="exporting needs the toolkit")
    from edge import cli
    from tiny_run import LOOSE_MASKS, NO_BUDGET, write_dataset, write_run_folder

    install(device, SDKS + (device / "source").as_uri())
    run, data = write_run_folder(tmp_path / "run"), write_dataset(tmp_path / "set")
    artifact = tmp_path / "artifact"
    words = ["export", run, "--target", target, "--data", data, "--out", artifact, "--calibration", 16]
    assert cli.main([*map(str, words), *LOOSE_MASKS, "--max-flips", "0.1"]) == 0

    camera = device / f"camera-{target}"
    shutil.copytree(artifact, camera / "artifact")
    shutil.copytree(data, camera / "set")
    edgeqc = str(device / "venv" / "bin" / "edgeqc")
    asked = [edgeqc, "predict", "artifact", "--data", "set", "--split", "test", "--out", "answers.npz"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    said = subprocess.run([*asked, "--stand-in"], cwd=camera, capture_output=True, text=True, env=environment)
    assert said.returncode == 0, said.stderr
    torch = subprocess.run(
        [str(device / "venv" / "bin" / "python"), "-c", "import torch"], capture_output=True
    )
    assert torch.returncode != 0, "the camera has torch, so this shows nothing"

    answers = tmp_path / "answers.npz"
    shutil.copy(camera / "answers.npz", answers)
    words = [
        "parity",
        answers,
        artifact,
        "--reference",
        run,
        "--data",
        data,
        "--out",
        tmp_path / "parity",
        *NO_BUDGET,
    ]
    assert cli.main(list(map(str, words))) == 0
    result = json.loads((tmp_path / "parity" / "parity.json").read_text())
    there, here = result["artifacts"]
    assert there["n"] == here["n"] > 0 and there["target"] == target
    # Another release of the SDK may round in its own way; the same file decides the same.
    assert result["cross"][0]["flips"] == 0
