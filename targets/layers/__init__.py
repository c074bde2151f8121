"""Which layer did it: intermediate tensors of one grid in two runtimes, operation by operation.

A tap is an extra output of the model file. `layer.py` says what a file of each format has to answer
(`onnx_taps.py`, `tflite_taps.py`, `openvino_taps.py`), `program.py` runs a tapped file through the shipped
runtime, `comparison.py` names the operations that depart, `hidden.py` finds those that a tap hides, `known.py`
adds what the lint knows of them, `verdict.py` says it in words, and `verb.py` is `edgeqc parity --layers`. What is
measured, and why so, is in docs/parity.md.
"""
