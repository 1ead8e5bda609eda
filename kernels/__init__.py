"""Fused tensor operations, each as the naive PyTorch reference and as a Triton kernel that is only faster."""
