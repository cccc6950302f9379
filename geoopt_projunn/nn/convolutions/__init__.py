"""What orthogonal convolutions consist of."""
