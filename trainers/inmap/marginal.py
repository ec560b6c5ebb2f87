"""The class sizes behind unlabelled images: known, assumed to be equal, or weighed by what the images themselves show.

Labels are `softmax(L + theta)`, `L` the logits, with one number per class. The family has the fixed point

    theta_c = r log(C mass_c),   mass_c = mean over images of softmax(L + theta)_c.

`r` = 1 takes the predicted class sizes for true ones (the EM iteration of Saerens et al., Neural Computation 2002), 0
leaves the labels as they are, `r` < 0 evens the sizes out (unbalanced optimal transport), and `r` -> -inf makes them
equal (Sinkhorn's iterations, InMaP). A class that is predicted too often is large, or its text attracts images of other
classes; with variances S of the sizes and B of this bias, the posterior mean of size minus bias has

    r = (S - B) / (S + B) = 1 - 2 B / Z,   Z = S + B.

`Z` is read off the images (`spread`): the variance of `C mass_c` without the part that sampling alone makes.

Shapes: `N` images, `C` classes; a leading `D` for several draws at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dassl_clip.clip.rows import Rows

