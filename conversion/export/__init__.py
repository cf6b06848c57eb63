"""Models for programs that do not use this package: StableHLO, ONNX, open_clip, a Hugging Face repository."""
