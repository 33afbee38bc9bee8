"""What our artifacts are measured against. One module per peer, each making its files from the same checkpoint.

A module has one function, `build(checkpoint, cache, longest, progress) -> list[Spec]`: make what is not in the folder
`cache` yet, for contexts of up to `longest` tokens, and say how the bench is to run it. A peer that cannot be made here
raises Lfm2ExportError with the reason.
"""
