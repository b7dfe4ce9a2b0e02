"""Statistics of tensors, and the quantization ranges that follow from them."""
