"""What performance claims are measured with: `python -m benchmarks.NAME` from the repository root."""
