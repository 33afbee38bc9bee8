"""The tiny vision checkpoint: nano with eyes, trained on pictures that `drawing.py` draws and `tasks.py` asks about.

A wrong patch order, a position table resized the wrong way or image tokens in the wrong place show up as wrong answers
to held-out questions, as nano's questions do for the decoder.
"""

from pathlib import Path

PATH = Path(__file__).resolve().parent
