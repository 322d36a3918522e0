"""In which types an index may store its keys; what names them needs no NumPy."""

from typing import Literal

KeyType = Literal["float32", "float16"]
