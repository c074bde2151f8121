"""Lowering one quantized graph to devices, and proving that no verdict changed on the way."""
