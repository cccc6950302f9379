"""Triton kernels for GPUs; what they compute stands beside each call in torch's operations."""
