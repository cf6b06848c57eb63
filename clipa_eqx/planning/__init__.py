"""The bill of a run before it starts: its step compiled for a slice, memory, collectives, time and costs."""
