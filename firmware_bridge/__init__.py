"""Shipping: signed bundles, A/B slots, installation, and the self-test that a new slot has to pass.

Imports `edge` and the standard library only. RAUC, squashfs-tools and OpenSSL are called as programs.
"""
