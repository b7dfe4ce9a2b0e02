"""Reduces the precision of float32 graphs: INT8 and FP16."""
