"""fluence: does a face look beautiful because a visual system processes it with little effort and much gained?"""

__version__ = "0.1.0"
