"""One logical CPU as loaded: registers and memory, and what they say through its page tables."""
