"""The CUDA driver and TensorRT, bound late."""
