"""One declaration per structure: bytes to typed values and back."""
