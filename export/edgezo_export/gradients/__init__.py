"""Gradient graphs: reverse mode over the graph of a bundle, without torch."""
