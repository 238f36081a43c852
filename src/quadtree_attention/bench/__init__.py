"""Measuring and counting: what `quadtree bench` and benchmarks/ print."""
