"""Stereo: losses, metrics, training."""
