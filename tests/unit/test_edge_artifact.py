"""The artifact folder: written once, read anywhere, and every change of a byte is seen."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import tiny
from edge import artifact as module
from edge.artifact import MANIFEST, Artifact, write_manifest
from edge.backend import TensorSpec, check_fit
from edge.errors import DigestMismatchError, FormatVersionError, IncompatibleArtifactError, ManifestError

INPUT = {
    "width": 32,
    "height": 32,
    "channels": 1,
    "layout": "nchw",
    "file_dtype": "uint8",
    "encoding": "identity",
}


def rewrite(folder, **changes):
    """Change manifest fields the proper way, so that only the change itself is judged."""
    manifest = {**json.loads((folder / MANIFEST).read_bytes()), **changes}
    for key in [key for key, value in changes.items() if value is ...]:
        del manifest[key]
    write_manifest(folder, manifest)


def test_what_is_written_is_read(make_artifact):
    artifact = Artifact.open(make_artifact("openvino"))
    assert artifact.name == "tiny-openvino"
    assert artifact.model_file.is_file()
    assert artifact.input.shape == (1, 1, 32, 32)
    assert artifact.decision.threshold == 0.5
    assert artifact.output_names == {"defect": "defect", "mask": "mask"}
    assert {entry["path"] for entry in artifact.manifest["files"]} == {"model.xml", "model.bin", "gate.json"}


def test_a_session_answers_what_its_artifact_names_and_no_more(make_artifact):
    artifact = Artifact.open(make_artifact("onnx"))
    specs = {name: TensorSpec(name, (1, 1), "float32") for name in ("defect", "tap")}
    specs["mask"] = TensorSpec("mask", (1, 1, 8, 8), "float32")
    session = SimpleNamespace(
        inputs=(TensorSpec("input", artifact.input.shape, artifact.input.file_dtype),),
        outputs=tuple(specs.values()),
    )
    with pytest.raises(IncompatibleArtifactError, match="not the ones of the contract"):
        check_fit(session, artifact)
    artifact.output_names["tap"] = "inside"  # as `edgeqc parity --layers` asks for it
    check_fit(session, artifact)


def test_unknown_fields_are_preserved(make_artifact):
    folder = make_artifact("onnx", color="blue", nested={"a": [1, None, "é"]})
    manifest = Artifact.open(folder).manifest
    write_manifest(folder, manifest)
    assert Artifact.open(folder).manifest["nested"] == {"a": [1, None, "é"]}
    assert Artifact.open(folder).manifest["color"] == "blue"


def test_writing_again_changes_no_byte(make_artifact):
    folder = make_artifact("onnx")
    before = (folder / MANIFEST).read_bytes()
    write_manifest(folder, Artifact.open(folder).manifest)
    assert (folder / MANIFEST).read_bytes() == before


def test_digest_covers_everything(make_artifact):
    first, second = Artifact.open(make_artifact("onnx")), Artifact.open(make_artifact("onnx"))
    assert first.digest == second.digest
    assert Artifact.open(make_artifact("onnx", version="2")).digest != first.digest


@pytest.mark.parametrize(
    "field",
    sorted(module._REQUIRED.keys() - {"files"}),
)
def test_every_required_field_is_missed(make_artifact, field):
    folder = make_artifact("onnx")
    with pytest.raises(ManifestError, match=f"`{field}`"):
        rewrite(folder, **{field: ...})


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 3},
        {"labels": ["good"]},
        {"decision": {}},
        {"decision": {"threshold": "high"}},
        {"decision": {"threshold": None}},
        {"mask_threshold": True},
        {"mask_threshold": "0"},
        {"input": {"width": 32}},
        {"input": {**INPUT, "width": "32"}},
        {"input": {**INPUT, "file_dtype": "int8"}},
        {"outputs": {"defect": {"name": "defect"}}},
        {"framing": {"mode": "crop"}},
        {"framing": {"mode": "tile", "overlap": "much"}},
        {"stand_in": "onnx"},
        {"stand_in": {"device": "cpu"}},
        {"model": "../model.onnx"},
        {"model": "other.onnx"},
    ],
    ids=str,
)
def test_unusable_fields_are_named(make_artifact, changes):
    folder = make_artifact("onnx")
    with pytest.raises(ManifestError) as caught:
        rewrite(folder, **changes)
    assert MANIFEST in str(caught.value)


def test_thresholds_must_be_numbers(make_artifact):
    """JSON as Python reads it knows NaN; a verdict against NaN would always be `good`."""
    folder = make_artifact("onnx")
    manifest = dict(Artifact.open(folder).manifest)
    with pytest.raises(ManifestError):
        Artifact(folder, {**manifest, "decision": {"threshold": float("nan")}})
    with pytest.raises(ManifestError):
        Artifact(folder, {**manifest, "mask_threshold": float("inf")})


@pytest.mark.parametrize("version", ["edgeqc-artifact/2", "edgeqc-artifact/10", "something else"])
def test_unknown_format_version_is_its_own_error(make_artifact, version):
    folder = make_artifact("onnx")
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace("edgeqc-artifact/1", version))
    with pytest.raises(FormatVersionError) as caught:
        Artifact.open(folder)
    assert version in str(caught.value) and "edgeqc-artifact/1" in str(caught.value)


def test_manifest_that_was_edited_is_refused_even_if_it_still_reads_well(make_artifact):
    folder = make_artifact("onnx")
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"threshold": 0.5', '"threshold": 0.6'))
    with pytest.raises(DigestMismatchError):
        Artifact.open(folder)


def test_schema_and_reader_agree(make_artifact):
    """`edge/manifest.schema.json` accepts what we write, and lists the fields that the reader asks for."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    from importlib import resources

    schema = json.loads((resources.files("edge") / "manifest.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for target in ("openvino", "edgetpu", "litert", "tensorrt", "onnx"):
        manifest = json.loads((make_artifact(target) / MANIFEST).read_bytes())
        validator.validate(manifest)
    assert set(schema["required"]) == {*module._REQUIRED, "format", "manifest_sha256"}
    del manifest["decision"]
    assert not validator.is_valid(manifest)


def test_open_without_verifying_reads_a_damaged_artifact(make_artifact):
    folder = make_artifact("onnx")
    (folder / "model.onnx").write_bytes(b"")
    assert Artifact.open(folder, verify=False).name == "tiny-onnx"
    with pytest.raises(DigestMismatchError):
        Artifact.open(folder)


def test_tiny_artifacts_exist_for_every_target(make_artifact):
    for target in ("openvino", "edgetpu", "litert", "tensorrt", "onnx"):
        assert Artifact.open(make_artifact(target)).backend in ("openvino", "litert", "tensorrt", "onnx")
    assert tiny.FILES.is_dir()
