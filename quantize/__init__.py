"""The training side: networks, data, training, metrics, and the one quantization grid."""
