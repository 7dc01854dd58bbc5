"""Worlds, hardware, visitors, networks and faults in virtual time; runs the agent that ships."""
