"""Weakly supervised segmentation: image labels in, an ordinary RUN out, no mask file opened."""
