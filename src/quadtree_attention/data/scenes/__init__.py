"""Pairs of images with depth and pose: made-up scenes, and the layouts of ScanNet, MegaDepth and COLMAP."""
