"""The graph side: reading, preparing, describing and rewriting ONNX models. The only importer of onnx and onnx_ir."""
