"""Rectified pairs with disparity: synthetic ones of any photographs, and public datasets."""
