"""What is deployed: the single-file explainer, the page and the server's folder around it."""
