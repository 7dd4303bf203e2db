"""Lean graphs: what a bundle's graph computes, in fewer and larger kernels, for CUDA.

A lean graph has the inputs, outputs and weights of the graph that it is made from. It uses
operators of ONNX Runtime's own, which its CUDA and its CPU provider both have.
"""
