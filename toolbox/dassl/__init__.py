"""The embedded Dassl toolbox: the import name and the surface of Dassl.pytorch 0.6.3, written afresh.

Importing the package costs nothing; each sub-package imports what it needs, and heavy libraries (torchvision,
tensorboard, gdown) are imported where they are used.
"""

__version__ = "0.6.3"
__embedded__ = True
