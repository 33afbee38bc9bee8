"""Faults in the middle: each command fails, or is killed, at every call that changes the file system."""
