"""Text-guided alignment: training and the closed form (the method itself is ``adapters.tga``)."""

from .aligner import Aligner as Aligner
from .neighbours import Retriever as Retriever
