"""Labelled images: classes, boxes and masks."""
