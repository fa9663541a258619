"""Deliveries compared with those of independent CPU models, on thousands of machines."""
