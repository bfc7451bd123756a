"""The adapter microscope: what adapters do inside a frozen BLIP, in numbers and in figures that need no widget.

activations     what each branch reads, which units fire, what is added
similarity      whether the units say the same of a picture and of its caption
dials           turn the scale, switch branches, layers and heads off, for a while
gallery         the frozen and the adapted model in front of the same pictures
frames          what frame weights do to one clip
costs           what a method costs on a backbone of any size
specimens       trained adapters that ship with the package
figures         a function for each view; `uniadapter_edu.widgets` puts controls around them
"""

from uniadapter_edu.microscope.activations import Reading, Recording, record
from uniadapter_edu.microscope.costs import blueprint, costs
from uniadapter_edu.microscope.dials import Dials, dialled
from uniadapter_edu.microscope.frames import look_at_frames
from uniadapter_edu.microscope.gallery import FROZEN, TwoModels
from uniadapter_edu.microscope.similarity import agreement
from uniadapter_edu.microscope.specimens import load_specimen

__all__ = [
    "FROZEN",
    "Dials",
    "Reading",
    "Recording",
    "TwoModels",
    "agreement",
    "blueprint",
    "costs",
    "dialled",
    "load_specimen",
    "look_at_frames",
    "record",
]
