"""One package a task: loss, metrics, evaluation, the Lightning module."""
