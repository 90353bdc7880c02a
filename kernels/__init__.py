"""One op a file: a plain torch reference, a Triton kernel, a launcher."""
