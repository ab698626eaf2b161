"""Models that are no classifiers become model files: detectors, segmenters, embeddings and plain values."""
