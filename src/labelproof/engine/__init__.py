"""The training loop on Lightning Fabric: the only package that knows it."""
