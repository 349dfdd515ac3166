"""Facts of this machine: processor, memory, GPU, Jetson, and its power meters."""
