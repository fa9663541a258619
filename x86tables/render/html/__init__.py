"""What `--format html` prints: one file that needs nothing else, a module per command."""
