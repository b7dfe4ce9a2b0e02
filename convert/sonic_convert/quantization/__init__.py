"""From float32 graphs to smaller ones: INT8 and FP16."""
