"""Pictures on their way to a vision encoder: opened with distrust, cut into patches by transformers' own processor."""
