"""File formats by their suffixes. Nothing is imported here, so that commands can name them without loading their readers and writers."""

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".ppm",
    ".pgm",
    ".jp2",
    ".avif",
)  # read
PHOTO_SUFFIXES = (
    ".heic",
    ".heif",
    ".hif",
    ".jxl",
    ".dng",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".raf",
    ".orf",
    ".rw2",
    ".psd",
)  # not read
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # drawn
ANIMATION_SUFFIXES = (".gif", ".webp")
CHART_SUFFIXES = (".png", ".svg", ".pdf")
ATTENTION_SUFFIXES = (".json", ".npz")
CLASSIFICATION_SUFFIXES = (".json", ".csv")
DETECTION_SUFFIXES = (".json",)
DISPARITY_SUFFIXES = (".npy", ".pfm", ".png")
MASK_SUFFIXES = (".png",)
MATCH_SUFFIXES = (".npz", ".json", ".csv")
