"""Pictures on their way into a prompt: opened with distrust, cut by transformers' own processor, seen by a session."""
