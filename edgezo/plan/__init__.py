"""The planner: what a run will need in memory and time, found out before it starts."""
