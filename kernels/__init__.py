"""Fused tensor operations, each with a naive PyTorch truth and a Triton version that is only faster."""
