"""Models of other tasks become model files: detectors, segmenters, embeddings and plain values."""
