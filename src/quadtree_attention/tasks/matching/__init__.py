"""Image matching: supervision, losses, metrics, evaluation and training."""
