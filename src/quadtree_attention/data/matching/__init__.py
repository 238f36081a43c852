"""Pairs of views with known geometry: homographies of photographs, made-up scenes, and the layouts of ScanNet, MegaDepth and COLMAP."""
