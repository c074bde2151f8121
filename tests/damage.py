"""Faults put into an artifact's files: one convolution with a wrong weight or scale, or the conversion of pixels.

Each takes the artifact's folder and changes the model in it; the manifest's digests are the caller's.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import onnx

from targets.tflite_file import operations, read
from targets.tflite_writer import pack

# A convolution in the middle of the network.
VICTIM = "conv2d_20"


def change_onnx(folder, change):
    model = onnx.load(folder / "model.onnx")
    change(model)
    onnx.save(model, folder / "model.onnx")


def weight_in_onnx(folder):
    def change(model):
        node = next(node for node in model.graph.node if node.output[0] == VICTIM)
        weight = next(n for n in model.graph.node if n.output[0] == node.input[1]).input[0]
        tensor = next(t for t in model.graph.initializer if t.name == weight)
        values = onnx.numpy_helper.to_array(tensor).copy()
        values.flat[np.abs(values[0]).argmax()] *= -1
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, weight))

    change_onnx(folder, change)


def scale_in_onnx(folder):
    """The quantize of the operation gets a step half as large again; its dequantize keeps the old one."""

    def change(model):
        quantize = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and _is_behind(model, n))
        step = next(t for t in model.graph.initializer if t.name == quantize.input[1])
        larger = onnx.numpy_helper.to_array(step) * np.float32(1.5)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(larger), "larger"))
        quantize.input[1] = "larger"

    change_onnx(folder, change)


def _is_behind(model, quantize):
    sources = {node.output[0]: node for node in model.graph.node}
    source = quantize.input[0]
    if source in sources and sources[source].op_type == "Clip":
        source = sources[source].input[0]
    return source == VICTIM


def _change_tflite(folder, change):
    payload = (folder / "model.tflite").read_bytes()
    model = read(payload)
    graph = model.subgraphs[0]
    names = [graph.tensors[o.outputs[0]].name.decode().rpartition("/")[2] for o in graph.operators]
    assert operations(model)[names.index(VICTIM)].endswith("CONV_2D")
    change(model, graph, graph.operators[names.index(VICTIM)])
    (folder / "model.tflite").write_bytes(pack(model))


def weight_in_tflite(folder):
    def change(model, graph, operator):
        buffer = model.buffers[graph.tensors[operator.inputs[1]].buffer]
        values = np.frombuffer(bytes(buffer.data), np.int8).copy()
        values[np.abs(values).argmax()] *= -1
        buffer.data = values.view(np.uint8)

    _change_tflite(folder, change)


def scale_in_tflite(folder):
    def change(model, graph, operator):
        quantization = graph.tensors[operator.outputs[0]].quantization
        quantization.scale = np.asarray(quantization.scale, np.float32) * np.float32(1.5)

    _change_tflite(folder, change)


def weight_in_openvino(folder):
    """The largest weight of the operation changes its sign in `model.bin`."""
    layers = ElementTree.parse(folder / "model.xml").getroot().find("layers")
    by_id = {layer.get("id"): layer for layer in layers}
    edges = ElementTree.parse(folder / "model.xml").getroot().find("edges")
    sources = {(e.get("to-layer"), e.get("to-port")): by_id[e.get("from-layer")] for e in edges}
    convolution = next(
        layer
        for layer in layers
        if layer.get("type").endswith("Convolution") and f"/{VICTIM}/" in layer.get("name")
    )
    source = sources[convolution.get("id"), "1"]
    while source.get("type") != "Const":  # through the dequantization, and the reshape of a depthwise one
        source = sources[source.get("id"), "0"]
    facts = source.find("data").attrib
    assert facts["element_type"] == "i8"
    start, size = int(facts["offset"]), int(facts["size"])
    content = bytearray((folder / "model.bin").read_bytes())
    values = np.frombuffer(bytes(content[start : start + size]), np.int8).copy()
    values[np.abs(values).argmax()] *= -1
    content[start : start + size] = values.tobytes()
    (folder / "model.bin").write_bytes(content)


def mean_in_openvino(folder):
    """The conversion of pixels takes 120 for the middle: eight steps off, however a processor rounds."""
    text = (folder / "model.xml").read_text()
    root = ElementTree.fromstring(text)
    layers = {layer.get("id"): layer for layer in root.find("layers")}
    subtract = next(
        edge.get("to-layer")
        for edge in root.find("edges")
        if layers[edge.get("to-layer")].get("type") == "Subtract"
        and layers[edge.get("from-layer")].get("type") == "Convert"
    )
    constant = next(
        layers[edge.get("from-layer")]
        for edge in root.find("edges")
        if edge.get("to-layer") == subtract and edge.get("to-port") == "1"
    )
    offset = int(constant.find("data").get("offset"))
    content = bytearray((folder / "model.bin").read_bytes())
    assert np.frombuffer(bytes(content[offset : offset + 4]), np.float32)[0] == 128
    content[offset : offset + 4] = np.float32(120).tobytes()
    (folder / "model.bin").write_bytes(content)
