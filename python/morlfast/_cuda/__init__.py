"""What CUDA C++ kernels need around them: torch's device-wide sorts, and the layout that the kernels read."""
