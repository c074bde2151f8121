"""Shipping: signed bundles, A/B slots, installation, on-device self-test."""
