"""From an event to a verdict: delivery, what follows it, and the scenarios that ask."""
