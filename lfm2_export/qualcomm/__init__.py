"""Qualcomm's libraries (sdk, provider), its chips (soc) and how a host calls a method on its NPU (calls).

Targets compile with it and runtimes run on it; it imports neither.
"""
