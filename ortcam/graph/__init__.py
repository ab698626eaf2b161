"""Read and edit ONNX graphs."""
