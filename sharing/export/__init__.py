"""Formats of other programs: torch.export, ONNX, GGUF."""
