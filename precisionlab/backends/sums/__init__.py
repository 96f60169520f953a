"""Products whose running sum is kept in half, as most convolutions and GEMMs of weakly typed TensorRT keep it."""
