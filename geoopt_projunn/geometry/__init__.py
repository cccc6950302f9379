"""The exact geometry of points: what does not depend on how a step is taken."""
