"""Qualcomm's libraries (sdk, provider), and its chips (soc).

Targets compile with it and runtimes run on it; it imports neither.
"""
