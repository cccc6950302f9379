"""Linear algebra on rows and cores. Nothing here knows about manifolds or optimizers."""
