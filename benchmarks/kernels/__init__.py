"""Kernels against what else computes the same: `livereel bench kernels`, or each as a module."""
