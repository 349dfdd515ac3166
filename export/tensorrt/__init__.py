"""ONNX graphs of a bundle -> TensorRT engines, with `tensorrt` on the device or `tensorrt_rtx` ahead of time."""
