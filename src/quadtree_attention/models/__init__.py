"""Networks built on the operator; each room has its frozen config dataclass beside it."""
