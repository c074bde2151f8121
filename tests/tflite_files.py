"""TFLite files for tests, written operation by operation; nothing in them has to make sense to run."""

from __future__ import annotations

import numpy as np


class TfliteFile:
    """A file in the making: `tensor` and `constant` give indices, `operation` uses them, `bytes` packs it."""

    def __init__(self):
        from ai_edge_litert import schema_py_generated

        self.schema = schema_py_generated
        self.graph = self.schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.name = [], [], b"main"
        self.graph.inputs, self.graph.outputs = [], []
        self.model = self.schema.ModelT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.buffers, self.model.operatorCodes = [self.schema.BufferT()], []

    def tensor(self, *shape, dtype="INT8", scale=0.5, zero_point=0, state=False):
        """Something that is computed, of this shape."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = b"t%d" % len(self.graph.tensors), list(shape), 0
        tensor.type, tensor.isVariable = getattr(self.schema.TensorType, dtype), state
        if scale is not None and dtype != "FLOAT32":
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = np.asarray([scale], np.float32)
            tensor.quantization.zeroPoint = np.asarray([zero_point], np.int64)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def source(self, *shape, **facts):
        """An input of the network."""
        self.graph.inputs.append(self.tensor(*shape, **facts))
        return self.graph.inputs[-1]

    def constant(self, values, dtype="INT32", scale=None):
        kinds = {"INT8": np.int8, "UINT8": np.uint8, "INT32": np.int32, "FLOAT32": np.float32}
        values = np.asarray(values, kinds[dtype])
        index = self.tensor(*values.shape, dtype=dtype, scale=scale)
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.graph.tensors[index].buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)
        return index

    def weights(self, *shape):
        return self.constant(np.ones(shape, np.int8), "INT8", 0.1)

    def operation(self, name, inputs, outputs, options="", version=1, **fields):
        """Add an operation; a name that is no builtin makes a custom one. Returns its first output."""
        outputs = outputs if isinstance(outputs, list) else [outputs]
        code = self.schema.OperatorCodeT()
        builtin = getattr(self.schema.BuiltinOperator, name, None)
        code.builtinCode = self.schema.BuiltinOperator.CUSTOM if builtin is None else builtin
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.customCode = name.encode() if builtin is None else None
        code.version = version
        operator = self.schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes)
        operator.inputs, operator.outputs = list(inputs), outputs
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
            for field, value in fields.items():
                setattr(operator.builtinOptions, field, value)
        self.model.operatorCodes.append(code)
        self.graph.operators.append(operator)
        return outputs[0]

    def convolution(self, source, channels=4, **fields):
        """A 1x1 convolution; returns its output."""
        *sides, depth = self.graph.tensors[source].shape
        operands = [source, self.weights(channels, 1, 1, depth), self.constant(np.zeros(channels))]
        fields = {"dilationWFactor": 1, "dilationHFactor": 1, **fields}
        return self.operation("CONV_2D", operands, self.tensor(*sides, channels), "Conv2DOptions", **fields)

    def bytes(self, *outputs):
        """The flatbuffer; without `outputs` the last operation's are the network's."""
        from targets.tflite_writer import pack

        if outputs or self.graph.operators:
            self.graph.outputs = list(outputs) or self.graph.operators[-1].outputs
        return pack(self.model)
