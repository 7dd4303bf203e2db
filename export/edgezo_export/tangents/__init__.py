"""Tangent graphs: forward mode over the graph of a bundle, without torch."""
