"""Pack, load and reproduce explainers; write a web page or a server's folder around a packed explainer."""
