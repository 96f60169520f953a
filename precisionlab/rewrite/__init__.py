"""Graph rewrites: rounding gates that emulate a precision, and graphs that show every layer's output."""
