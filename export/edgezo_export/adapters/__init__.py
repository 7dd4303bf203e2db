"""Adapters: small tensors put into a bundle's graph, which are tuned in place of its weights."""
