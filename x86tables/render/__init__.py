"""What people and programs read: words, bit diagrams, text, JSON, SARIF."""
