"""Measures and counts what `quadtree bench` and benchmarks/ print."""
