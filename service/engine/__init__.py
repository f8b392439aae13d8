"""One operation on one batch. ONNX Runtime is imported when an engine is chosen, not before."""
